//! How much of a disk is not holes.
//!
//! Inner nodes do not say, so all leaves must be read: once for each subtree, past the cache, in the background. Nights
//! share most subtrees, so the next night's sum costs little.

use std::pin::Pin;

use chunkstore::format::id::NodeId;
use chunkstore::format::limits::FANOUT;
use chunkstore::format::manifest::{Leaf, Node};
use chunkstore::{Error, Result};

use super::tree::wrong_height;
use crate::chunk_cache::{Patience, Pool};

/// Sums the chunks below a node of this height.
pub(super) fn below<'a>(
    pool: &'a Pool,
    id: NodeId,
    height: u8,
    patience: &'a mut Patience,
) -> Pin<Box<dyn Future<Output = Result<u64>> + Send + 'a>> {
    Box::pin(async move {
        if let Some(known) = pool.known_data_bytes(id) {
            return Ok(known);
        }
        let nodes = pool.nodes_aside(&[id], patience).await?;
        let sum = match &nodes[..] {
            [Node::Leaf(leaf)] if height == 0 => leaf_bytes(leaf),
            [Node::Inner(inner)] if inner.height() == height => {
                let children: Vec<NodeId> = inner.children().iter().map(|(_, child)| *child).collect();
                if height == 1 {
                    leaves(pool, &children, patience).await?
                } else {
                    inner_nodes(pool, children, height - 1, patience).await?
                }
            }
            found => return Err(wrong_height(id, found.first(), height)),
        };
        pool.keep_data_bytes(id, sum);
        Ok(sum)
    })
}

async fn inner_nodes(pool: &Pool, ids: Vec<NodeId>, height: u8, patience: &mut Patience) -> Result<u64> {
    let mut sum = 0;
    for id in ids {
        sum += below(pool, id, height, patience).await?;
    }
    Ok(sum)
}

async fn leaves(pool: &Pool, ids: &[NodeId], patience: &mut Patience) -> Result<u64> {
    debug_assert!(ids.len() <= FANOUT);
    let nodes = pool.nodes_aside(ids, patience).await?;
    let sizes = nodes.iter().zip(ids).map(|(node, id)| match node {
        Node::Leaf(leaf) => Ok(leaf_bytes(leaf)),
        Node::Inner(_) => Err(wrong_height(*id, Some(node), 0)),
    });
    sizes.sum::<Result<u64, Error>>()
}

fn leaf_bytes(leaf: &Leaf) -> u64 {
    leaf.chunks().map(|(_, _, bytes)| u64::from(bytes)).sum()
}
