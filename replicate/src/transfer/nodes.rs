//! Manifest nodes on both sides of a transfer: the near store is read first, because it needs no link.

use chunkstore::format::manifest::Node;
use chunkstore::format::{Codec, NodeId, Record, RecordCodec, RecordId};
use chunkstore::{Error, Result};

use super::Direction;
use crate::rpc::client::{Arrived, Bases, Client, broken, decode};
use crate::rpc::wire::Fetch;

/// The sources of nodes.
#[derive(Clone)]
pub(super) struct Nodes {
    pub(super) source: Client,
    pub(super) near: Client,
    /// The store with the parent's nodes: the near one, except in a dry run of a pull.
    pub(super) of_parent: Client,
    pub(super) direction: Direction,
}

/// A node of the snapshot that is sent.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) node: Node,
    /// As it will be put.
    pub(super) record: Option<Record>,
}

impl Nodes {
    /// Nodes of the parent.
    pub(super) async fn known(&self, ids: &[NodeId]) -> Result<Vec<Node>> {
        let found = fetch(&self.of_parent, ids).await?;
        found.into_iter().map(|found| Ok(found?.node)).collect()
    }

    /// Nodes of the snapshot that is sent.
    pub(super) async fn travelling(&self, ids: &[NodeId]) -> Result<Vec<Found>> {
        if self.direction == Direction::Push {
            return fetch(&self.near, ids).await?.into_iter().collect();
        }
        // The receiver may have a node from another image.
        let here = fetch(&self.near, ids).await?;
        let lacking: Vec<NodeId> = ids.iter().zip(&here).filter(|(_, node)| node.is_err()).map(|(id, _)| *id).collect();
        let mut travelled = self.travelled(&lacking).await?.into_iter();
        let nodes = here.into_iter().map(|here| match here {
            Ok(found) => Ok(Found { record: None, ..found }),
            Err(_) => travelled.next().expect("one came for each that was lacking"),
        });
        nodes.collect()
    }

    /// Nodes from the other side, as stored there; if the base is missing, requested again as full records.
    async fn travelled(&self, ids: &[NodeId]) -> Result<Vec<Result<Found>>> {
        let mut records = stored(&self.source, ids, Fetch::Stored).await?;
        let needs = |record: &Result<Record>| record.as_ref().ok().and_then(|record| record.header.base);
        let bases: Vec<NodeId> =
            records.iter().filter_map(needs).map(|id| NodeId::from_bytes(*id.as_bytes())).collect();
        let mut plain = Bases::new();
        for base in fetch(&self.of_parent, &bases).await?.into_iter().flatten() {
            let encoding = base.node.encode();
            plain.insert(NodeId::of(&encoding).into(), encoding);
        }
        let unusable = |record: &Result<Record>| needs(record).is_some_and(|base| !plain.contains_key(&base));
        let again: Vec<usize> = (0..ids.len()).filter(|at| unusable(&records[*at])).collect();
        let whole: Vec<NodeId> = again.iter().map(|at| ids[*at]).collect();
        for (at, record) in again.into_iter().zip(stored(&self.source, &whole, Fetch::Whole).await?) {
            records[at] = record;
        }
        let found = records.into_iter().zip(ids).map(|(record, id)| found(self.source.codec(), record?, *id, &plain));
        Ok(found.collect())
    }
}

fn found(codec: &RecordCodec, record: Record, id: NodeId, bases: &Bases) -> Result<Found> {
    let node = Node::verify(id, &decode(codec, &record, bases)?)?;
    Ok(Found { node, record: Some(record) })
}

/// Records in the order of `ids`.
async fn stored(client: &Client, ids: &[NodeId], fetch: Fetch) -> Result<Vec<Result<Record>>> {
    let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
    let mut found: Vec<Option<Result<Record>>> = ids.iter().map(|_| None).collect();
    if !ids.is_empty() {
        client
            .records(&records, fetch, &mut |arrived| {
                if let Arrived::Wanted(at, record) = arrived {
                    found[at] = Some(record);
                }
                Ok(())
            })
            .await?;
    }
    Ok(found
        .into_iter()
        .map(|record| record.unwrap_or_else(|| Err(broken("a node is missing from an answer"))))
        .collect())
}

/// Nodes of one store, with their records.
async fn fetch(client: &Client, ids: &[NodeId]) -> Result<Vec<Result<Found>>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
    let mut nodes: Vec<Option<Result<Found>>> = ids.iter().map(|_| None).collect();
    let mut bases = Bases::new();
    client
        .records(&records, Fetch::WithBases, &mut |arrived| {
            match arrived {
                Arrived::Base(record) if record.header.codec != Codec::Delta => {
                    let plain = decode(client.codec(), &record, &Bases::new())?;
                    bases.insert(record.header.id, plain);
                }
                Arrived::Base(_) => return Err(broken("a base is a delta")),
                Arrived::Wanted(at, record) => {
                    nodes[at] = Some(record.and_then(|record| found(client.codec(), record, ids[at], &bases)));
                }
            }
            Ok(())
        })
        .await?;
    let missing = |id: &NodeId| Error::damaged(format!("manifest node {id}"), "it is missing from the answer");
    Ok(nodes.into_iter().zip(ids).map(|(node, id)| node.unwrap_or_else(|| Err(missing(id)))).collect())
}
