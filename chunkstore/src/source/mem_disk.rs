//! A disk in memory, for tests.

use std::ops::Range;

use super::DiskSource;
use crate::error::Result;

/// A disk in memory that can report its holes.
pub struct MemDisk {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Whether blocks of zeros are reported as holes.
    pub tells_holes: bool,
}

impl MemDisk {
    /// One without holes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, tells_holes: false }
    }
}

impl DiskSource for MemDisk {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let len = self.size_bytes();
        if !self.tells_holes {
            return Ok((offset < len).then_some(offset..len));
        }
        let is_data = |at: u64| {
            let block = at / 4096 * 4096;
            self.bytes[block as usize..(block + 4096).min(len) as usize].iter().any(|byte| *byte != 0)
        };
        let mut start = offset;
        while start < len && !is_data(start) {
            start = (start / 4096 + 1) * 4096;
        }
        let mut end = start;
        while end < len && is_data(end) {
            end = (end / 4096 + 1) * 4096;
        }
        Ok((start < len).then_some(start..end.min(len)))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.bytes[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
