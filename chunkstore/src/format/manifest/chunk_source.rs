//! The seam for reading: sources of verified chunks and nodes by id.
//!
//! A store is one, a client of its owner another. Restoring, comparing and reading snapshots do not depend on which.

use crate::error::Result;
use crate::format::chunk::Chunk;
use crate::format::id::{ChunkId, NodeId};
use crate::format::manifest::Node;

/// A source of verified content by id, used by several threads at once.
pub trait ChunkSource: Send + Sync {
    /// Fetches chunks, in the cheapest order, and passes each with its position in `ids` to `each`. An error of one
    /// chunk is passed like a chunk and does not end the batch; an error of `each` does.
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()>;

    /// Fetches one manifest node.
    fn node(&self, id: NodeId) -> Result<Node>;

    /// Fetches manifest nodes as [`ChunkSource::chunks`] does chunks.
    fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        ids.iter().enumerate().try_for_each(|(at, id)| each(at, self.node(*id)))
    }

    /// Announces that these chunks will likely be fetched soon, perhaps one by one, so that a source can locate them
    /// with one request. Only a hint: it never fails.
    fn expect(&self, _ids: &[ChunkId]) {}

    /// As [`ChunkSource::expect`], of nodes.
    fn expect_nodes(&self, _ids: &[NodeId]) {}

    /// Fetches one chunk if no request to another process is needed. For threads that must not block. `None` otherwise,
    /// and on any failure, which [`ChunkSource::chunk`] then reports.
    fn chunk_at_hand(&self, _id: ChunkId) -> Option<Chunk> {
        None
    }

    /// Fetches one chunk.
    fn chunk(&self, id: ChunkId) -> Result<Chunk> {
        let mut fetched = None;
        self.chunks(&[id], &mut |_, chunk| {
            fetched = Some(chunk);
            Ok(())
        })?;
        fetched.expect("a source hands over every position")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::contract::chunk_source;
    use crate::testing::{init, night, noise, open, put};

    #[test]
    fn a_store_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        let store = open(dir.path());
        let first = noise(300_000, 1);
        let mut second = first.clone();
        second[150_000] ^= 1;
        let before = put(&store, night("web01", 1), &first).entry().root.unwrap();
        let root = put(&store, night("web01", 2), &second).entry().root.unwrap();
        let Node::Leaf(leaf) = store.node(root).unwrap() else { panic!("one segment is one leaf") };
        let known: Vec<ChunkId> = leaf.chunks().map(|(_, id, _)| id).collect();
        assert!(known.len() > 10);
        chunk_source(&*store, &known, &[before, root]);
    }
}
