//! Reading verified content out of a store, by id.
//!
//! gc moves records and unlinks packs while others read: a place that was looked up may be gone when it is read. So all
//! reading by id goes through [`Store::read_ids`], which looks again for what could not be read.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::{Snapshot, State};
use crate::chunk::Chunk;
use crate::chunk_source::ChunkSource;
use crate::codec::{self, Codec};
use crate::error::{Error, Result};
use crate::id::{ChunkId, EntryId, NodeId, RecordId};
use crate::index::Place;
use crate::manifest::Node;
use crate::pack::PackReader;
use crate::record::{Header, Kind, Record};
use crate::sink::Like;
use crate::store::Store;
use crate::store::runs::{Records, Run};

/// How often a record is looked for again that moved while it was read.
const TRIES_MAX: u32 = 8;
const UNLIKE_ID: &str = "its bytes do not match its id";

/// Takes what was read, each with its position in what was asked for.
type Each<'a, T> = dyn FnMut(usize, Result<T>) -> Result<()> + 'a;
/// Reads records at places.
type Read<'a, T> = dyn Fn(Vec<(usize, Place)>, &mut Each<'_, T>) -> Result<()> + 'a;

impl ChunkSource for Store {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        self.read_plain(&records, &|at| format!("chunk {}", ids[at]), &mut |position, plain| {
            let id = ids[position];
            let chunk = plain.and_then(|plain| plain.into_chunk(id));
            each(position, chunk.map_err(|error| error.within(&format!("chunk {id}"))))
        })
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        Node::verify(id, &self.plain(id.into(), || format!("manifest node {id}"))?)
    }
}

/// A decoded record, not yet verified against its id.
pub(crate) struct Plain {
    pub(crate) bytes: Vec<u8>,
    pack: Arc<PackReader>,
    offset: u64,
}

impl Plain {
    fn into_chunk(self, id: ChunkId) -> Result<Chunk> {
        Chunk::verify(id, self.bytes).map_err(|_| self.pack.damaged(self.offset, UNLIKE_ID))
    }
}

impl Store {
    /// Fetches records as they are stored, in the order of their places, and hands each over with its position. Headers
    /// and payloads match their checksums; what is absent is an error in its place.
    ///
    /// # Errors
    /// What `each` returns; if the index can't be read.
    pub fn records(&self, ids: &[RecordId], each: &mut dyn FnMut(usize, Result<Record>) -> Result<()>) -> Result<()> {
        let read = |wanted, each: &mut Each<'_, Record>| self.read_stored(ids, wanted, each);
        self.read_ids(ids, &|at| format!("record {}", ids[at]), &read, each)
    }

    /// For each whether it is there as a full record, known to no damage: whether it can be a base.
    ///
    /// # Errors
    /// If the index can't be read.
    pub fn is_full(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        Ok(self.places(ids)?.into_iter().map(|place| place.is_some_and(|place| place.is_full())).collect())
    }

    /// The plain bytes of a record that is not a chunk; the caller verifies them.
    pub(crate) fn plain(&self, id: RecordId, what: impl Fn() -> String) -> Result<Vec<u8>> {
        let mut bytes = None;
        self.read_plain(&[id], &|_| what(), &mut |_, plain| {
            bytes = Some(plain.map(|plain| plain.bytes).map_err(|error| error.within(&what())));
            Ok(())
        })?;
        bytes.expect("every position is handed over")
    }

