//! A regular file as destination: written under a temporary name, synced, renamed.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::file_writer::FileWriter;
use super::pipeline::Target;
use super::segment::SegmentData;
use crate::error::{Error, Result};

/// `.NAME.vmstore-part` in the directory of DEST; removed on drop unless it was finished.
pub(super) struct PartFile {
    writer: FileWriter,
    sync: bool,
    dest: PathBuf,
    replace: bool,
    finished: bool,
}

impl PartFile {
    /// Creates the file, sparse, with its final length.
    ///
    /// # Errors
    /// [`Error::Refused`] if another restore writes to the same destination.
    pub(super) fn create(dest: &Path, replace: bool, virtual_bytes: u64, sync: bool) -> Result<Self> {
        let part = part_path(dest)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part)
            .map_err(|error| Error::io("creating", &part, error))?;
        lock(&file, &part, dest)?;
        let writer = FileWriter::new(file, part, sync);
        let created = Self { writer, sync, dest: dest.to_path_buf(), replace, finished: false };
        let file = created.writer.file();
        // An interrupted restore may have left bytes of another image.
        file.set_len(0).map_err(|error| created.failed("truncating", error))?;
        file.set_len(virtual_bytes).map_err(|error| created.failed("setting the length of", error))?;
        Ok(created)
    }

    /// Gives the file its name, and makes bytes and name permanent if `sync` is set.
    pub(super) fn finish(mut self) -> Result<()> {
        publish(self.writer.file(), self.writer.path(), &self.dest, self.replace, self.sync)?;
        self.finished = true;
        Ok(())
    }

    fn failed(&self, action: &'static str, error: io::Error) -> Error {
        Error::io(action, self.writer.path(), error)
    }
}

impl Target for PartFile {
    fn write(&self, segment: &SegmentData) -> Result<()> {
        self.writer.write(segment)
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
            let _ = fs::remove_file(self.writer.path());
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

/// Locks the part file for this process.
fn lock(file: &File, part: &Path, dest: &Path) -> Result<()> {
    let busy = || Error::refused(format!("another process is restoring to {}", dest.display()));
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy()),
        Err(TryLockError::Error(error)) => return Err(Error::io("locking", part, error)),
    }
    // Another restore may have finished since the file was opened: then this is its image, under its final name.
    let opened = file.metadata().map_err(|error| Error::io("looking at", part, error))?;
    let named = fs::symlink_metadata(part).ok();
    let same = named.is_some_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()));
    if same && opened.is_file() { Ok(()) } else { Err(busy()) }
}

/// Renames the finished file `part` to `dest`. With `sync`, first the file is synced, and afterwards the directory.
///
/// The new file gets owner and mode of the one that it replaces, as far as this user may set them.
pub(super) fn publish(file: &File, part: &Path, dest: &Path, replace: bool, sync: bool) -> Result<()> {
    if let Some(old) = fs::metadata(dest).ok().filter(|_| replace) {
        let _ = fchown(file, Some(old.uid()), Some(old.gid()));
        let _ = file.set_permissions(old.permissions());
    }
    if sync {
        file.sync_all().map_err(|error| Error::io("syncing", part, error))?;
    }
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, part, CWD, dest, flags).map_err(|error| Error::io("renaming", part, error.into()))?;
    if sync { sync_dir(dest) } else { Ok(()) }
}

fn sync_dir(dest: &Path) -> Result<()> {
    let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::io("syncing the directory", dir, error))
}
