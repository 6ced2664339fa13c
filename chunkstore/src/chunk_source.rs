//! The seam for reading: whatever can give verified chunks and nodes by their names.
//!
//! A local store is one; a remote, and a cache over both, will be others. Whoever restores, compares or shows a
//! snapshot goes through it and cannot tell them apart.

use crate::chunk::Chunk;
use crate::error::Result;
use crate::id::{ChunkId, NodeId};
use crate::manifest::Node;

/// Gives verified content by name. Used by several threads at once.
pub trait ChunkSource: Send + Sync {
    /// Fetches chunks, in whatever order is cheapest, and hands each with its position in `ids` to `each`. An error
    /// of one chunk is handed over in its place and does not end the batch; an error of `each` does.
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()>;

    /// Fetches one manifest node.
    fn node(&self, id: NodeId) -> Result<Node>;

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