    /// Fetches nodes in the order of their places; hands each over as [`ChunkSource::chunks`] does.
    pub(crate) fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        self.read_plain(&records, &|at| format!("manifest node {}", ids[at]), &mut |position, plain| {
            each(position, plain.and_then(|plain| Node::verify(ids[position], &plain.bytes)))
        })
    }

    fn absent(&self, what: &str) -> Error {
        let detail = if self.missing_packs().is_empty() && self.damaged().is_empty() {
            "it is in no pack of this store"
        } else {
            "it was in a pack that is missing or damaged"
        };
        Error::damaged(what, detail)
    }

    fn read_plain(&self, ids: &[RecordId], what: &dyn Fn(usize) -> String, each: &mut Each<'_, Plain>) -> Result<()> {
        let read = |wanted, each: &mut Each<'_, Plain>| self.read_sorted(wanted, each);
        self.read_ids(ids, what, &read, each)
    }

    /// Reads records by `read`, and looks for those again that can't be read, because they may have moved. Every position
    /// is handed over once; those that moved last.
    fn read_ids<T>(
        &self,
        ids: &[RecordId],
        what: &dyn Fn(usize) -> String,
        read: &Read<'_, T>,
        each: &mut Each<'_, T>,
    ) -> Result<()> {
        let mut places = self.places(ids)?;
        let mut wanted = Vec::with_capacity(ids.len());
        for (at, place) in places.iter().enumerate() {
            match place {
                Some(place) => wanted.push((at, *place)),
                None => each(at, Err(self.absent(&what(at))))?,
            }
        }
        for tries in 0.. {
            let mut failed = Vec::new();
            read(wanted, &mut |at, result| match result {
                Err(error) if tries < TRIES_MAX => {
                    failed.push((at, error));
                    Ok(())
                }
                result => each(at, result),
            })?;
            if failed.is_empty() {
                break;
            }
            let asked: Vec<RecordId> = failed.iter().map(|(at, _)| ids[*at]).collect();
            wanted = Vec::new();
            for ((at, error), place) in failed.into_iter().zip(self.places(&asked)?) {
                match place {
                    Some(moved) if places[at] != Some(moved) => {
                        places[at] = Some(moved);
                        wanted.push((at, moved));
                    }
                    _ => each(at, Err(error))?,
                }
            }
        }
        Ok(())
    }

    /// Reads and decodes records in the order of their places, and hands each over with its position.
    pub(crate) fn read_sorted(&self, wanted: Vec<(usize, Place)>, each: &mut Each<'_, Plain>) -> Result<()> {
        self.read_runs(wanted, &mut |run| match run {
            Run::Read(records) => self.decode_run(&records, each),
            Run::Failed(at, error) => each(at, Err(error)),
        })
    }

    fn read_stored(&self, ids: &[RecordId], wanted: Vec<(usize, Place)>, each: &mut Each<'_, Record>) -> Result<()> {
        self.read_runs(wanted, &mut |run| {
            let records = match run {
                Run::Read(records) => records,
                Run::Failed(at, error) => return each(at, Err(error)),
            };
            for ((at, place), record) in records.places.iter().zip(records.parse()) {
                let record = record.and_then(|(header, payload)| {
                    if header.id == ids[*at] {
                        Ok(Record { header, payload: payload.to_vec() })
                    } else {
                        Err(records.pack.damaged(u64::from(place.offset), "another record lies there"))
                    }
                });
                each(*at, record)?;
            }
            Ok(())
        })
    }

    /// Decodes records that were read together.
    fn decode_run(&self, records: &Records<'_>, each: &mut Each<'_, Plain>) -> Result<()> {
        let parsed = records.parse();
        let bases = self.bases(parsed.iter().flatten().filter_map(|(header, _)| header.base))?;
        for ((position, place), record) in records.places.iter().zip(parsed) {
            let plain = record.and_then(|(header, payload)| decode(records.pack, place, &header, payload, &bases));
            each(*position, plain)?;
        }
        Ok(())
    }

    /// Reads and verifies the bases of delta records. A base that can't be had is left out.
    pub(super) fn bases(&self, ids: impl Iterator<Item = RecordId>) -> Result<HashMap<RecordId, Vec<u8>>> {
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        let mut bases = HashMap::with_capacity(ids.len());
        if ids.is_empty() {
            return Ok(bases);
        }
        let read = |wanted: Vec<(usize, Place)>, each: &mut Each<'_, Vec<u8>>| {
            let (full, others): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, place)| place.is_full());
            others.into_iter().try_for_each(|(at, _)| each(at, Err(self.absent("a base"))))?;
            let kinds: HashMap<usize, Kind> = full.iter().map(|(at, place)| (*at, place.kind)).collect();
            self.read_sorted(full, &mut |at, plain| {
                each(at, plain.and_then(|plain| check_plain(kinds[&at], ids[at], plain.bytes)))
            })
        };
        self.read_ids(&ids, &|_| "a base".into(), &read, &mut |at, plain| {
            if let Ok(plain) = plain {
                bases.insert(ids[at], plain);
            }
            Ok(())
        })?;
        Ok(bases)
    }

    /// For each the name of the base that a delta against it would have: its own if it is full, else its base's. Where
    /// nothing can be read there is none: a backup goes on beside damage.
    pub(super) fn base_ids(&self, like: &[Like]) -> Result<Vec<Option<RecordId>>> {
        let records: Vec<RecordId> = like.iter().filter_map(|like| record_of(*like)).collect();
        let sketches: Vec<u32> = like.iter().filter_map(|like| sketch_of(*like)).collect();
        let mut places = self.places(&records)?.into_iter();
        let mut similar = self.index.similar(&sketches)?.into_iter();
        let base_of = |like: &Like| {
            let base = match like {
                Like::Record(id) => match places.next().flatten() {
                    Some(place) => self.base_at(*id, place).map(|(_, base)| Some(base.unwrap_or(*id))),
                    None => Ok(None),
                },
                Like::Sketch(_) => similar.next().flatten().map_or(Ok(None), |place| self.base_of_chunk_at(place)),
            };
            match base {
                Err(Error::Damaged { .. }) => Ok(None),
                base => base,
            }
        };
        like.iter().map(base_of).collect()
    }

    /// The base that a delta against the chunk at this offset of a pack would have, if there still is one.
    fn base_of_chunk_at(&self, (pack, offset): (u32, u32)) -> Result<Option<RecordId>> {
        if self.packs().row(pack).is_none() {
            return Ok(None);
        }
        let header = self.packs().reader(pack)?.record_header(u64::from(offset))?;
        Ok(Some(header.base.unwrap_or(header.id)).filter(|_| header.kind == Kind::Chunk))
    }

    /// The place of a record, which was found at `place` and may have moved since, and its base if it is a delta.
    pub(super) fn base_at(&self, id: RecordId, mut place: Place) -> Result<(Place, Option<RecordId>)> {
        for _ in 0..TRIES_MAX {
            match self.own_base(&place) {
                Ok(base) => return Ok((place, base)),
                Err(error) => match self.places(&[id])?[0] {
                    Some(moved) if moved != place => place = moved,
                    _ => return Err(error),
                },
            }
        }
        Ok((place, self.own_base(&place)?))
    }

    /// The base of the record at this place; `None` if it is full.
    fn own_base(&self, place: &Place) -> Result<Option<RecordId>> {
        if place.is_full() {
            return Ok(None);
        }
        Ok(self.packs().reader(place.pack)?.record_header(u64::from(place.offset))?.base)
    }
}

