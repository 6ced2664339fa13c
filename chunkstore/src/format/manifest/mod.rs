//! The manifest: a radix tree by segment that lists a snapshot's chunks.
//!
//! A leaf lists one segment; an inner node has 256 slots, by segment number; an all-zero subtree is an empty slot,
//! an all-zero image has no root. The height is the least for the image's size. Nodes are named by their encoding,
//! so nights and VMs share what is equal. Layout: FORMAT.md, "Manifest".

mod build;
pub(crate) mod chunk_source;
mod compare;
mod listed;
mod node;
mod walk;

pub use build::Assembler;
pub use chunk_source::ChunkSource;
pub use compare::{Tree, compare};
pub(crate) use listed::Listed;
pub use node::{Entry, Inner, Leaf, Node};
pub use walk::{LeafReader, Segment, diff, walk};
pub(crate) use walk::{Subtree, diff_entering, read_leaf, wrong_height};

use crate::format::limits::{FANOUT, SEGMENT_BYTES};

/// Height of the manifest of an image: 0 if one leaf is enough.
pub fn height_for(virtual_bytes: u64) -> u8 {
    let segments = virtual_bytes.div_ceil(SEGMENT_BYTES as u64).max(1);
    let mut height = 0;
    let mut covered = 1u64;
    while covered < segments {
        covered = covered.saturating_mul(FANOUT as u64);
        height += 1;
    }
    height
}

/// Segments below one slot of an inner node of this height.
pub fn slot_segments(height: u8) -> u64 {
    (FANOUT as u64).saturating_pow(u32::from(height) - 1)
}

#[cfg(test)]
mod tests;
