//! Reads a far manifest in few round trips: all nodes of a level that are wanted, at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chunkstore::catalog::Entry;
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::{Leaf, Node, height_for, slot_segments};
use chunkstore::format::{NodeId, RecordId};
use chunkstore::{Error, Result};

use super::fetch::{Fetcher, FetcherSource};
use super::{FarSource, Urgency};

/// Nodes that are in memory together.
const BATCH: usize = 512;

/// The leaves of some segments; those of zeros have none.
pub(super) async fn leaves(
    fetcher: &Arc<Fetcher>,
    entry: &Entry,
    segments: &BTreeSet<u64>,
) -> Result<BTreeMap<u64, Leaf>> {
    let mut leaves = BTreeMap::new();
    let mut level: Vec<(u64, NodeId)> = entry.root.map(|root| (0, root)).into_iter().collect();
    for height in (0..=height_for(entry.virtual_bytes)).rev() {
        let mut below = Vec::new();
        for group in level.chunks(BATCH) {
            let ids: Vec<NodeId> = group.iter().map(|(_, id)| *id).collect();
            for ((first, id), node) in group.iter().zip(nodes(fetcher, &ids).await?) {
                match node {
                    Node::Leaf(leaf) if height == 0 => drop(leaves.insert(*first, leaf)),
                    Node::Inner(inner) if inner.height() == height => {
                        let span = slot_segments(height);
                        let child = |(slot, id): &(u8, NodeId)| (first + u64::from(*slot) * span, *id);
                        let wanted = |(first, _): &(u64, NodeId)| segments.range(*first..first + span).next().is_some();
                        below.extend(inner.children().iter().map(child).filter(wanted));
                    }
                    _ => {
                        return Err(Error::damaged(
                            format!("manifest node {id}"),
                            "it has another height than its place",
                        ));
                    }
                }
            }
        }
        level = below;
    }
    Ok(leaves)
}

/// All segments of an image.
pub(super) fn all_segments(entry: &Entry) -> u64 {
    entry.virtual_bytes.div_ceil(SEGMENT_BYTES as u64)
}

/// Nodes in the order of `ids`: from here those that are here.
async fn nodes(fetcher: &Arc<Fetcher>, ids: &[NodeId]) -> Result<Vec<Node>> {
    let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
    let is_here = fetcher.near().client().await?.has(&records).await?;
    let handle = FetcherSource(Arc::clone(fetcher));
    let fetching: Vec<_> = ids
        .iter()
        .zip(&is_here)
        .map(|(id, is_here)| (!is_here).then(|| handle.fetch_node(*id, Urgency::Ahead)))
        .collect();
    let (local, here) = (Arc::clone(fetcher.local()), ids.to_vec());
    let read = tokio::task::spawn_blocking(move || {
        here.iter().zip(&is_here).map(|(id, is_here)| is_here.then(|| local.node(*id))).collect::<Vec<_>>()
    });
    let read = read.await.map_err(|_| Error::Interrupted)?;
    let mut nodes = Vec::with_capacity(ids.len());
    for ((id, read), fetching) in ids.iter().zip(read).zip(fetching) {
        nodes.push(match (read, fetching) {
            (Some(Ok(node)), _) => node,
            (_, Some(fetching)) => fetching.await?,
            // It is damaged here.
            (_, None) => handle.fetch_node(*id, Urgency::Ahead).await?,
        });
    }
    Ok(nodes)
}