fn record_of(like: Like) -> Option<RecordId> {
    match like {
        Like::Record(id) => Some(id),
        Like::Sketch(_) => None,
    }
}

fn sketch_of(like: Like) -> Option<u32> {
    match like {
        Like::Sketch(sketch) => Some(sketch),
        Like::Record(_) => None,
    }
}

fn decode(
    pack: &Arc<PackReader>,
    place: &Place,
    header: &Header,
    payload: &[u8],
    bases: &HashMap<RecordId, Vec<u8>>,
) -> Result<Plain> {
    let offset = u64::from(place.offset);
    let base = match header.base {
        Some(base) if header.codec == Codec::Delta => Some(
            bases.get(&base).ok_or_else(|| pack.damaged(offset, format!("its base {base} is missing or damaged")))?,
        ),
        _ => None,
    };
    let bytes = codec::decode(header.codec, payload, header.plain_bytes as usize, base.map(Vec::as_slice))
        .map_err(|detail| pack.damaged(offset, detail))?;
    Ok(Plain { bytes, pack: Arc::clone(pack), offset })
}

/// Checks plain bytes against their id, by their kind.
///
/// # Errors
/// [`Error::Damaged`] if they do not match.
pub fn check_plain(kind: Kind, id: RecordId, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if id_of(kind, &bytes) == id { Ok(bytes) } else { Err(Error::damaged(format!("record {id}"), UNLIKE_ID)) }
}

/// Checks that a record from elsewhere is what it says: that it decodes, if it is a delta with its base from the store,
/// and that its content matches its id and is of its kind.
///
/// # Errors
/// [`Error::Damaged`] if it is not, or its base is not there; [`Error::Refused`] for the entry of a newer version.
pub fn verify_record(store: &Store, record: &Record) -> Result<()> {
    let header = &record.header;
    let damaged = |detail: String| Error::damaged(format!("record {}", header.id), detail);
    if !header.payload_matches(&record.payload) {
        return Err(damaged("the payload's checksum does not match".into()));
    }
    let base = match header.base {
        Some(base) => Some(
            store
                .bases(std::iter::once(base))?
                .remove(&base)
                .ok_or_else(|| damaged(format!("its base {base} is not in the store as a full record")))?,
        ),
        None => None,
    };
    let plain = codec::decode(header.codec, &record.payload, header.plain_bytes as usize, base.as_deref());
    let plain = check_plain(header.kind, header.id, plain.map_err(damaged)?)?;
    check_form(header.kind, header.id, plain)
}

/// Checks that content which matches its id is of its kind.
fn check_form(kind: Kind, id: RecordId, plain: Vec<u8>) -> Result<()> {
    match kind {
        Kind::Chunk => crate::buffers::give(plain),
        Kind::Node => {
            let node = Node::decode(&plain);
            node.map_err(|detail| Error::damaged(format!("manifest node {id}"), detail))?;
        }
        Kind::Entry => {
            let entry = EntryId::from_bytes(*id.as_bytes());
            match Snapshot::from_entry(entry, plain, State::default()) {
                Ok(_) => {}
                Err(refused @ Error::Refused { .. }) => return Err(refused),
                Err(error) => return Err(Error::damaged(format!("snapshot entry {id}"), error.to_string())),
            }
        }
    }
    Ok(())
}

/// The id that these bytes have as content of this kind.
pub(crate) fn id_of(kind: Kind, bytes: &[u8]) -> RecordId {
    match kind {
        Kind::Chunk => ChunkId::of(bytes).into(),
        Kind::Node => NodeId::of(bytes).into(),
        Kind::Entry => EntryId::of(bytes).into(),
    }
}
