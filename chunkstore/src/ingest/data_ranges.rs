//! Where a disk has data, and which of its bytes a segment covers.

use std::ops::Range;

use crate::error::Result;
use crate::format::limits::SEGMENT_BYTES;
use crate::source::DiskSource;

/// The bytes of a segment in the image.
pub(super) fn bytes_of(disk: &dyn DiskSource, segment: u64) -> Range<u64> {
    let start = segment * SEGMENT_BYTES as u64;
    start..disk.size_bytes().min(start + SEGMENT_BYTES as u64)
}

/// Where a disk has data, asked for at ascending offsets.
#[derive(Default)]
pub(super) struct DataRanges {
    /// The range found last; from the offset of that search to its start is a hole.
    found: Option<Range<u64>>,
}

impl DataRanges {
    /// The first range of data that ends after `offset`.
    pub(super) fn from(&mut self, disk: &dyn DiskSource, offset: u64) -> Result<Option<Range<u64>>> {
        if self.found.as_ref().is_none_or(|found| found.end <= offset) {
            self.found = if offset < disk.size_bytes() { disk.next_data(offset)? } else { None };
        }
        Ok(self.found.clone())
    }

    /// The data within a range, in order.
    pub(super) fn within(&mut self, disk: &dyn DiskSource, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut data = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some(found) = self.from(disk, at)?.filter(|found| found.start < range.end) else { break };
            let part = found.start.max(at)..found.end.min(range.end);
            at = part.end;
            data.push(part);
        }
        Ok(data)
    }
}
