//! Fetches records that a damaged store lacks, by id, from stores that have them.
//!
//! The manifests of its snapshots are walked from their roots. Missing records are requested from one store after the
//! other, always as full records: the base of a delta may be lost too. Everything is decoded and hashed before it is
//! put.

use std::collections::{HashMap, HashSet};

use chunkstore::catalog::Snapshot;
use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{Kind, NodeId, Record, RecordCodec, RecordId};
use chunkstore::pack::check_plain;
use chunkstore::store::{Claim, Sink};
use chunkstore::{Error, Progress, Result};
use serde::Serialize;

use crate::rpc::client::{Arrived, Bases, Client, ClientSession, decode};
use crate::rpc::wire::{Fetch, Purpose};

/// Records that are fetched and put together.
const GROUP_RECORDS: usize = 64;
/// Chunks that are claimed together.
const BATCH_CHUNKS: usize = 4096;

/// The outcome of fetching.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// Records that were fetched and put.
    pub records: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// Snapshots that were partial and are whole now.
    pub completed: Vec<String>,
}

/// A store elsewhere.
pub struct Far {
    /// As the operator named it.
    pub name: String,
    /// The connection.
    pub client: Client,
}

/// Fetches the records that these snapshots need and the store lacks, of partial ones only damaged records; and all
/// that the partial snapshots in `incomplete` need to become whole. The records are durable when this returns.
///
/// # Errors
/// If the store can't be read or written. It is no error if a far store is unreachable or lacks something.
pub fn fetch(
    near: &Client,
    far: &[Far],
    hurt: &[Snapshot],
    incomplete: &[Snapshot],
    progress: &Progress,
) -> Result<Fetched> {
    let session = ClientSession::begin_blocking(near, Purpose::Receive, None)?;
    let mut fetching = Fetching {
        near,
        far,
        session: &session,
        progress,
        seen: HashSet::new(),
        nodes: HashMap::new(),
        may_lack: false,
        fetched: Fetched::default(),
    };
    // Partial ones last: a visited node is not visited again, and whole snapshots need all records below it.
    let (partial, whole): (Vec<_>, Vec<_>) = hurt.iter().partition(|snapshot| snapshot.state.partial);
    for snapshot in whole.into_iter().chain(incomplete) {
        fetching.walk(snapshot.entry().root.as_slice())?;
    }
    fetching.may_lack = true;
    for snapshot in partial {
        fetching.walk(snapshot.entry().root.as_slice())?;
    }
    let mut fetched = fetching.fetched;
    near.wait(session.flush())?;
    for snapshot in incomplete {
        let session = ClientSession::begin_blocking(near, Purpose::Receive, None)?;
        match near.wait(session.publish(snapshot.entry_encoding().to_vec(), None)) {
            Ok(_) => fetched.completed.push(snapshot.name().to_string()),
            Err(Error::Damaged { what, detail }) => tracing::info!("{}: {what}: {detail}", snapshot.name()),
            Err(error) => return Err(error),
        }
    }
    Ok(fetched)
}

struct Fetching<'a> {
    near: &'a Client,
    far: &'a [Far],
    session: &'a ClientSession,
    progress: &'a Progress,
    seen: HashSet<RecordId>,
    /// Fetched nodes that were not walked yet: the store can't return them before their pack is sealed.
    nodes: HashMap<RecordId, Node>,
    /// Whether the walked snapshot may lack records that were never fetched.
    may_lack: bool,
    fetched: Fetched,
}

impl Fetching<'_> {
    /// Walks nodes of one height, and all below them.
    fn walk(&mut self, ids: &[NodeId]) -> Result<()> {
        let new: Vec<RecordId> = ids.iter().map(|id| (*id).into()).filter(|id| self.seen.insert(*id)).collect();
        let lacking = self.bring(&new)?;
        let (mut inner, mut chunks) = (Vec::new(), Vec::new());
        for id in new.into_iter().filter(|id| !lacking.contains(id)) {
            let node = match self.nodes.remove(&id) {
                Some(node) => Ok(node),
                None => self.near.node(NodeId::from_bytes(*id.as_bytes())),
            };
            match node {
                Ok(Node::Inner(node)) => inner.push(node),
                Ok(Node::Leaf(leaf)) => chunks.extend(leaf.chunks().map(|(_, id, _)| RecordId::from(id))),
                Err(error @ Error::Damaged { .. }) => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        chunks.retain(|id| self.seen.insert(*id));
        chunks.chunks(BATCH_CHUNKS).try_for_each(|chunks| self.bring(chunks).map(drop))?;
        for node in inner {
            let children: Vec<NodeId> = node.children().iter().map(|child| child.1).collect();
            self.walk(&children)?;
        }
        Ok(())
    }

    /// Fetches those of these records that the store lacks. Returns those that it still lacks.
    fn bring(&mut self, ids: &[RecordId]) -> Result<HashSet<RecordId>> {
        let mut wanted = Vec::new();
        let mut absent = HashSet::new();
        for (id, claim) in ids.iter().zip(Sink::claim(self.session, ids)?) {
            match claim {
                Claim::Present | Claim::Elsewhere => {}
                Claim::Yours if self.may_lack => drop(absent.insert(*id)),
                Claim::Yours | Claim::YoursWhole => wanted.push(*id),
            }
        }
        let far = self.far;
        for far in far {
            wanted = self.bring_from(far, &wanted)?;
        }
        absent.extend(wanted);
        Ok(absent)
    }

    /// Fetches records from one store. Returns those that it could not give.
    fn bring_from(&mut self, far: &Far, wanted: &[RecordId]) -> Result<Vec<RecordId>> {
        let mut left = Vec::new();
        for ids in wanted.chunks(GROUP_RECORDS) {
            self.progress.check()?;
            let mut came = HashMap::new();
            let received = self.near.wait(far.client.records(ids, Fetch::Whole, &mut |arrived| {
                if let Arrived::Wanted(at, record) = arrived {
                    match record.and_then(|record| checked(far.client.codec(), record, ids[at])) {
                        Ok(checked) => drop(came.insert(ids[at], checked)),
                        Err(error) => tracing::info!("{}: {error}", far.name),
                    }
                }
                Ok(())
            }));
            if let Err(error) = received {
                tracing::warn!("{}: {error}", far.name);
            }
            left.extend(ids.iter().filter(|id| !came.contains_key(*id)));
            self.keep(came)?;
        }
        Ok(left)
    }
}

impl Fetching<'_> {
    /// Puts the fetched records.
    fn keep(&mut self, came: HashMap<RecordId, (Record, Option<Node>)>) -> Result<()> {
        let mut records = Vec::with_capacity(came.len());
        for (id, (record, node)) in came {
            self.fetched.bytes += record.bytes() as u64;
            records.push(record);
            self.nodes.extend(node.map(|node| (id, node)));
        }
        self.fetched.records += records.len() as u64;
        self.near.wait(self.session.put_all(&records))
    }
}

/// The requested record, verified and without a base; and the node, if it is one of a manifest.
fn checked(codec: &RecordCodec, record: Record, id: RecordId) -> Result<(Record, Option<Node>)> {
    let header = &record.header;
    if header.id != id || header.base.is_some() {
        return Err(Error::damaged(format!("record {id}"), "the answer has another record"));
    }
    let plain = check_plain(header.kind, id, decode(codec, &record, &Bases::new())?)?;
    let node = match header.kind {
        Kind::Node => Some(Node::verify(NodeId::from_bytes(*id.as_bytes()), &plain)?),
        _ => None,
    };
    Ok((record, node))
}
