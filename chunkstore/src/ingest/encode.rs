//! Encoding new records, each against the best base.

use super::batch::{NewChunk, NewNode};
use super::sketch::{self, BASES_MAX, Full};
use crate::error::Result;
use crate::format::chunker::Cut;
use crate::format::manifest::Leaf;
use crate::format::{Kind, Record, RecordCodec, RecordId};
use crate::store::{Base, Claim, Like, Sink};

/// A chunk or leaf to put if the store lacks it.
#[derive(Clone, Copy)]
pub(super) enum Item<'a> {
    /// With the parent's leaf of its segment.
    Chunk {
        chunk: &'a NewChunk<'a>,
        parent: Option<&'a Leaf>,
    },
    Leaf(&'a NewNode),
}

impl Item<'_> {
    pub(super) fn id(&self) -> RecordId {
        match self {
            Self::Chunk { chunk, .. } => chunk.cut.id.into(),
            Self::Leaf(leaf) => leaf.id.into(),
        }
    }

    /// The parent's record in its place.
    fn like(&self) -> Option<RecordId> {
        match *self {
            Self::Chunk { chunk, parent } => overlapping(parent?, &chunk.cut),
            Self::Leaf(leaf) => leaf.parent.map(RecordId::from),
        }
    }
}

/// An item that this session has claimed.
pub(super) struct Task<'a> {
    item: Item<'a>,
    /// It must be a full record, because the store's copy is damaged.
    whole: bool,
}

impl<'a> Task<'a> {
    /// The task for an item with this answer to its claim.
    pub(super) fn of(item: Item<'a>, claim: Claim) -> Option<Self> {
        match claim {
            Claim::Yours => Some(Self { item, whole: false }),
            Claim::YoursWhole => Some(Self { item, whole: true }),
            Claim::Present | Claim::Elsewhere => None,
        }
    }
}

/// Encodes items against the parent's records in their places, or else against similar ones.
pub(super) fn records(sink: &dyn Sink, codec: &RecordCodec, tasks: &[Task<'_>]) -> Result<Vec<Record>> {
    let (mut records, mut full) = (Vec::with_capacity(tasks.len()), Vec::new());
    for group in tasks.chunks(BASES_MAX) {
        for (task, base) in group.iter().zip(bases(sink, group)?) {
            let NewChunk { cut, plain } = match task.item {
                Item::Chunk { chunk, .. } => chunk,
                Item::Leaf(leaf) => {
                    records.push(record(codec, Kind::Node, leaf.id.into(), &leaf.encoding, base.as_ref()));
                    continue;
                }
            };
            let record = record(codec, Kind::Chunk, cut.id.into(), plain, base.as_ref());
            if record.header.base.is_some() || task.whole {
                records.push(record);
            } else {
                full.push(Full { plain, record: record.with_sketch(sketch::sketch(plain, cut.range.start)) });
            }
        }
    }
    records.extend(sketch::rebase(sink, codec, full)?);
    Ok(records)
}

/// The bases of items: the parent's records in their places.
fn bases(sink: &dyn Sink, tasks: &[Task<'_>]) -> Result<Vec<Option<Base>>> {
    let in_place: Vec<Option<RecordId>> =
        tasks.iter().map(|task| if task.whole { None } else { task.item.like() }).collect();
    let like: Vec<Like> = in_place.iter().flatten().map(|id| Like::Record(*id)).collect();
    if like.is_empty() {
        return Ok(tasks.iter().map(|_| None).collect());
    }
    let mut found = sink.bases(&like)?.into_iter();
    Ok(in_place.into_iter().map(|like| like.and_then(|_| found.next().flatten())).collect())
}

/// The parent's chunk that overlaps a cut the most.
fn overlapping(parent: &Leaf, cut: &Cut) -> Option<RecordId> {
    let overlap = |start: usize, bytes: u32| {
        (start + bytes as usize).min(cut.range.end).saturating_sub(start.max(cut.range.start))
    };
    let best = parent.chunks().max_by_key(|(start, _, bytes)| overlap(*start, *bytes))?;
    (overlap(best.0, best.2) > 0).then(|| best.1.into())
}

/// Encodes content into a record, against the base if that is clearly smaller.
pub(super) fn record(codec: &RecordCodec, kind: Kind, id: RecordId, bytes: &[u8], base: Option<&Base>) -> Record {
    codec.encode(kind, id, bytes, base.map(|base| (base.id, &base.bytes[..])))
}
