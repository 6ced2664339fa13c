//! Reading records by location: one piece of code for a store's owner and its local clients.
//!
//! [`Locator`] finds records and opens packs; [`RecordReader`] reads, checks, decodes and finds bases. gc moves records
//! and unlinks packs at any time, so a location may be stale when it is read: all reading by id goes through one
//! function, which locates again the records that it could not read. Locations are hints, perhaps from another process.
//! The content is checked against its id, here or by the caller; no more is allocated than a record can have, and a
//! base's base is never read.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::manifest::Node;
use crate::format::{Chunk, ChunkId, Codec, EntryId, Header, Kind, NodeId, Record, RecordCodec, RecordId};
use crate::pack::PackReader;
use crate::pack::RecordLocation;

mod files;
mod runs;

pub use files::PackFiles;
use runs::{Records, Run};

/// Attempts to locate again a record that moved while it was read.
const TRIES_MAX: u32 = 8;
const UNLIKE_ID: &str = "its bytes do not match its id";

/// Receives each result with its position in the request.
type Each<'a, T> = dyn FnMut(usize, Result<T>) -> Result<()> + 'a;
/// Reads records at locations.
type Read<'a, T> = dyn Fn(Vec<(usize, RecordLocation)>, &mut Each<'_, T>) -> Result<()> + 'a;
/// A record's header and payload, if they match their checksums.
type Parsed<'a> = Result<(Header, &'a [u8])>;
/// Plain bytes of bases by their ids.
type Bases = HashMap<RecordId, Vec<u8>>;

/// Finds records, and opens the packs that hold them.
pub trait Locator: Send + Sync {
    /// The locations of records, in the order of `ids`; `None` for a missing record.
    ///
    /// # Errors
    /// If the lookup fails.
    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>>;

    /// New locations of records that could not be read at the old ones; bypasses every cache.
    ///
    /// # Errors
    /// As [`Locator::locate`].
    fn locate_again(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        self.locate(ids)
    }

    /// The pack with this number.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is none; others if it can't be opened.
    fn pack(&self, number: u32) -> Result<Arc<PackReader>>;

    /// What the store's records are encoded with.
    fn codec(&self) -> &RecordCodec;

    /// The error for something that has no location.
    fn absent(&self, what: &str) -> Error;
}

/// Reads records whose locations a [`Locator`] knows.
#[derive(Clone, Copy)]
pub struct RecordReader<'a> {
    locations: &'a dyn Locator,
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

impl<'a> RecordReader<'a> {
    /// A reader of the records that `locations` knows.
    pub fn new(locations: &'a dyn Locator) -> Self {
        Self { locations }
    }

