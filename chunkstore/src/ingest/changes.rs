//! Ingest of a disk that is known to differ from a snapshot in some ranges only: an overlay over it.
//!
//! Segments outside of the ranges are not read, nor their leaves; within a segment little more than the ranges is read.
//! The root is the same as of a full ingest. A disk of another size than its parent's differs at the end, too.

use std::ops::Range;

use super::data_ranges::{DataRanges, bytes_of};
use crate::error::{Error, Result};
use crate::format::chunker::SegmentBytes;
use crate::format::limits::{SEGMENT_BYTES, ZERO_BLOCK_BYTES};
use crate::source::{ChangedRanges, DiskSource};

/// How segments changed.
pub(super) enum Changed {
    /// They are holes now.
    ToZeros,
    /// The one segment is to be read wholly; these ranges of the disk are data in it.
    Whole(Vec<Range<u64>>),
    /// The one segment changed within these ranges of it.
    Ranges(Vec<Range<usize>>),
}

/// The position of the search for changes.
pub(super) struct ChangeCursor<'a> {
    disk: &'a dyn DiskSource,
    changed: &'a dyn ChangedRanges,
    /// The range that was found last.
    found: Option<Range<u64>>,
    /// The range that differs because the sizes do.
    resized: Range<u64>,
    parent_segments: u64,
    data: DataRanges,
    order: u64,
    next_segment: u64,
}

impl<'a> ChangeCursor<'a> {
    pub(super) fn new(disk: &'a dyn DiskSource, changed: &'a dyn ChangedRanges, parent_bytes: u64) -> Self {
        let size_bytes = disk.size_bytes();
        // The segment in which one of them ends is cut anew: a chunk that ended with the data may not end there now.
        let common = size_bytes.min(parent_bytes) / SEGMENT_BYTES as u64 * SEGMENT_BYTES as u64;
        let resized = if size_bytes == parent_bytes { size_bytes } else { common }..size_bytes;
        let parent_segments = parent_bytes.div_ceil(SEGMENT_BYTES as u64);
        let data = DataRanges::default();
        Self { disk, changed, found: None, resized, parent_segments, data, order: 0, next_segment: 0 }
    }

    /// Takes the next changed segments. Returns their order, their numbers, and the kind of the change.
    pub(super) fn take(&mut self) -> Result<Option<(u64, Range<u64>, Changed)>> {
        let taken = match self.next(self.next_segment * SEGMENT_BYTES as u64)? {
            Some(first) => Some(self.take_from(&first)?),
            None => self.take_cut_off(),
        };
        let Some((segments, changed)) = taken else { return Ok(None) };
        self.next_segment = segments.end;
        self.order += 1;
        Ok(Some((self.order - 1, segments, changed)))
    }

    /// Takes the segment in which a change begins, or all segments that the change makes holes.
    fn take_from(&mut self, first: &Range<u64>) -> Result<(Range<u64>, Changed)> {
        let segment = first.start / SEGMENT_BYTES as u64;
        let own = bytes_of(self.disk, segment);
        let one = segment..segment + 1;
        if first.start == own.start && first.end >= own.end {
            let zeros = segment..self.hole_end(first)? / SEGMENT_BYTES as u64;
            if !zeros.is_empty() {
                return Ok((zeros, Changed::ToZeros));
            }
        } else if own.end - own.start == SEGMENT_BYTES as u64 {
            return Ok((one, Changed::Ranges(self.ranges_in(&own)?)));
        }
        Ok((one, Changed::Whole(self.data.within(self.disk, own)?)))
    }

    /// Where a hole that begins with `range` ends, or the range does; at the disk's end with its last segment.
    fn hole_end(&mut self, range: &Range<u64>) -> Result<u64> {
        let data = self.data.from(self.disk, range.start)?.map_or(u64::MAX, |data| data.start);
        let whole = self.disk.size_bytes().next_multiple_of(SEGMENT_BYTES as u64);
        let range_end = if range.end >= self.disk.size_bytes() { whole } else { range.end };
        Ok(data.min(range_end))
    }

    fn ranges_in(&mut self, own: &Range<u64>) -> Result<Vec<Range<usize>>> {
        let mut ranges = Vec::new();
        let mut at = own.start;
        while let Some(range) = self.next(at)?.filter(|range| range.start < own.end) {
            at = range.end.min(own.end);
            ranges.push((range.start - own.start) as usize..(at - own.start) as usize);
        }
        Ok(ranges)
    }

    /// The parent's segments after the end of a disk that shrank.
    fn take_cut_off(&mut self) -> Option<(Range<u64>, Changed)> {
        let segments =
            self.disk.size_bytes().div_ceil(SEGMENT_BYTES as u64).max(self.next_segment)..self.parent_segments;
        (!segments.is_empty()).then_some((segments, Changed::ToZeros))
    }

    /// The next range at or after `offset` that differs.
    fn next(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        if self.found.as_ref().is_none_or(|found| found.end <= offset) && offset < self.resized.start {
            self.found = self.changed.next_changed(offset)?;
            if self.found.as_ref().is_some_and(|found| found.is_empty() || found.end <= offset) {
                return Err(Error::invalid(format!("what changed of {} is not told in order", self.disk.name())));
            }
        }
        let found = self.found.as_ref().map(|found| found.start.max(offset)..found.end.min(self.resized.start));
        let resized = self.resized.start.max(offset)..self.resized.end;
        Ok([found, Some(resized)].into_iter().flatten().find(|range| !range.is_empty()))
    }
}

/// A segment that is read on demand.
pub(super) struct PartlyRead<'a> {
    disk: &'a dyn DiskSource,
    start: u64,
    bytes: &'a mut [u8],
    has_block: Vec<bool>,
}

impl<'a> PartlyRead<'a> {
    /// A segment, to be read into `buffer`.
    pub(super) fn new(disk: &'a dyn DiskSource, segment: u64, buffer: &'a mut Vec<u8>) -> Self {
        buffer.resize(SEGMENT_BYTES, 0);
        let has_block = vec![false; SEGMENT_BYTES / ZERO_BLOCK_BYTES];
        Self { disk, start: segment * SEGMENT_BYTES as u64, bytes: buffer, has_block }
    }
}

impl SegmentBytes for PartlyRead<'_> {
    fn read(&mut self, range: Range<usize>) -> Result<&[u8]> {
        let end = range.end.div_ceil(ZERO_BLOCK_BYTES);
        let mut block = range.start / ZERO_BLOCK_BYTES;
        while block < end {
            let lacking = self.has_block[block..end].iter().take_while(|has| !**has).count();
            if lacking > 0 {
                let bytes = block * ZERO_BLOCK_BYTES..(block + lacking) * ZERO_BLOCK_BYTES;
                self.disk.read_exact_at(&mut self.bytes[bytes.clone()], self.start + bytes.start as u64)?;
                self.has_block[block..block + lacking].fill(true);
            }
            block += lacking.max(1);
        }
        Ok(self.bytes)
    }
}
