//! Cutting a segment that differs from the parent's in known ranges only: what is unchanged is not read.
//!
//! The cuts are those of [`cut`](super::cut). A chunk of the parent is one here if FastCDC begins at it and nothing
//! that it looks at changed. A zero run changes only where it touches a changed block: an unchanged run of zeros
//! between unchanged data is in the parent's leaf if it is long enough, and stays inside chunks if not.

use std::ops::Range;

use super::{ChunkParams, Cut, Hint, extents_of, is_zero};
use crate::error::Result;
use crate::format::id::ChunkId;
use crate::format::limits::{SEGMENT_BYTES, ZERO_BLOCK_BYTES};
use crate::format::manifest::Leaf;

/// Blocks of a segment.
const BLOCKS: usize = SEGMENT_BYTES / ZERO_BLOCK_BYTES;

/// A whole segment of 4 MiB, read on demand.
pub(crate) trait SegmentBytes {
    /// The segment, of which at least this range has been read.
    ///
    /// # Errors
    /// If it can't be read.
    fn read(&mut self, range: Range<usize>) -> Result<&[u8]>;
}

/// Cuts a segment that differs from the parent's within `changed` only: ranges in order, none empty. Without a leaf the
/// parent's is all zeros. Read are the changed blocks, the chunks that are cut anew, and zeros next to new ones.
///
/// # Errors
/// If the segment can't be read.
pub(crate) fn rechunk_ranges(
    bytes: &mut dyn SegmentBytes,
    params: &ChunkParams,
    parent: Option<&Leaf>,
    changed: &[Range<usize>],
) -> Result<Vec<Cut>> {
    let mut rechunk_ranges = Recut { bytes, params, parent, changed };
    let mut cuts = Vec::new();
    for extent in rechunk_ranges.extents()? {
        let mut at = extent.start;
        while at < extent.end {
            let cut = match rechunk_ranges.unchanged(at, extent.end) {
                Some(cut) => cut,
                None => rechunk_ranges.cut(at, extent.end)?,
            };
            at = cut.range.end;
            cuts.push(cut);
        }
    }
    Ok(cuts)
}

struct Recut<'a> {
    bytes: &'a mut dyn SegmentBytes,
    params: &'a ChunkParams,
    parent: Option<&'a Leaf>,
    changed: &'a [Range<usize>],
}

/// The state of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Zero,
    /// Not zero, or in a run of zeros too short to be one.
    Data,
    /// In a chunk of the parent, and not read.
    Unchanged,
}

impl Recut<'_> {
    /// The ranges between zero runs.
    fn extents(&mut self) -> Result<Vec<Range<usize>>> {
        let mut blocks = self.parent_blocks();
        for range in self.changed {
            let range = range.start / ZERO_BLOCK_BYTES..range.end.div_ceil(ZERO_BLOCK_BYTES);
            self.bytes.read(range.start * ZERO_BLOCK_BYTES..range.end * ZERO_BLOCK_BYTES)?;
            for block in range {
                blocks[block] = self.look_at(block)?;
            }
        }
        for range in self.changed {
            for block in range.start / ZERO_BLOCK_BYTES..range.end.div_ceil(ZERO_BLOCK_BYTES) {
                if blocks[block] == Block::Zero {
                    self.join(&mut blocks, (0..block).rev())?;
                    self.join(&mut blocks, block + 1..BLOCKS)?;
                }
            }
        }
        let are_zero = blocks.into_iter().map(|block| block == Block::Zero);
        Ok(extents_of(are_zero, SEGMENT_BYTES, self.params.zero_run_min_bytes as usize))
    }

    fn parent_blocks(&self) -> Vec<Block> {
        let mut blocks = vec![Block::Zero; BLOCKS];
        for (at, _, bytes) in self.parent.into_iter().flat_map(Leaf::chunks) {
            let end = (at + bytes as usize).div_ceil(ZERO_BLOCK_BYTES);
            blocks[at / ZERO_BLOCK_BYTES..end].fill(Block::Unchanged);
        }
        blocks
    }

    /// Looks for zeros that lie inside the parent's chunks next to new ones.
    fn join(&mut self, blocks: &mut [Block], neighbours: impl Iterator<Item = usize>) -> Result<()> {
        for block in neighbours {
            if blocks[block] != Block::Unchanged {
                break;
            }
            blocks[block] = self.look_at(block)?;
        }
        Ok(())
    }

    fn look_at(&mut self, block: usize) -> Result<Block> {
        let range = block * ZERO_BLOCK_BYTES..(block + 1) * ZERO_BLOCK_BYTES;
        let bytes = self.bytes.read(range.clone())?;
        Ok(if is_zero(&bytes[range]) { Block::Zero } else { Block::Data })
    }

    /// The parent's chunk at `at`, if it is one here: nothing changed up to the byte after it.
    fn unchanged(&self, at: usize, end: usize) -> Option<Cut> {
        let (id, bytes, cut_by_content) = Hint::new(self.parent).chunk_at(at)?;
        let range = at..at + bytes;
        let ends_here = range.end == end || (range.end < end && cut_by_content && self.params.may_end(&range, end));
        let same = ends_here && !self.is_changed(&(at..end.min(range.end + 1)));
        same.then_some(Cut { range, id, reused: true })
    }

    fn is_changed(&self, range: &Range<usize>) -> bool {
        let first = self.changed.partition_point(|changed| changed.end <= range.start);
        self.changed.get(first).is_some_and(|changed| changed.start < range.end)
    }

    /// Cuts a chunk, reading little more than the parent's chunk here, because most likely it ends there again.
    fn cut(&mut self, at: usize, end: usize) -> Result<Cut> {
        let limit = end.min(at + self.params.max_bytes as usize);
        let likely_end = self.parent_end(at).unwrap_or(at + self.params.avg_bytes as usize);
        let mut seen = limit.min(likely_end + ZERO_BLOCK_BYTES);
        loop {
            let bytes = self.bytes.read(at..seen)?;
            let cut_end = self.params.fast_cdc(bytes).cut(at, seen - at).1;
            // Otherwise it may only be the end of the bytes read so far.
            if cut_end < seen || seen == limit {
                let range = at..cut_end;
                let id = ChunkId::of(&bytes[range.clone()]);
                let reused = Hint::new(self.parent).chunk_at(at).is_some_and(|(parent, ..)| parent == id);
                return Ok(Cut { range, id, reused });
            }
            seen = limit.min(at + 2 * (seen - at));
        }
    }

    /// The end of the parent's chunk that covers `at`.
    fn parent_end(&self, at: usize) -> Option<usize> {
        let chunks = self.parent?.chunks().map(|(start, _, bytes)| start..start + bytes as usize);
        chunks.into_iter().find(|chunk| chunk.contains(&at)).map(|chunk| chunk.end)
    }
}
