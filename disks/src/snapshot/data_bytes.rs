//! How much of a disk is not holes.
//!
//! Inner nodes do not say, so all leaves must be read: once for each subtree, past the cache, in the background. Nights
//! share most subtrees, so the next night's sum costs little.

use std::pin::Pin;

use chunkstore::format::NodeId;
use chunkstore::format::limits::FANOUT;
use chunkstore::format::manifest::{Leaf, Node};
use chunkstore::{Error, Result};

use super::manifest_tree::wrong_height;
use crate::chunk_cache::{ChunkCache, Retry};

/// Sums the chunks below a node of this height.
pub(super) fn below<'a>(
    cache: &'a ChunkCache,
    id: NodeId,
    height: u8,
    retry: &'a mut Retry,
) -> Pin<Box<dyn Future<Output = Result<u64>> + Send + 'a>> {
    Box::pin(async move {
        if let Some(known) = cache.known_data_bytes(id) {
            return Ok(known);
        }
        let nodes = cache.nodes_uncached(&[id], retry).await?;
        let sum = match &nodes[..] {
            [Node::Leaf(leaf)] if height == 0 => leaf_bytes(leaf),
            [Node::Inner(inner)] if inner.height() == height => {
                let children: Vec<NodeId> = inner.children().iter().map(|(_, child)| *child).collect();
                if height == 1 {
                    leaves(cache, &children, retry).await?
                } else {
                    inner_nodes(cache, children, height - 1, retry).await?
                }
            }
            found => return Err(wrong_height(id, found.first(), height)),
        };
        cache.keep_data_bytes(id, sum);
        Ok(sum)
    })
}

async fn inner_nodes(cache: &ChunkCache, ids: Vec<NodeId>, height: u8, retry: &mut Retry) -> Result<u64> {
    let mut sum = 0;
    for id in ids {
        sum += below(cache, id, height, retry).await?;
    }
    Ok(sum)
}

async fn leaves(cache: &ChunkCache, ids: &[NodeId], retry: &mut Retry) -> Result<u64> {
    debug_assert!(ids.len() <= FANOUT);
    let nodes = cache.nodes_uncached(ids, retry).await?;
    let sizes = nodes.iter().zip(ids).map(|(node, id)| match node {
        Node::Leaf(leaf) => Ok(leaf_bytes(leaf)),
        Node::Inner(_) => Err(wrong_height(*id, Some(node), 0)),
    });
    sizes.sum::<Result<u64, Error>>()
}

fn leaf_bytes(leaf: &Leaf) -> u64 {
    leaf.chunks().map(|(_, _, bytes)| u64::from(bytes)).sum()
}
