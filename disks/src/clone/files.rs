//! The file system as clones use it: the seam at which tests record changes, lose unsynced data, and inject faults.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::Errno;

/// Changes directories and opens files of clones; listing and plain reading bypass it. Used by several threads at once.
pub(super) trait Files: Send + Sync {
    /// Makes a directory for its user alone.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes an empty file, also of one that is there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn LayerFile>>;

    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LayerFile>>;

    /// Renames a file, replacing another, or a directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory permanent.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The file system itself.
pub(super) struct HostFiles;

impl Files for HostFiles {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LayerFile>> {
        Ok(Box::new(File::options().read(true).write(true).create(true).truncate(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LayerFile>> {
        Ok(Box::new(File::options().read(true).write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// A file of a layer. Used by several threads at once.
pub(super) trait LayerFile: Send + Sync {
    /// Fills `buf` from `offset`; what is beyond the end reads as zeros.
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of it. After a failure any part of it may be written.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a range read as zeros and frees its room. The file's length stays.
    fn punch(&self, range: Range<u64>) -> io::Result<()>;

    /// Takes room, so that a later write there does not find the disk full.
    fn reserve(&self, range: Range<u64>) -> io::Result<()>;

    /// Cuts off what is beyond; a shorter file stays as it is.
    fn cut(&self, len_bytes: u64) -> io::Result<()>;

    /// The first range at or after `offset` that may hold something else than zeros.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// Bytes that it takes on the disk.
    fn stored_bytes(&self) -> io::Result<u64>;

    /// Makes all that was written before permanent, as `fdatasync` does.
    fn sync(&self) -> io::Result<()>;

    /// After a failed sync: drops the cached pages of the file, so that the next open reads the content of the disk.
    fn forget(&self) {}
}

impl LayerFile for File {
    fn read(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    break;
                }
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self, flags, range.start, range.end - range.start)?)
    }

    fn reserve(&self, range: Range<u64>) -> io::Result<()> {
        match fallocate(self, FallocateFlags::KEEP_SIZE, range.start, range.end - range.start) {
            // Then the write says it.
            Err(Errno::OPNOTSUPP) => Ok(()),
            reserved => Ok(reserved?),
        }
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        if self.metadata()?.len() > len_bytes { self.set_len(len_bytes) } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        // Nobody uses the position.
        let start = match seek(self, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => return Ok(None),
            start => start?,
        };
        match seek(self, SeekFrom::Hole(start)) {
            // It was cut off just now.
            Err(Errno::NXIO) => Ok(None),
            end => Ok(Some(start..end?)),
        }
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.metadata()?.blocks() * 512)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn forget(&self) {
        // A hint; a file system without a disk has none to read from.
        let _ = fadvise(self, 0, None, Advice::DontNeed);
    }
}
