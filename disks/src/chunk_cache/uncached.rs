//! Reads that bypass the cache: all leaves of a snapshot, to count its bytes.

use std::sync::Arc;

use chunkstore::format::NodeId;
use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::{Error, Result};
use tokio::sync::SemaphorePermit;

use super::{ChunkCache, Retry, failure};
use crate::upstream::Urgency;

impl ChunkCache {
    /// Waits until no other task counts.
    pub(crate) async fn turn_to_count(&self) -> SemaphorePermit<'_> {
        self.counting.acquire().await.expect("it is never closed")
    }

    /// The bytes of all chunks below a node, if they were counted.
    pub(crate) fn known_data_bytes(&self, id: NodeId) -> Option<u64> {
        self.data_bytes.get(&id)
    }

    /// Remembers the bytes of all chunks below a node.
    pub(crate) fn keep_data_bytes(&self, id: NodeId, bytes: u64) {
        self.data_bytes.insert(id, bytes);
    }

    /// Reads nodes without caching them.
    pub(crate) async fn nodes_uncached(&self, ids: &[NodeId], retry: &mut Retry) -> Result<Vec<Node>> {
        let read = loop {
            let (source, ids) = (Arc::clone(&self.source), ids.to_vec());
            let reading = self.runtime.spawn_blocking(move || read_all(&*source, &ids));
            match reading.await.unwrap_or(Err(Error::Interrupted)) {
                Err(error) if failure::is_transient(&error) && retry.pause().await => {}
                read => break read?,
            }
        };
        let mut nodes = Vec::with_capacity(ids.len());
        for (id, node) in ids.iter().zip(read) {
            nodes.push(match (node, &self.options.far) {
                (Err(Error::Damaged { .. }), Some(far)) => far.fetch_node(*id, Urgency::Later).await?,
                (node, _) => node?,
            });
        }
        Ok(nodes)
    }
}

/// Reads nodes together, each with its own result.
fn read_all(source: &dyn ChunkSource, ids: &[NodeId]) -> Result<Vec<Result<Node>>> {
    let mut nodes: Vec<Result<Node>> = ids.iter().map(|_| Err(Error::Interrupted)).collect();
    source.nodes(ids, &mut |at, node| {
        nodes[at] = node;
        Ok(())
    })?;
    Ok(nodes)
}