    /// Fetches chunks as [`ChunkSource::chunks`](crate::format::manifest::ChunkSource::chunks) does, in the order of
    /// their locations.
    ///
    /// # Errors
    /// What `each` returns; what the lookup returns.
    pub fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        self.read_plain(&records, &|at| format!("chunk {}", ids[at]), &mut |position, plain| {
            let id = ids[position];
            let chunk = plain.and_then(|plain| plain.into_chunk(id));
            each(position, chunk.map_err(|error| error.within(&format!("chunk {id}"))))
        })
    }

    /// Fetches nodes as [`RecordReader::chunks`] does chunks.
    ///
    /// # Errors
    /// As [`RecordReader::chunks`].
    pub fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        self.read_plain(&records, &|at| format!("manifest node {}", ids[at]), &mut |position, plain| {
            let id = ids[position];
            let node = plain.and_then(|plain| Node::verify(id, &plain.bytes));
            each(position, node.map_err(|error| error.within(&format!("manifest node {id}"))))
        })
    }

    /// Fetches records as they are stored, in the order of their locations, and passes each with its position to
    /// `each`. Headers and payloads match their checksums, and headers the ids; a missing record is passed as an error.
    ///
    /// # Errors
    /// As [`RecordReader::chunks`].
    pub fn records(&self, ids: &[RecordId], each: &mut dyn FnMut(usize, Result<Record>) -> Result<()>) -> Result<()> {
        let read = |wanted, each: &mut Each<'_, Record>| self.read_stored(ids, wanted, each);
        self.read_ids(ids, &|at| format!("record {}", ids[at]), &read, each)
    }

    /// Reads and verifies the bases of delta records. A base that can't be read is left out.
    ///
    /// # Errors
    /// If the lookup fails.
    pub fn bases(&self, ids: impl Iterator<Item = RecordId>) -> Result<Bases> {
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        let mut bases = HashMap::with_capacity(ids.len());
        if ids.is_empty() {
            return Ok(bases);
        }
        let read = |wanted: Vec<(usize, RecordLocation)>, each: &mut Each<'_, Vec<u8>>| {
            let (full, others): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, location)| location.is_full());
            others.into_iter().try_for_each(|(at, _)| each(at, Err(self.locations.absent("a base"))))?;
            let kinds: HashMap<usize, Kind> = full.iter().map(|(at, location)| (*at, location.kind)).collect();
            self.read_full(full, &mut |at, plain| {
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

    /// Reads and decodes full records in the order of their locations, and passes each with its position to `each`.
    pub(crate) fn read_full(&self, wanted: Vec<(usize, RecordLocation)>, each: &mut Each<'_, Plain>) -> Result<()> {
        // A location with wrong flags finds no base here, so never a base of a base.
        self.read_decoded(wanted, &|_| Ok(Bases::new()), each)
    }

    fn read_plain(&self, ids: &[RecordId], what: &dyn Fn(usize) -> String, each: &mut Each<'_, Plain>) -> Result<()> {
        let bases_of =
            |parsed: &[Parsed<'_>]| self.bases(parsed.iter().flatten().filter_map(|(header, _)| header.base));
        let read = |wanted, each: &mut Each<'_, Plain>| self.read_decoded(wanted, &bases_of, each);
        self.read_ids(ids, what, &read, each)
    }

    /// Reads records with `read`, and locates again those that it can't read, because they may have moved. Every
    /// position is passed once, moved records last.
    fn read_ids<T>(
        &self,
        ids: &[RecordId],
        what: &dyn Fn(usize) -> String,
        read: &Read<'_, T>,
        each: &mut Each<'_, T>,
    ) -> Result<()> {
        let mut locations = self.locations.locate(ids)?;
        let mut wanted = Vec::with_capacity(ids.len());
        for (at, location) in locations.iter().enumerate() {
            match location {
                Some(location) => wanted.push((at, *location)),
                None => each(at, Err(self.locations.absent(&what(at))))?,
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
            for ((at, error), location) in failed.into_iter().zip(self.locations.locate_again(&asked)?) {
                match location {
                    Some(moved) if locations[at] != Some(moved) => {
                        locations[at] = Some(moved);
                        wanted.push((at, moved));
                    }
                    _ => each(at, Err(error))?,
                }
            }
        }
        Ok(())
    }

    fn read_stored(
        &self,
        ids: &[RecordId],
        wanted: Vec<(usize, RecordLocation)>,
        each: &mut Each<'_, Record>,
    ) -> Result<()> {
        runs::read(self.locations, wanted, &mut |run| {
            let records = match run {
                Run::Read(records) => records,
                Run::Failed(at, error) => return each(at, Err(error)),
            };
            for ((at, location), record) in records.locations.iter().zip(records.parse()) {
                let record = record.and_then(|(header, payload)| {
                    if header.id == ids[*at] {
                        Ok(Record { header, payload: payload.to_vec() })
                    } else {
                        Err(records.pack.damaged(u64::from(location.offset), "another record lies there"))
                    }
                });
                each(*at, record)?;
            }
            Ok(())
        })
    }

    /// Reads and decodes records, each run with the bases that `bases_of` returns for it.
    fn read_decoded(
        &self,
        wanted: Vec<(usize, RecordLocation)>,
        bases_of: &dyn Fn(&[Parsed<'_>]) -> Result<Bases>,
        each: &mut Each<'_, Plain>,
    ) -> Result<()> {
        runs::read(self.locations, wanted, &mut |run| match run {
            Run::Read(records) => {
                let parsed = records.parse();
                let bases = bases_of(&parsed)?;
                decode_run(self.locations.codec(), &records, parsed, &bases, each)
            }
            Run::Failed(at, error) => each(at, Err(error)),
        })
    }
}

/// Decodes records that were read together.
fn decode_run(
    codec: &RecordCodec,
    records: &Records<'_>,
    parsed: Vec<Parsed<'_>>,
    bases: &Bases,
    each: &mut Each<'_, Plain>,
) -> Result<()> {
    for ((position, location), record) in records.locations.iter().zip(parsed) {
        let plain = record.and_then(|(header, payload)| decode(codec, records.pack, location, &header, payload, bases));
        each(*position, plain)?;
    }
    Ok(())
}

fn decode(
    codec: &RecordCodec,
    pack: &Arc<PackReader>,
    location: &RecordLocation,
    header: &Header,
    payload: &[u8],
    bases: &Bases,
) -> Result<Plain> {
    let offset = u64::from(location.offset);
    let base = match header.base {
        Some(base) if header.codec == Codec::Delta => Some(
            bases.get(&base).ok_or_else(|| pack.damaged(offset, format!("its base {base} is missing or damaged")))?,
        ),
        _ => None,
    };
    let bytes =
        codec.decode(header, payload, base.map(Vec::as_slice)).map_err(|detail| pack.damaged(offset, detail))?;
    Ok(Plain { bytes, pack: Arc::clone(pack), offset })
}

/// Checks plain bytes against their id, by their kind.
///
/// # Errors
/// [`Error::Damaged`] if they do not match.
pub fn check_plain(kind: Kind, id: RecordId, bytes: Vec<u8>) -> Result<Vec<u8>> {
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
