//! What tests of several parts share.

use std::ops::Range;

use chunkstore::Result;
use chunkstore::source::DiskSource;

/// An image in memory.
pub(crate) struct MemDisk(pub(crate) Vec<u8>);

impl DiskSource for MemDisk {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size_bytes()).then_some(offset..self.size_bytes()))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
