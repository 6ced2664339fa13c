//! A regular file as destination: written beside its name, synced, renamed.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::segment::SegmentData;
use super::work::Target;
use crate::error::{Error, Result};

/// Most slices that one system call takes; Linux allows 1024.
const SLICES_MAX: usize = 1024;

/// `.NAME.vmstore-part` beside DEST; removed when dropped unless it was finished.
pub(super) struct PartFile {
    file: File,
    part: PathBuf,
    dest: PathBuf,
    replace: bool,
    finished: bool,
}

impl PartFile {
    /// Creates the file, sparse, with its final length.
    ///
    /// # Errors
    /// [`Error::Refused`] if another restore writes to the same destination.
    pub(super) fn create(dest: &Path, replace: bool, virtual_bytes: u64) -> Result<Self> {
        let part = part_path(dest)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part)
            .map_err(|error| Error::io("creating", &part, error))?;
        lock(&file, &part, dest)?;
        let created = Self { file, part, dest: dest.to_path_buf(), replace, finished: false };
        // What an interrupted restore left there is none of this image's.
        created.file.set_len(0).map_err(|error| created.failed("truncating", error))?;
        created.file.set_len(virtual_bytes).map_err(|error| created.failed("setting the length of", error))?;
        Ok(created)
    }

    /// Gives the file its name, and makes bytes and name permanent: the file is synced, renamed, its directory synced.
    pub(super) fn finish(mut self, sync: bool) -> Result<()> {
        if self.replace {
            self.take_over_owner();
        }
        if sync {
            self.file.sync_all().map_err(|error| self.failed("syncing", error))?;
        }
        let flags = if self.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &self.part, CWD, &self.dest, flags)
            .map_err(|error| self.failed("renaming", error.into()))?;
        self.finished = true;
        if sync { sync_dir(&self.dest) } else { Ok(()) }
    }

    /// The image keeps the owner and the mode of the file it replaces, as far as this user may set them.
    fn take_over_owner(&self) {
        if let Ok(old) = fs::metadata(&self.dest) {
            let _ = std::os::unix::fs::fchown(&self.file, Some(old.uid()), Some(old.gid()));
            let _ = self.file.set_permissions(old.permissions());
        }
    }

    fn failed(&self, action: &'static str, error: io::Error) -> Error {
        Error::io(action, &self.part, error)
    }
}

impl Target for PartFile {
    fn write(&self, segment: &SegmentData) -> Result<()> {
        write_runs(&self.file, &self.part, segment)?;
        start_writeback(&self.file, segment.range());
        Ok(())
    }

    fn needs_zeros(&self) -> bool {
        false
    }

    fn zero(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.part);
        }
    }
}

fn part_path(dest: &Path) -> Result<PathBuf> {
    let name = dest.file_name().ok_or_else(|| Error::invalid(format!("{} names no file", dest.display())))?;
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".vmstore-part");
    Ok(dest.with_file_name(part))
}

/// Claims the part file for this process.
fn lock(file: &File, part: &Path, dest: &Path) -> Result<()> {
    let busy = || Error::refused(format!("another process is restoring to {}", dest.display()));
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy()),
        Err(TryLockError::Error(error)) => return Err(Error::io("locking", part, error)),
    }
    // Another may have finished since the file was opened: it is that one's image then, under its final name.
    let opened = file.metadata().map_err(|error| Error::io("looking at", part, error))?;
    let named = fs::symlink_metadata(part).ok();
    let same = named.is_some_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()));
    if same && opened.is_file() { Ok(()) } else { Err(busy()) }
}

fn sync_dir(dest: &Path) -> Result<()> {
    let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::io("syncing the directory", dir, error))
}

/// Writes all chunks of a segment where they belong.
pub(super) fn write_runs(file: &File, path: &Path, segment: &SegmentData) -> Result<()> {
    for run in segment.runs() {
        let mut offset = run.offset;
        let mut slices = run.slices;
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(SLICES_MAX)];
            let written = match rustix::io::pwritev(file, batch, offset) {
                Ok(0) => return Err(Error::io("writing", path, io::ErrorKind::WriteZero.into())),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Error::io("writing", path, error.into())),
            };
            offset += written as u64;
            io::IoSlice::advance_slices(&mut rest, written);
        }
    }
    Ok(())
}

/// Lets the system begin to write, so that a sync at the end has less to wait for.
pub(super) fn start_writeback(file: &File, range: Range<u64>) {
    let bytes = range.end - range.start;
    // SAFETY: plain system call on an open descriptor, no memory involved. A hint: its failure changes nothing.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), range.start as i64, bytes as i64, libc::SYNC_FILE_RANGE_WRITE);
    }
}
