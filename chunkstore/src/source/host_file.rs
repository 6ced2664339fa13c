//! A file or block device of the host that images are made of: sizes, holes, reads.
//!
//! Any number of threads may read: reads name their offset, and the descriptor's own offset, which seeking for
//! holes moves, is never used.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{page_cache, qemu_lock};
use crate::error::{Error, Result};

/// Most bytes whose residency in the page cache is asked for at once.
const WINDOW_BYTES: usize = 4 << 20;

/// An open regular file or block device.
#[derive(Debug)]
pub(super) struct HostFile {
    name: String,
    file: File,
    identity: (u64, u64),
    size_bytes: u64,
    is_device: bool,
}

impl HostFile {
    /// Opens `path` for reading; errors call it `name`.
    pub(super) fn open(path: &Path, name: String) -> Result<Self> {
        let file = File::open(path).map_err(|error| open_error(&name, error))?;
        let metadata = file.metadata().map_err(|error| Error::io("examining", &name, error))?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(Error::invalid(format!("{name} is neither a regular file nor a block device")));
        }
        page_cache::stop_readahead(&file);
        let size_bytes = current_size(&file).map_err(|error| Error::io("examining", &name, error))?;
        Ok(Self { name, identity: identity(&metadata), file, size_bytes, is_device })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its size when it was opened.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its size now.
    pub(super) fn current_size_bytes(&self) -> Result<u64> {
        current_size(&self.file).map_err(|error| Error::io("examining", &self.name, error))
    }

    /// True if both are the same file or device, whatever their paths.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.is_device == other.is_device && self.identity == other.identity
    }

    /// Fails if QEMU has the file open for writing.
    pub(super) fn check_not_written(&self) -> Result<()> {
        match qemu_lock::is_open_for_writing(&self.file) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::refused(format!(
                "{} is open for writing in QEMU; snapshot it first and take the snapshot (`virsh snapshot-create-as \
                 DOMAIN NAME --disk-only --atomic` and then the disk's former file, or an LVM or ZFS snapshot), or \
                 take it as it is, crash-consistent at best, with --live",
                self.name
            ))),
            Err(error) => {
                tracing::warn!(file = self.name, %error, "can't tell whether QEMU has this image open");
                Ok(())
            }
        }
    }

    /// Fails if the size is no longer what it was when the file was opened.
    pub(super) fn check_size(&self) -> Result<()> {
        let now_bytes = self.current_size_bytes()?;
        if now_bytes == self.size_bytes {
            return Ok(());
        }
        Err(Error::refused(format!(
            "{} changed size while it was read: it had {} bytes and now has {now_bytes}",
            self.name, self.size_bytes
        )))
    }

    /// The first range within `range` that may hold data; `None` if it is one hole. A file system that does not
    /// know its holes, or a device, has none.
    pub(super) fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some(range));
        }
        let data_start = match rustix::fs::seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some(range)),
            Err(error) => return Err(self.error_at("looking for data in", range.start, error.into())),
        };
        if data_start >= range.end {
            return Ok(None);
        }
        let data_end = match rustix::fs::seek(&self.file, SeekFrom::Hole(data_start)) {
            Ok(end) => end.min(range.end),
            // The file was cut off meanwhile, which the read of this range will report.
            Err(Errno::NXIO) => range.end,
            Err(error) => return Err(self.error_at("looking for holes in", data_start, error.into())),
        };
        Ok(Some(data_start..data_end))
    }

    /// Fills `buf` from `offset`, or as much of it as there is before the file's end; returns how many bytes.
    pub(super) fn read_up_to(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut read_bytes = 0;
        for window in buf.chunks_mut(WINDOW_BYTES) {
            let start = offset + read_bytes as u64;
            let range = start..start + window.len() as u64;
            let window_bytes = page_cache::leaving_no_trace(&self.file, range, || self.read_window(window, start))?;
            read_bytes += window_bytes;
            if window_bytes < window.len() {
                break;
            }
        }
        Ok(read_bytes)
    }

    fn read_window(&self, window: &mut [u8], offset: u64) -> Result<usize> {
        let mut read_bytes = 0;
        while read_bytes < window.len() {
            let at = offset + read_bytes as u64;
            match self.file.read_at(&mut window[read_bytes..], at) {
                Ok(0) => break,
                Ok(bytes) => read_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error_at("reading", at, error)),
            }
        }
        Ok(read_bytes)
    }

    fn error_at(&self, action: &'static str, offset: u64, error: io::Error) -> Error {
        // An image is large, so the error names the offset.
        Error::io(action, PathBuf::from(format!("{} at offset {offset}", self.name)), error)
    }
}

