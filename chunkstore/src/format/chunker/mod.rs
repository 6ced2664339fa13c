//! Cutting one segment into zero runs and content-defined chunks.
//!
//! The cuts are a function of the segment's bytes and the store's parameters alone; [`Hint`] only saves work.
//! Chunking is FastCDC, version of 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", IEEE TPDS 31(9)), begun anew at every zero run and every segment.

mod rechunk;

use std::ops::Range;

use fastcdc::v2020::{self, FastCDC, Normalization};

pub(crate) use rechunk::{SegmentBytes, rechunk_ranges};

use crate::format::id::ChunkId;
use crate::format::limits::{SEGMENT_BYTES, ZERO_BLOCK_BYTES};
use crate::format::manifest::{Entry, Leaf};

/// The parameters of chunking; fixed for a store at `init`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkParams {
    /// Least length of a chunk that is cut by content.
    pub min_bytes: u32,
    /// Length around which most chunks lie.
    pub avg_bytes: u32,
    /// Greatest length of a chunk.
    pub max_bytes: u32,
    /// Runs of zero blocks shorter than this stay inside chunks.
    pub zero_run_min_bytes: u32,
}

impl Default for ChunkParams {
    fn default() -> Self {
        Self { min_bytes: 16 << 10, avg_bytes: 64 << 10, max_bytes: 256 << 10, zero_run_min_bytes: 64 << 10 }
    }
}

/// The parent's chunks of this segment. If its chunk at the same offset proves equal by one hash, its end is a cut here
/// too, provided the byte after it allows: FastCDC decides from a chunk's first byte on.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hint<'a> {
    parent: Option<&'a Leaf>,
}

impl<'a> Hint<'a> {
    /// The parent's leaf of the same segment, if it has one.
    pub(crate) fn new(parent: Option<&'a Leaf>) -> Self {
        Self { parent }
    }

    /// The parent's chunk at `offset`, and whether its end was decided by content rather than by the data's end.
    fn chunk_at(self, offset: usize) -> Option<(ChunkId, usize, bool)> {
        let (index, entry) = self.parent?.entry_at(offset)?;
        let Entry::Chunk { id, bytes } = *entry else { return None };
        let cut_by_content = matches!(self.parent?.entries().get(index + 1), Some(Entry::Chunk { .. }));
        Some((id, bytes as usize, cut_by_content))
    }
}

/// A chunk found in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Where it lies in the segment.
    pub range: Range<usize>,
    /// Its name.
    pub id: ChunkId,
    /// Whether the parent has this very chunk at this offset.
    pub reused: bool,
}

/// Cuts a segment of at most 4 MiB. The gaps between the cuts are zero runs.
pub(crate) fn cut(segment: &[u8], params: &ChunkParams, hint: Hint<'_>) -> Vec<Cut> {
    assert!(segment.len() <= SEGMENT_BYTES, "a segment is at most 4 MiB");
    let cdc = params.fast_cdc(segment);
    let mut cuts = Vec::with_capacity(segment.len() / params.avg_bytes as usize + 1);
    for extent in data_extents(segment, params.zero_run_min_bytes as usize) {
        let mut at = extent.start;
        while at < extent.end {
            let cut = reuse(segment, at, extent.end, params, hint).unwrap_or_else(|| {
                let end = cdc.cut(at, extent.end - at).1;
                Cut { range: at..end, id: ChunkId::of(&segment[at..end]), reused: false }
            });
            at = cut.range.end;
            cuts.push(cut);
        }
    }
    cuts
}

/// Takes the parent's cut where it provably is the one FastCDC would make.
fn reuse(segment: &[u8], at: usize, end: usize, params: &ChunkParams, hint: Hint<'_>) -> Option<Cut> {
    let (id, bytes, cut_by_content) = hint.chunk_at(at)?;
    let range = at..at.checked_add(bytes)?;
    let ends_here = range.end == end
        || (range.end < end && cut_by_content && params.may_end(&range, end) && params.ends(segment, &range));
    (ends_here && ChunkId::of(&segment[range.clone()]) == id).then_some(Cut { range, id, reused: true })
}

impl ChunkParams {
    fn fast_cdc<'a>(&self, bytes: &'a [u8]) -> FastCDC<'a> {
        FastCDC::new(bytes, self.min_bytes as usize, self.avg_bytes as usize, self.max_bytes as usize)
    }

    /// Whether FastCDC looks for a cut at a chunk's end, where its data goes on to `end`: it looks at pairs of bytes,
    /// and not at an odd last one.
    fn may_end(&self, chunk: &Range<usize>, end: usize) -> bool {
        let seen = (end - chunk.start).min(self.max_bytes as usize);
        chunk.len() == seen || chunk.len() / 2 < seen / 2
    }

    /// Whether FastCDC, if it found no cut before, ends a chunk here. It decides by the last 64 bytes that it saw, and
    /// that is the byte after the chunk, too; it sees none before the least length.
    fn ends(&self, segment: &[u8], chunk: &Range<usize>) -> bool {
        const WINDOW_BYTES: usize = u64::BITS as usize;
        let bytes = chunk.len();
        if bytes < self.min_bytes as usize || bytes >= self.max_bytes as usize {
            return bytes == self.max_bytes as usize;
        }
        let from = chunk.start + (self.min_bytes as usize).max((bytes + 1).saturating_sub(WINDOW_BYTES));
        let (gear, _) = v2020::get_gear_with_seed(0);
        let roll = |hash: u64, byte: &u8| (hash << 1).wrapping_add(gear[usize::from(*byte)]);
        let hash = segment[from..=chunk.end].iter().fold(0, roll);
        let (strict, loose) = v2020::select_masks(self.avg_bytes as usize, Normalization::Level1);
        hash & if bytes < self.avg_bytes as usize { strict } else { loose } == 0
    }
}

/// The ranges between zero runs of at least `zero_run_min_bytes`. A zero run is a maximal run of aligned zero
/// blocks, a short last block included.
pub(crate) fn data_extents(segment: &[u8], zero_run_min_bytes: usize) -> Vec<Range<usize>> {
    extents_of(segment.chunks(ZERO_BLOCK_BYTES).map(is_zero), segment.len(), zero_run_min_bytes)
}

/// As [`data_extents`], of a segment of this length whose blocks are zero or not.
fn extents_of(are_zero: impl Iterator<Item = bool>, len: usize, zero_run_min_bytes: usize) -> Vec<Range<usize>> {
    let mut extents = Vec::new();
    let mut data_start = 0;
    let mut zeros_start = None;
    let mut end_of_zeros = |from: Option<usize>, to: usize, data_start: &mut usize| {
        let Some(from) = from else { return };
        if to - from >= zero_run_min_bytes.min(len) {
            if from > *data_start {
                extents.push(*data_start..from);
            }
            *data_start = to;
        }
    };
    for (number, is_zero) in are_zero.enumerate() {
        let at = number * ZERO_BLOCK_BYTES;
        if is_zero {
            zeros_start.get_or_insert(at);
        } else {
            end_of_zeros(zeros_start.take(), at, &mut data_start);
        }
    }
    end_of_zeros(zeros_start, len, &mut data_start);
    if data_start < len {
        extents.push(data_start..len);
    }
    extents
}

/// Whether all bytes are zero, by comparing with zeros at the speed of memory.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    static ZEROS: [u8; ZERO_BLOCK_BYTES] = [0; ZERO_BLOCK_BYTES];
    block.chunks(ZERO_BLOCK_BYTES).all(|part| *part == ZEROS[..part.len()])
}

#[cfg(test)]
mod tests;
