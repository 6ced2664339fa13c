//! Reads verified content by id. The store provides locations; [`RecordReader`] reads.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::{Snapshot, State};
use crate::error::{Error, Result};
use crate::format::manifest::{ChunkSource, Node};
use crate::format::{Chunk, ChunkId, EntryId, Kind, NodeId, Record, RecordCodec, RecordId};
use crate::pack::record_reader::Plain;
use crate::pack::{Locator, PackReader, RecordLocation, RecordReader, check_plain};
use crate::store::sink::Like;
use crate::store::{Store, TRIES_MAX};

impl ChunkSource for Store {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        RecordReader::new(self).chunks(ids, each)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        let mut node = None;
        self.nodes(&[id], &mut |_, read| {
            node = Some(read);
            Ok(())
        })?;
        node.expect("every position is handed over")
    }

    fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        RecordReader::new(self).nodes(ids, each)
    }

    fn chunk_at_hand(&self, id: ChunkId) -> Option<Chunk> {
        self.chunk(id).ok()
    }
}

impl Locator for Store {
    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        Self::locate(self, ids)
    }

    fn pack(&self, number: u32) -> Result<Arc<PackReader>> {
        self.packs().reader(number)
    }

    fn codec(&self) -> &RecordCodec {
        Self::codec(self)
    }

    fn absent(&self, what: &str) -> Error {
        let detail = if self.missing_packs().is_empty() && self.damaged().is_empty() {
            "it is in no pack of this store"
        } else {
            "it was in a pack that is missing or damaged"
        };
        Error::damaged(what, detail)
    }
}

impl Store {
    /// Reads records as they are stored, in the order of their locations, and hands each over with its position.
    /// Headers and payloads match their checksums; an absent record is an error at its position.
    ///
    /// # Errors
    /// Any error of `each`; if the index can't be read.
    pub fn records(&self, ids: &[RecordId], each: &mut dyn FnMut(usize, Result<Record>) -> Result<()>) -> Result<()> {
        RecordReader::new(self).records(ids, each)
    }

    /// Whether each record exists as a full record without known damage, so that it can be a base.
    ///
    /// # Errors
    /// If the index can't be read.
    pub fn is_full(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        Ok(self.locate(ids)?.into_iter().map(|location| location.is_some_and(|location| location.is_full())).collect())
    }

    /// Reads and decodes full records in the order of their locations, and hands each over with its position.
    pub(crate) fn read_full(
        &self,
        wanted: Vec<(usize, RecordLocation)>,
        each: &mut dyn FnMut(usize, Result<Plain>) -> Result<()>,
    ) -> Result<()> {
        RecordReader::new(self).read_full(wanted, each)
    }

    /// Reads and verifies the bases of deltas. A base that can't be read is left out.
    pub(super) fn bases(&self, ids: impl Iterator<Item = RecordId>) -> Result<HashMap<RecordId, Vec<u8>>> {
        RecordReader::new(self).bases(ids)
    }

    /// For each the id of the base of a delta against it: its own id if it is full, otherwise its base's. `None` where
    /// nothing can be read, because damage must not stop a backup.
    pub(super) fn base_ids(&self, like: &[Like]) -> Result<Vec<Option<RecordId>>> {
        let records: Vec<RecordId> = like.iter().filter_map(|like| record_of(*like)).collect();
        let sketches: Vec<u32> = like.iter().filter_map(|like| sketch_of(*like)).collect();
        let mut locations = self.locate(&records)?.into_iter();
        let mut similar = self.index.similar(&sketches)?.into_iter();
        let base_of = |like: &Like| {
            let base = match like {
                Like::Record(id) => match locations.next().flatten() {
                    Some(location) => self.base_at(*id, location).map(|(_, base)| Some(base.unwrap_or(*id))),
                    None => Ok(None),
                },
                Like::Sketch(_) => {
                    similar.next().flatten().map_or(Ok(None), |location| self.base_of_chunk_at(location))
                }
            };
            match base {
                Err(Error::Damaged { .. }) => Ok(None),
                base => base,
            }
        };
        like.iter().map(base_of).collect()
    }

    /// The base of a delta against the chunk at this offset of a pack, if that still exists.
    fn base_of_chunk_at(&self, (pack, offset): (u32, u32)) -> Result<Option<RecordId>> {
        if self.packs().row(pack).is_none() {
            return Ok(None);
        }
        let header = self.packs().reader(pack)?.record_header(u64::from(offset))?;
        Ok(Some(header.base.unwrap_or(header.id)).filter(|_| header.kind == Kind::Chunk))
    }

    /// The location of a record that was found at `location` and may have moved since, and its base if it is a delta.
    pub(super) fn base_at(
        &self,
        id: RecordId,
        mut location: RecordLocation,
    ) -> Result<(RecordLocation, Option<RecordId>)> {
        for _ in 0..TRIES_MAX {
            match self.own_base(&location) {
                Ok(base) => return Ok((location, base)),
                Err(error) => match self.locate(&[id])?[0] {
                    Some(moved) if moved != location => location = moved,
                    _ => return Err(error),
                },
            }
        }
        Ok((location, self.own_base(&location)?))
    }

    /// The base of the record at this location; `None` if it is full.
    fn own_base(&self, location: &RecordLocation) -> Result<Option<RecordId>> {
        if location.is_full() {
            return Ok(None);
        }
        Ok(self.packs().reader(location.pack)?.record_header(u64::from(location.offset))?.base)
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

/// Checks a record from elsewhere: that it decodes (a delta with its base from this store), that its content matches
/// its id, and that the content is of its kind.
///
/// # Errors
/// [`Error::Damaged`] if it does not, or its base is missing; [`Error::Refused`] for an entry of a newer version.
pub(crate) fn verify_record(store: &Store, record: &Record) -> Result<()> {
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
    let plain = store.codec().decode(header, &record.payload, base.as_deref());
    let plain = check_plain(header.kind, header.id, plain.map_err(damaged)?)?;
    check_form(header.kind, header.id, plain)
}

/// Checks that content which matches its id is of its kind.
fn check_form(kind: Kind, id: RecordId, plain: Vec<u8>) -> Result<()> {
    match kind {
        Kind::Chunk => crate::format::buffers::give(plain),
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
