//! The seam under packs and catalog: a flat set of named files in a few directories.
//!
//! Files are written once from start to end, synced, renamed to their final name and never changed, which is what both
//! a local directory and an object store can do. Where the storage supports it, others may write into gaps that the
//! writer leaves for them ([`Storage::join`]), even later. Tests inject faults here. Paths are relative to the store
//! and use `/`. This folder knows no formats, and imports no other.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(any(test, feature = "test-util"))]
mod in_memory;
#[cfg(any(test, feature = "test-util"))]
pub mod power_cut;
pub(crate) mod quarantine;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod whole;

#[cfg(any(test, feature = "test-util"))]
pub use in_memory::{Failure, MemStorage};

/// File storage for ground truth. One suite of tests, `storage::tests::contract`, holds for each implementation.
pub trait Storage: Send + Sync + 'static {
    /// Creates a new file for appending.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one with that name.
    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>>;

    /// Opens a file for reading at any offset.
    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>>;

    /// Opens a file that another writer appends to, to write after its end; that writer [skips](AppendFile::skip) this
    /// range.
    ///
    /// # Errors
    /// `NotFound` if there is no such file; `Unsupported` if the storage allows one writer only.
    fn join(&self, path: &str) -> io::Result<Box<dyn JoinedFile>> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Renames a file, replacing an existing one. Atomic; durable after [`Storage::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Storage::sync_dir`].
    fn remove(&self, path: &str) -> io::Result<()>;

    /// The names in a directory, sorted; files and directories apart.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory.
    fn list(&self, dir: &str) -> io::Result<Listing>;

    /// Creates a directory if it is not there, durably.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// Makes creations, renames and removals in this directory survive a power cut.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// The path as an operator knows it, for messages.
    fn locate(&self, path: &str) -> PathBuf {
        if path.is_empty() { "the store".into() } else { path.into() }
    }
}

/// A file being written from start to end.
pub trait AppendFile: Send {
    /// Appends all the bytes, or fails; after a failure the file must be abandoned.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Leaves this many bytes to other writers ([`Storage::join`]). Bytes that none of them writes read as zeros once
    /// something is appended after them.
    fn skip(&mut self, bytes: u64);

    /// Lets the system begin to write what was appended, so that [`AppendFile::sync`] has less to wait for.
    fn start_writeback(&mut self) {}

    /// Makes all that was appended survive a power cut. After a failure the file must be abandoned: a second sync may
    /// succeed although pages were lost.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that another writer appends to.
pub trait JoinedFile {
    /// Writes all the bytes at `offset`. The appending writer's sync makes them permanent.
    ///
    /// # Errors
    /// Some of the bytes may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// A file open for reading.
pub trait ReadFile: Send + Sync {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Whether the file is known to be unlinked, so that only open descriptors keep its bytes.
    fn is_removed(&self) -> bool {
        false
    }
}

/// The content of a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Names of files.
    pub files: Vec<String>,
    /// Names of directories.
    pub dirs: Vec<String>,
}

/// A directory of the local file system.
#[derive(Debug, Clone)]
pub struct LocalDir {
    root: PathBuf,
}

impl LocalDir {
    /// Storage below `root`, which must exist.
    pub fn new(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_path_buf() }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
}

/// Creates directories readable by the store's user alone: they hold the content of guests' disks.
pub(crate) fn private_dir() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

impl Storage for LocalDir {
    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>> {
        let file = File::create_new(self.path(path))?;
        Ok(Box::new(LocalAppend { file, appended_bytes: 0, writeback_bytes: 0 }))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>> {
        Ok(Arc::new(LocalRead(File::open(self.path(path))?)))
    }

    fn join(&self, path: &str) -> io::Result<Box<dyn JoinedFile>> {
        Ok(Box::new(LocalJoined(File::options().write(true).open(self.path(path))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))
    }

    fn list(&self, dir: &str) -> io::Result<Listing> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(self.path(dir))? {
            let entry = entry?;
            // A store has no names that are not UTF-8.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let names = if entry.file_type()?.is_dir() { &mut listing.dirs } else { &mut listing.files };
            names.push(name);
        }
        listing.files.sort_unstable();
        listing.dirs.sort_unstable();
        Ok(listing)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.path(dir);
        match private_dir().create(&path) {
            Ok(()) => sync_path(path.parent().unwrap_or(&self.root)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        sync_path(&self.path(dir))
    }

    fn locate(&self, path: &str) -> PathBuf {
        self.path(path)
    }
}

fn sync_path(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

struct LocalAppend {
    file: File,
    appended_bytes: u64,
    writeback_bytes: u64,
}

impl AppendFile for LocalAppend {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.appended_bytes)?;
        self.appended_bytes += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) {
        self.appended_bytes += bytes;
    }

    fn start_writeback(&mut self) {
        let from = self.writeback_bytes;
        self.writeback_bytes = self.appended_bytes;
        // SAFETY: plain system call on an open descriptor, no memory involved. A hint: its failure changes nothing.
        unsafe {
            libc::sync_file_range(
                std::os::fd::AsRawFd::as_raw_fd(&self.file),
                from as i64,
                (self.appended_bytes - from) as i64,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

struct LocalJoined(File);

impl JoinedFile for LocalJoined {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}

struct LocalRead(File);

impl ReadFile for LocalRead {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn is_removed(&self) -> bool {
        self.0.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }
}
