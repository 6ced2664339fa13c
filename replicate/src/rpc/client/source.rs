//! The owner's content as a [`ChunkSource`], and a session as a [`Sink`]: readers and ingests need not know whether the
//! store is in this process or behind a connection. Both are for plain threads; everything received is verified here.

use std::collections::HashMap;

use chunkstore::catalog::{Entry, IngestReport, Snapshot};
use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{Chunk, ChunkId, Codec, Header, NodeId, Record, RecordCodec, RecordId};
use chunkstore::pack::{Class, Extent, ExtentAllocator, RecordReader};
use chunkstore::store::{Base, Claim, Like, Sink};
use chunkstore::{Error, Result};

use super::multiplex::broken;
use super::requests::{Arrived, unexpected};
use super::{Client, ClientSession, LocalPacks, LocalReader, OwnerConnection};
use crate::rpc::wire::{
    Fetch, ForStream, Kind, Located, Locations, Reply, Request, Resemblance, headers_to_bytes, records_of,
};

/// Ids of one request: their records fit in memory together.
const GROUP_IDS: usize = 64;

/// Plain bytes of bases by their ids.
pub(crate) type Bases = HashMap<RecordId, Vec<u8>>;

/// Decodes a record; the result is not verified against its id.
pub(crate) fn decode(codec: &RecordCodec, record: &Record, bases: &Bases) -> Result<Vec<u8>> {
    let header = &record.header;
    let base = header.base.filter(|_| header.codec == Codec::Delta);
    let base = match base {
        Some(base) => Some(bases.get(&base).ok_or_else(|| broken(format!("a delta came without its base {base}")))?),
        None => None,
    };
    codec
        .decode(header, &record.payload, base.map(Vec::as_slice))
        .map_err(|detail| Error::damaged(format!("record {}", header.id), detail))
}

/// Keeps a base that came along.
fn keep(codec: &RecordCodec, bases: &mut Bases, record: &Record) -> Result<()> {
    let plain = decode(codec, record, &Bases::new())?;
    bases.insert(record.header.id, chunkstore::pack::check_plain(record.header.kind, record.header.id, plain)?);
    Ok(())
}

impl Client {
    /// Fetches plain bytes; `each` verifies them.
    async fn plain(
        &self,
        ids: &[RecordId],
        each: &mut (dyn FnMut(usize, Result<Vec<u8>>) -> Result<()> + Send),
    ) -> Result<()> {
        let mut bases = Bases::new();
        self.fetch_records(ids, Fetch::WithBases, &mut |arrived| match arrived {
            Arrived::Base(record) => keep(self.codec(), &mut bases, &record),
            Arrived::Wanted(position, Err(error)) => each(position, Err(error)),
            Arrived::Wanted(position, Ok(record)) => each(position, decode(self.codec(), &record, &bases)),
        })
        .await
    }

    /// Fetches in groups, on a thread that may block, and passes on the result of `verify` for each.
    fn fetch_all<I: Copy + Into<RecordId>, T>(
        &self,
        ids: &[I],
        verify: impl Fn(I, Vec<u8>) -> Result<T>,
        each: &mut dyn FnMut(usize, Result<T>) -> Result<()>,
    ) -> Result<()> {
        for (group, ids) in ids.chunks(GROUP_IDS).enumerate() {
            let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
            let mut fetched = Vec::with_capacity(ids.len());
            self.wait(self.plain(&records, &mut |at, plain| {
                fetched.push((at, plain));
                Ok(())
            }))?;
            for (at, plain) in fetched {
                each(group * GROUP_IDS + at, plain.and_then(|plain| verify(ids[at], plain)))?;
            }
        }
        Ok(())
    }
}

impl ChunkSource for Client {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        match self.packs() {
            Some(packs) => LocalReader::new(packs, self).chunks(ids, each),
            None => self.fetch_chunks(ids, each),
        }
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
        match self.packs() {
            Some(packs) => LocalReader::new(packs, self).nodes(ids, each),
            None => self.fetch_nodes(ids, each),
        }
    }

    fn expect(&self, ids: &[ChunkId]) {
        if let Some(packs) = self.packs() {
            LocalReader::new(packs, self).expect(ids);
        }
    }

    fn expect_nodes(&self, ids: &[NodeId]) {
        if let Some(packs) = self.packs() {
            LocalReader::new(packs, self).expect_nodes(ids);
        }
    }
}

impl OwnerConnection for Client {
    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<Located>>> {
        self.wait(self.locations(ids))
    }

