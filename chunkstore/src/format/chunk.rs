//! A chunk in memory: bytes that are known to match their id.
//!
//! A [`Chunk`] can only be made by hashing or by verifying, so holding one is the proof. The same rule holds for
//! manifest nodes (`manifest::Node`) and snapshot entries.

use std::mem;

use crate::error::{Error, Result};
use crate::format::buffers;
use crate::format::id::ChunkId;

/// Verified bytes of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    id: ChunkId,
    bytes: Vec<u8>,
}

impl Chunk {
    /// Makes a chunk from new bytes by hashing them.
    pub fn hash(bytes: Vec<u8>) -> Self {
        Self { id: ChunkId::of(&bytes), bytes }
    }

    /// Makes a chunk from bytes that must match `id`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if they are not.
    pub fn verify(id: ChunkId, bytes: Vec<u8>) -> Result<Self> {
        if ChunkId::of(&bytes) == id {
            Ok(Self { id, bytes })
        } else {
            Err(Error::damaged(format!("chunk {id}"), "its bytes do not match its id"))
        }
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The plain bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives the buffer back, for reuse.
    pub fn into_bytes(mut self) -> Vec<u8> {
        mem::take(&mut self.bytes)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        buffers::give(mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_matching_bytes_make_a_chunk() {
        let chunk = Chunk::hash(b"abc".to_vec());
        assert_eq!(Chunk::verify(chunk.id(), b"abc".to_vec()).unwrap(), chunk);
        assert!(matches!(Chunk::verify(chunk.id(), b"abd".to_vec()), Err(Error::Damaged { .. })));
    }
}
