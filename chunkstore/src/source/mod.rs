//! Where an ingest reads from: a raw file, a block device, a qcow2 chain, or a stream.
//!
//! The format comes from the caller or the path's suffix, never from content: a guest controls the content, and
//! could write a qcow2 header that names a host's file as its backing file into its own raw disk.

use std::io::Read;
use std::ops::Range;

use crate::error::Result;

/// A disk that can be read at any offset, by several threads at once.
pub trait DiskSource: Send + Sync {
    /// What errors call it: its path.
    fn name(&self) -> &str;

    /// Size of the virtual disk in bytes, fixed when it was opened.
    fn size_bytes(&self) -> u64;

    /// The first range at or after `offset` that may hold data; `None` if only holes follow. Never reaches past
    /// the size; may be as long as the whole disk.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Fills `buf` from `offset`. Holes read as zeros.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Called once when all was read: fails if the source changed its size meanwhile.
    fn finish(&self) -> Result<()>;
}

/// An opened source.
pub enum Source {
    /// Random access: segments are read in parallel.
    Disk(Box<dyn DiskSource>),
    /// Read from start to end by one thread; its size is known at its end.
    Stream {
        /// What errors call it.
        name: String,
        /// The bytes.
        reader: Box<dyn Read + Send>,
    },
}
