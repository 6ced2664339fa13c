//! Writing a snapshot out: to a file, a block device or a stream; sparse, in parallel, every byte verified.

use std::io::Write;
use std::path::Path;

use crate::catalog::Entry;
use crate::chunk_source::ChunkSource;
use crate::error::Result;
use crate::progress::Progress;

/// How to restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// Replace a file that exists, or write to a block device.
    pub force: bool,
    /// Threads that decode and verify.
    pub threads: usize,
}

/// What was restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct RestoreReport {
    /// Size of the image.
    pub virtual_bytes: u64,
    /// Bytes written that are not zero runs.
    pub data_bytes: u64,
    /// Wall time.
    pub elapsed_s: f64,
}

/// Restores to a regular file or a block device. When it returns, the bytes are on disk.
pub fn restore(
    source: &dyn ChunkSource,
    entry: &Entry,
    dest: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport> {
    let _ = (source, entry, dest, options, progress);
    todo!()
}

/// Restores to a stream, zeros included.
pub fn restore_to_stream(
    source: &dyn ChunkSource,
    entry: &Entry,
    out: &mut (dyn Write + Send),
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport> {
    let _ = (source, entry, out, options, progress);
    todo!()
}