/// The error for a path that could not be opened or examined.
pub(super) fn open_error(name: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(name),
        _ => Error::io("opening", name, error),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    if metadata.file_type().is_block_device() { (metadata.rdev(), 0) } else { (metadata.dev(), metadata.ino()) }
}

/// The end of the file or device; `stat` says nothing about a device's size.
fn current_size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn open(path: &Path) -> HostFile {
        HostFile::open(path, path.display().to_string()).unwrap()
    }

    /// A file with random-looking content on a file system with a page cache to be dropped.
    fn synced_file(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let content: Vec<u8> = (0..bytes).map(|index| (index >> 3) as u8).collect();
        file.write_all(&content).unwrap();
        file.as_file().sync_all().unwrap();
        file
    }

    fn read_all(file: &HostFile) {
        let mut buf = vec![0; 4 << 20];
        for offset in (0..file.size_bytes()).step_by(buf.len()) {
            file.read_up_to(&mut buf, offset).unwrap();
        }
    }

    fn drop_cached(file: &File) {
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    #[test]
    fn absent_pages_are_absent_after_reading() {
        let bytes = (40 << 20) + 12_345;
        let file = synced_file(bytes);
        drop_cached(file.as_file());
        assert_eq!(page_cache::resident_bytes(file.as_file(), bytes as u64), 0, "the test could not empty the cache");
        let host_file = open(file.path());
        read_all(&host_file);
        assert_eq!(page_cache::resident_bytes(file.as_file(), bytes as u64), 0);

        let mut small = vec![0; 20_000];
        host_file.read_up_to(&mut small, 1_000_001).unwrap();
        assert_eq!(page_cache::resident_bytes(file.as_file(), bytes as u64), 0);
    }

    #[test]
    fn resident_pages_stay_resident() {
        let bytes = 9 << 20;
        let file = synced_file(bytes);
        std::fs::read(file.path()).unwrap();
        let resident = || page_cache::resident_bytes(file.as_file(), bytes as u64);
        assert_eq!(resident(), bytes as u64);
        read_all(&open(file.path()));
        assert_eq!(resident(), bytes as u64);
    }

    #[test]
    fn pages_of_others_stay_between_absent_ones() {
        let bytes = 8 << 20;
        let file = synced_file(bytes);
        drop_cached(file.as_file());
        let other = File::open(file.path()).unwrap();
        page_cache::stop_readahead(&other);
        let mut page = vec![0; 4096];
        for offset in (0..bytes as u64).step_by(1 << 20) {
            other.read_exact_at(&mut page, offset + 8192).unwrap();
        }
        let before = page_cache::resident_bytes(file.as_file(), bytes as u64);
        assert_eq!(before, 8 * 4096);
        read_all(&open(file.path()));
        assert_eq!(page_cache::resident_bytes(file.as_file(), bytes as u64), before);
    }

    #[test]
    fn finds_data_between_holes() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        file.as_file().write_all_at(&vec![1; 65536], 4 << 20).unwrap();
        file.as_file().write_all_at(&[2; 4096], 12 << 20).unwrap();
        let host_file = open(file.path());
        let size = host_file.size_bytes();
        let first = (4 << 20)..(4 << 20) + 65536;
        let second = (12 << 20)..(12 << 20) + 4096;
        assert_eq!(host_file.next_data(0..size).unwrap(), Some(first.clone()));
        assert_eq!(host_file.next_data(first.start + 5..size).unwrap(), Some(first.start + 5..first.end));
        assert_eq!(host_file.next_data(first.end..size).unwrap(), Some(second.clone()));
        assert_eq!(host_file.next_data(second.end..size).unwrap(), None, "a trailing hole");
        assert_eq!(host_file.next_data(size..size).unwrap(), None);
        assert_eq!(host_file.next_data(first.end..second.start).unwrap(), None);
        assert_eq!(host_file.next_data(0..first.start + 1).unwrap(), Some(first.start..first.start + 1));
    }

    #[test]
    fn a_read_error_names_file_and_offset() {
        // Linux answers EIO when the memory of a process is read where nothing is mapped.
        let memory = HostFile {
            name: "/dev/bad".into(),
            file: File::open("/proc/self/mem").unwrap(),
            identity: (0, 0),
            size_bytes: 1 << 20,
            is_device: false,
        };
        let error = memory.read_up_to(&mut [0; 512], 4096).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EIO)), "{error:?}");
        assert!(error.to_string().starts_with("reading /dev/bad at offset 4096: "), "{error}");
    }

    #[test]
    fn refuses_what_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(HostFile::open(dir.path(), "d".into()), Err(Error::Invalid { .. })));
        assert!(matches!(HostFile::open(&dir.path().join("none"), "n".into()), Err(Error::NotFound { .. })));
    }
}