    fn fetch_chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        self.fetch_all(ids, Chunk::verify, each)
    }

    fn fetch_nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        self.fetch_all(ids, |id, plain| Node::verify(id, &plain), each)
    }
}

impl Sink for ClientSession {
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        let mut claims = Vec::with_capacity(ids.len());
        for ids in ids.chunks(crate::rpc::wire::IDS_MAX) {
            claims.extend(self.client().wait(self.claim(ids))?.1);
        }
        Ok(claims)
    }

    fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        if let Some(packs) = self.client().packs()
            && let Some(bases) = self.read_bases(packs, like)?
        {
            return Ok(bases);
        }
        self.client().wait(self.fetch_bases(like))
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        let records = match self.client().packs() {
            Some(packs) => self.direct_writer.put(self, packs.storage(), records)?,
            None => records,
        };
        if records.is_empty() { Ok(()) } else { self.client().wait(self.put_soon(&records)) }
    }

    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot> {
        let entry = entry.encode()?;
        self.client().wait(async {
            self.settle().await?;
            self.publish(entry, Some(&report)).await
        })
    }
}

impl ExtentAllocator for ClientSession {
    fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        let request = Request::Reserve { session: self.id(), class: class as u8, bytes };
        match self.client().wait(self.client().call(&request))? {
            Reply::Reserved(extent) => extent.extent().map_err(broken),
            reply => Err(unexpected(&reply)),
        }
    }

    fn append_written(&self, extent: Extent, headers: &[Header]) -> Result<bool> {
        let (extent, headers) = (extent.into(), headers_to_bytes(headers));
        match self.client().wait(self.client().call(&Request::AppendWritten { session: self.id(), extent, headers }))? {
            Reply::Appended(is_appended) => Ok(is_appended),
            reply => Err(unexpected(&reply)),
        }
    }
}

impl ClientSession {
    /// Asks only for the bases' ids and locations and reads them here; `None` if one can't be read.
    fn read_bases(&self, packs: &LocalPacks, like: &[Like]) -> Result<Option<Vec<Option<Base>>>> {
        let request = Request::BaseIds { session: self.id(), like: resemblances(like) };
        let (ids, places) = match self.client().wait(self.client().call(&request))? {
            Reply::BaseIds { ids, locations: Locations(places) } => (ids, places),
            reply => return Err(unexpected(&reply)),
        };
        let found: Vec<RecordId> = ids.iter().flatten().map(|id| RecordId::from_bytes(*id)).collect();
        if ids.len() != like.len() || places.len() != found.len() {
            return Err(broken("bases for a different number of records"));
        }
        packs.keep(&found, &places);
        let bases = RecordReader::new(&LocalReader::new(packs, self.client())).bases(found.iter().copied())?;
        if found.iter().any(|id| !bases.contains_key(id)) {
            return Ok(None);
        }
        Ok(Some(Base::from_plain(record_ids(ids), bases)))
    }

    async fn fetch_bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        let request = Request::Bases { session: self.id(), like: resemblances(like) };
        let mut answer = self.client().send(Kind::Request, request.to_bytes()).await?;
        let mut bases = Bases::new();
        let mut sent = 0;
        loop {
            let frame = answer.frame().await?;
            if frame.kind == Kind::Bases {
                let records = records_of(&frame.payload).map_err(broken)?;
                sent += records.len();
                if sent > like.len() {
                    return Err(broken("it sends more bases than were asked for"));
                }
                for record in records {
                    // A backup continues despite damage.
                    if let Err(error) = keep(self.client().codec(), &mut bases, &record) {
                        tracing::warn!("not used as base: {error}");
                    }
                }
                continue;
            }
            let Reply::Bases(ids) = Reply::from_bytes(&frame.payload).map_err(broken)? else {
                return Err(unexpected(&Reply::Done));
            };
            return Ok(Base::from_plain(record_ids(ids), bases));
        }
    }
}

fn resemblances(like: &[Like]) -> Vec<Resemblance> {
    like.iter()
        .map(|like| match like {
            Like::Record(id) => Resemblance::Record(*id.as_bytes()),
            Like::Sketch(sketch) => Resemblance::Sketch(*sketch),
        })
        .collect()
}

fn record_ids(ids: Vec<Option<[u8; 32]>>) -> impl Iterator<Item = Option<RecordId>> {
    ids.into_iter().map(|id| id.map(RecordId::from_bytes))
}
