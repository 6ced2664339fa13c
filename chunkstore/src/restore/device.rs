//! A block device as destination: opened for this process alone, its zeros made, not assumed.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;

use super::file_writer::FileWriter;
use super::pipeline::Target;
use super::segment::SegmentData;
use crate::error::{Error, Result};
use crate::format::limits::ZERO_BLOCK_BYTES;

/// Zeros written with one call where the device can't make them itself.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// An open block device.
pub(super) struct Device {
    writer: FileWriter,
    sync: bool,
    /// Cleared at the first refusal of the driver.
    zeroes_ranges: AtomicBool,
}

impl Device {
    /// Opens a device for an image of this size.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is mounted or otherwise in use, or too small.
    pub(super) fn open(path: &Path, virtual_bytes: u64, sync: bool) -> Result<Self> {
        // For block devices `O_EXCL` without `O_CREAT` means: fail if the system itself uses it.
        let flags = OFlags::WRONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::BUSY) => {
                return Err(Error::refused(format!("{} is mounted or otherwise in use", path.display())));
            }
            Err(error) => return Err(Error::io("opening", path, error.into())),
        };
        let device_bytes = file.seek(SeekFrom::End(0)).map_err(|error| Error::io("measuring", path, error))?;
        if device_bytes < virtual_bytes {
            return Err(Error::refused(format!(
                "{} has {device_bytes} bytes, too few for the image's {virtual_bytes}",
                path.display()
            )));
        }
        Ok(Self { writer: FileWriter::new(file, path.to_path_buf(), sync), sync, zeroes_ranges: AtomicBool::new(true) })
    }

    /// Makes all written bytes permanent, if `sync` was set.
    pub(super) fn finish(self) -> Result<()> {
        if self.sync { self.writer.sync() } else { Ok(()) }
    }

    /// Asks the driver for zeros. `ZERO_RANGE` promises that zeros are read afterwards, on every kernel, which
    /// `PUNCH_HOLE` on devices did not always.
    fn zero_by_driver(&self, range: &Range<u64>) -> Result<bool> {
        let aligned =
            range.start.is_multiple_of(ZERO_BLOCK_BYTES as u64) && range.end.is_multiple_of(ZERO_BLOCK_BYTES as u64);
        if !aligned || !self.zeroes_ranges.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(self.writer.file(), flags, range.start, range.end - range.start) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.zeroes_ranges.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(self.failed(error.into())),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("zeroing", self.writer.path(), error)
    }
}

impl Target for Device {
    fn write(&self, segment: &SegmentData) -> Result<()> {
        let mut end = segment.range().start;
        for run in segment.runs() {
            self.zero(end..run.offset)?;
            end = run.offset + run.bytes;
        }
        self.zero(end..segment.range().end)?;
        self.writer.write(segment)
    }

    fn needs_zeros(&self) -> bool {
        true
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() || self.zero_by_driver(&range)? {
            return Ok(());
        }
        let mut start = range.start;
        while start < range.end {
            let bytes = (range.end - start).min(ZEROS.len() as u64);
            self.writer.file().write_all_at(&ZEROS[..bytes as usize], start).map_err(|error| self.failed(error))?;
            start += bytes;
        }
        Ok(())
    }
}
