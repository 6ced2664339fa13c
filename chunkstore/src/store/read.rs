//! Reading verified content out of a store.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::buffers;
use crate::chunk::Chunk;
use crate::chunk_source::ChunkSource;
use crate::codec::{self, Codec};
use crate::error::{Error, Result};
use crate::id::{ChunkId, EntryId, NodeId, RecordId};
use crate::index::Place;
use crate::manifest::Node;
use crate::pack::PackReader;
use crate::record::{HEADER_BYTES, Header, Kind};
use crate::store::Store;

/// Records of one pack that lie this close are read with one call.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// Most bytes read with one call.
const READ_BYTES_MAX: u64 = 2 << 20;
const UNLIKE_ID: &str = "its bytes do not match its id";

impl ChunkSource for Store {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        let mut found = Vec::with_capacity(ids.len());
        for (position, place) in self.places(&records)?.into_iter().enumerate() {
            match place {
                Some(place) => found.push((position, place)),
                None => each(position, Err(self.absent(&format!("chunk {}", ids[position]))))?,
            }
        }
        self.read_sorted(found, &mut |position, plain| {
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
    /// The plain bytes of a record that is not a chunk; the caller verifies them.
    pub(crate) fn plain(&self, id: RecordId, what: impl Fn() -> String) -> Result<Vec<u8>> {
        let place = self.places(&[id])?[0].ok_or_else(|| self.absent(&what()))?;
        let mut bytes = Err(self.absent(&what()));
        self.read_sorted(vec![(0, place)], &mut |_, plain| {
            bytes = plain.map(|plain| plain.bytes).map_err(|error| error.within(&what()));
            Ok(())
        })?;
        bytes
    }

    /// Fetches nodes in the order of their places; hands each over as [`ChunkSource::chunks`] does.
    pub(crate) fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        let mut found = Vec::with_capacity(ids.len());
        for (position, place) in self.places(&records)?.into_iter().enumerate() {
            match place {
                Some(place) => found.push((position, place)),
                None => each(position, Err(self.absent(&format!("manifest node {}", ids[position]))))?,
            }
        }
        self.read_sorted(found, &mut |position, plain| {
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

    /// Reads and decodes records in the order of their places, and hands each over with its position.
    pub(crate) fn read_sorted(
        &self,
        mut wanted: Vec<(usize, Place)>,
        each: &mut dyn FnMut(usize, Result<Plain>) -> Result<()>,
    ) -> Result<()> {
        wanted.sort_unstable_by_key(|(_, place)| (place.pack, place.offset));
        let mut rest = wanted.as_slice();
        while !rest.is_empty() {
            let run = run_length(rest);
            let (run, after) = rest.split_at(run);
            self.read_run(run, each)?;
            rest = after;
        }
        Ok(())
    }

    /// Reads records that lie close together with one call.
    fn read_run(&self, run: &[(usize, Place)], each: &mut dyn FnMut(usize, Result<Plain>) -> Result<()>) -> Result<()> {
        // Places may overlap if a damaged pack was searched for records and content that looks like one was found.
        let range_end = run.iter().map(|(_, place)| end(place)).max().unwrap_or_default();
        let range = u64::from(run[0].1.offset)..range_end;
        buffers::with((range.end - range.start) as usize, |bytes| {
            let read = self.packs().reader(run[0].1.pack).and_then(|pack| {
                pack.read_at(bytes, range.start)?;
                Ok(pack)
            });
            match read {
                Ok(pack) => self.decode_run(&pack, run, bytes, each),
                // One bad block must not take its neighbours along.
                Err(_) if run.len() > 1 => {
                    run.iter().try_for_each(|one| self.read_run(std::slice::from_ref(one), each))
                }
                Err(error) => each(run[0].0, Err(error)),
            }
        })
    }

    /// Decodes the records of a run, whose bytes these are.
    fn decode_run(
        &self,
        pack: &Arc<PackReader>,
        run: &[(usize, Place)],
        bytes: &[u8],
        each: &mut dyn FnMut(usize, Result<Plain>) -> Result<()>,
    ) -> Result<()> {
        let start = run[0].1.offset;
        let at = |place: &Place| -> Range<usize> {
            let start = (place.offset - start) as usize;
            start..start + HEADER_BYTES + place.stored_bytes as usize
        };
        let records: Vec<_> =
            run.iter().map(|(_, place)| pack.parse_record(&bytes[at(place)], u64::from(place.offset))).collect();
        let bases = self.bases(records.iter().flatten().filter_map(|(header, _)| header.base))?;
        for ((position, place), record) in run.iter().zip(records) {
            let plain = record.and_then(|(header, payload)| decode(pack, place, &header, payload, &bases));
            each(*position, plain)?;
        }
        Ok(())
    }

    /// Reads and verifies the bases of delta records. A base that can't be had is left out.
    fn bases(&self, ids: impl Iterator<Item = RecordId>) -> Result<HashMap<RecordId, Vec<u8>>> {
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        let places = self.places(&ids)?;
        let full = places.into_iter().enumerate().filter_map(|(at, place)| Some((at, place.filter(Place::is_full)?)));
        let kinds: Vec<_> = full.collect();
        let kind_of: HashMap<usize, Kind> = kinds.iter().map(|(at, place)| (*at, place.kind)).collect();
        let mut bases = HashMap::with_capacity(ids.len());
        self.read_sorted(kinds, &mut |at, plain| {
            if let Ok(plain) = plain.and_then(|plain| verified(kind_of[&at], ids[at], plain.bytes)) {
                bases.insert(ids[at], plain);
            }
            Ok(())
        })?;
        Ok(bases)
    }

    /// The base that a delta against this record would have: the record itself if it is full, else its own base;
    /// with its verified bytes. `None` if there is none that can be read.
    pub(crate) fn base_for(&self, id: RecordId) -> Result<Option<(RecordId, Vec<u8>)>> {
        let Some(place) = self.places(&[id])?[0] else { return Ok(None) };
        let base = match self.own_base(&place) {
            Ok(base) => base.unwrap_or(id),
            // A backup goes on beside damage.
            Err(Error::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(self.bases(std::iter::once(base))?.remove(&base).map(|bytes| (base, bytes)))
    }

    /// The base of the record at this place; `None` if it is full.
    fn own_base(&self, place: &Place) -> Result<Option<RecordId>> {
        if place.is_full() {
            return Ok(None);
        }
        Ok(self.packs().reader(place.pack)?.record_header(u64::from(place.offset))?.base)
    }

    /// Whether a record can be counted on: it has a place and, if it is a delta, its base has one.
    pub(crate) fn resolves(&self, place: Option<Place>) -> Result<bool> {
        let Some(place) = place else { return Ok(false) };
        match self.own_base(&place) {
            Ok(None) => Ok(true),
            Ok(Some(base)) => Ok(self.places(&[base])?[0].is_some_and(|base| base.is_full())),
            // A header that can't be read is damage; to store the content again heals it.
            Err(Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn end(place: &Place) -> u64 {
    u64::from(place.offset) + HEADER_BYTES as u64 + u64::from(place.stored_bytes)
}

/// How many of the first records are read together.
fn run_length(sorted: &[(usize, Place)]) -> usize {
    let first = &sorted[0].1;
    let follows = |pair: &[(usize, Place)]| {
        let (before, next) = (&pair[0].1, &pair[1].1);
        next.pack == first.pack
            && u64::from(next.offset) <= end(before) + GAP_BYTES_MAX
            && end(next) - u64::from(first.offset) <= READ_BYTES_MAX
    };
    1 + sorted.windows(2).take_while(|pair| follows(pair)).count()
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

/// Checks a base's bytes against its id, by its kind.
fn verified(kind: Kind, id: RecordId, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if id_of(kind, &bytes) == id { Ok(bytes) } else { Err(Error::damaged(format!("record {id}"), UNLIKE_ID)) }
}

/// The id that these bytes have as content of this kind.
pub(crate) fn id_of(kind: Kind, bytes: &[u8]) -> RecordId {
    match kind {
        Kind::Chunk => ChunkId::of(bytes).into(),
        Kind::Node => NodeId::of(bytes).into(),
        Kind::Entry => EntryId::of(bytes).into(),
    }
}
