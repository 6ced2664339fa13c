//! Raw images: regular files and block devices, byte for byte.

use std::ops::Range;
use std::path::Path;

use super::DiskSource;
use super::host_file::HostFile;
use crate::error::{Error, Result};

/// A raw file or a block device.
pub(super) struct RawSource {
    file: HostFile,
    live: bool,
}

impl RawSource {
    /// Opens it; `live` permits an image that QEMU has open for writing.
    pub(super) fn open(path: &Path, live: bool) -> Result<Self> {
        let file = HostFile::open(path, path.display().to_string())?;
        if !live {
            file.check_not_written()?;
        }
        Ok(Self { file, live })
    }
}

impl DiskSource for RawSource {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.file.next_data(offset..self.size_bytes())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if self.file.read_up_to(buf, offset)? == buf.len() {
            return Ok(());
        }
        self.file.check_size()?;
        Err(Error::refused(format!("{} ends before offset {}", self.name(), offset + buf.len() as u64)))
    }

    fn finish(&self) -> Result<()> {
        self.file.check_size()?;
        // A virtual machine may have started since the image was opened.
        if self.live { Ok(()) } else { self.file.check_not_written() }
    }
}
