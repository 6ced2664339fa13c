//! Writing a segment's chunks to an open file or device: with direct I/O where that is faster.
//!
//! A restored image is not read at once, so to copy it into the page cache costs a copy, pages that others had there,
//! and a wait at the end until all is on disk. Direct writes were twice as fast as buffered ones with a sync, at half
//! the processor time. They need whole blocks and are slow for small ones: then, or where the file system has none,
//! a segment is written through the page cache. A segment is written in one way only, so no page is shared.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use super::segment::{Run, SegmentData};
use crate::error::{Error, Result};
use crate::format::buffers;

/// Unit of direct writes: no less than any device's block.
const BLOCK_BYTES: u64 = 4096;
/// A segment whose runs are shorter on average is written through the page cache, which gathers them.
const DIRECT_RUN_BYTES_MIN: u64 = 64 << 10;
/// Most slices that one system call takes; Linux allows 1024.
const SLICES_MAX: usize = 1024;

/// An open destination.
pub(super) struct FileWriter {
    file: File,
    /// The name in errors.
    path: PathBuf,
    /// The same file, opened for direct writes.
    direct: Option<File>,
    /// Set when the system refused one.
    direct_refused: AtomicBool,
    sync: bool,
}

impl FileWriter {
    /// A writer of a file that is synced at the end if `sync` is set.
    pub(super) fn new(file: File, path: PathBuf, sync: bool) -> Self {
        // Without a final sync, the page cache is fastest.
        let direct = if sync { open_direct(&file) } else { None };
        Self { file, path, direct, direct_refused: AtomicBool::new(false), sync }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all chunks of a segment where they belong.
    pub(super) fn write(&self, segment: &SegmentData) -> Result<()> {
        let runs = segment.runs();
        if let Some(direct) = self.direct_for(segment, runs.len() as u64) {
            match runs.iter().try_for_each(|run| write_direct(direct, run)) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_refused.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        runs.into_iter().try_for_each(|run| write_buffered(&self.file, run)).map_err(|error| self.failed(error))?;
        if self.sync {
            start_writeback(&self.file, segment.range());
        }
        Ok(())
    }

    /// Makes all written bytes permanent.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("syncing", &self.path, error))
    }

    /// The file for direct writes, if this segment is fit for them: whole blocks, few runs.
    fn direct_for(&self, segment: &SegmentData, runs: u64) -> Option<&File> {
        let fit =
            segment.range().end.is_multiple_of(BLOCK_BYTES) && segment.data_bytes() >= runs * DIRECT_RUN_BYTES_MIN;
        self.direct.as_ref().filter(|_| fit && !self.direct_refused.load(Ordering::Relaxed))
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("writing", &self.path, error)
    }
}

/// Opens a file again for direct writes; `None` where they are not supported.
fn open_direct(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

/// Writes whole blocks. Zeros between runs are 4 KiB long at least, so the zeros that fill up a run's first and last
/// block belong there and reach into no other run's.
fn write_direct(file: &File, run: &Run<'_>) -> io::Result<()> {
    let start = run.offset / BLOCK_BYTES * BLOCK_BYTES;
    let bytes = ((run.offset + run.bytes).next_multiple_of(BLOCK_BYTES) - start) as usize;
    buffers::with(bytes + BLOCK_BYTES as usize, |buffer| {
        let aligned = buffer.as_ptr().align_offset(BLOCK_BYTES as usize);
        let buffer = &mut buffer[aligned..aligned + bytes];
        let mut at = (run.offset - start) as usize;
        buffer[..at].fill(0);
        for slice in &run.slices {
            buffer[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        buffer[at..].fill(0);
        file.write_all_at(buffer, start)
    })
}

fn write_buffered(file: &File, mut run: Run<'_>) -> io::Result<()> {
    let mut offset = run.offset;
    let mut rest = run.slices.as_mut_slice();
    while !rest.is_empty() {
        let written = match rustix::io::pwritev(file, &rest[..rest.len().min(SLICES_MAX)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

/// Lets the system begin to write, so that a sync at the end has less to wait for.
fn start_writeback(file: &File, range: Range<u64>) {
    let (start, bytes) = (range.start.cast_signed(), (range.end - range.start).cast_signed());
    // SAFETY: plain system call on an open descriptor, no memory involved. A hint: its failure changes nothing.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), start, bytes, libc::SYNC_FILE_RANGE_WRITE);
    }
}
