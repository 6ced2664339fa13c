//! Bases for content that moved: a file rewritten elsewhere in the image with few bytes changed.
//!
//! The parent's chunk at the same offset does not help there, and perhaps no chunk of such a file is unchanged. But
//! files begin at multiples of 4 KiB, so most of their aligned blocks are unchanged. A chunk's sketch is the least hash
//! of its aligned blocks (min-wise hashing: Broder, "On the resemblance and containment of documents", 1997); chunks
//! that share most of their blocks most likely share it. It costs a checksum of new chunks, and is only a hint.

use crate::error::Result;
use crate::format::limits::ZERO_BLOCK_BYTES;
use crate::format::{Record, RecordCodec};
use crate::store::{Like, Sink};

/// Bases requested, and so held in memory, at a time.
pub(super) const BASES_MAX: usize = 64;
/// Mixes a block's checksum before the minimum is taken, so that no kind of block always wins.
const MIX: u32 = 0x9e37_79b1;

/// The sketch of a chunk that begins at `offset` of a segment; 0 if it has none.
pub(super) fn sketch(plain: &[u8], offset: usize) -> u32 {
    let first = (offset.next_multiple_of(ZERO_BLOCK_BYTES) - offset).min(plain.len());
    let blocks = plain[first..].chunks_exact(ZERO_BLOCK_BYTES);
    // Zeros are in chunks of all kinds.
    let hashes = blocks.filter(|block| !crate::format::chunker::is_zero(block)).map(crc32c::crc32c);
    hashes.map(|crc| crc.wrapping_mul(MIX)).min().unwrap_or(0)
}

/// A new chunk of the segment that has no base yet.
pub(super) struct Full<'a> {
    /// Its bytes.
    pub(super) plain: &'a [u8],
    /// Its full record, which has a sketch.
    pub(super) record: Record,
}

/// Turns full records into deltas against chunks with the same sketch, where that is clearly smaller.
pub(super) fn rebase(sink: &dyn Sink, codec: &RecordCodec, full: Vec<Full<'_>>) -> Result<Vec<Record>> {
    let mut rebased = Vec::with_capacity(full.len());
    let mut full = full.into_iter().peekable();
    while full.peek().is_some() {
        let group: Vec<Full<'_>> = full.by_ref().take(BASES_MAX).collect();
        let like: Vec<Like> = group.iter().map(|full| Like::Sketch(full.record.header.sketch)).collect();
        for (full, base) in group.into_iter().zip(sink.bases(&like)?) {
            let delta = base.and_then(|base| codec.delta(&full.record, full.plain, (base.id, &base.bytes[..])));
            rebased.push(delta.unwrap_or(full.record));
        }
    }
    Ok(rebased)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn moved_by_whole_blocks_it_stays_the_same() {
        let file = noise(100_000, 1);
        let mut here = vec![0; 8192];
        here.extend_from_slice(&file);
        let there = [noise(40_960, 2), file].concat();
        let of = |segment: &[u8], start: usize| sketch(&segment[start..start + 90_000], start);
        assert_eq!(of(&here, 8192 + 5), of(&there, 40_960 + 5));
        assert_ne!(of(&noise(100_000, 3), 5), of(&there, 40_960 + 5));
        assert_eq!(sketch(&here[..8192], 0), 0, "zeros have none");
        assert_eq!(sketch(&here[8193..12_000], 8193), 0, "no whole block");
    }
}
