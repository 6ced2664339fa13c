//! Where an ingest reads from: a raw file, a block device, a qcow2 chain, or a stream.
//!
//! The format comes from the caller or the path's suffix, never from content: a guest controls the content, and could
//! write a qcow2 header that names a host's file as its backing file into its own raw disk. May import `format` and
//! `catalog`.

mod host_file;
#[cfg(any(test, feature = "test-util"))]
mod mem_disk;
mod page_cache;
mod qcow2;
mod qemu_lock;
mod raw;
#[cfg(test)]
mod tests;

use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[cfg(any(test, feature = "test-util"))]
pub use self::mem_disk::MemDisk;
pub use self::qcow2::{Overlay, SnapshotFile};
use crate::error::{Error, Result};

/// A disk that can be read at any offset, by several threads at once.
pub trait DiskSource: Send + Sync {
    /// The name in errors: its path.
    fn name(&self) -> &str;

    /// Size of the virtual disk in bytes, fixed when it was opened.
    fn size_bytes(&self) -> u64;

    /// The first range at or after `offset` that may hold data; `None` if only holes follow. Never reaches past
    /// the size; may be as long as the whole disk.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Fills `buf` from `offset`. Holes read as zeros.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Called once after everything was read: fails if the source changed its size meanwhile.
    fn finish(&self) -> Result<()>;
}

/// Where a disk may differ from its parent snapshot.
pub trait ChangedRanges: Send + Sync {
    /// The first range that ends after `offset` and may differ; its part before `offset` is ignored. `None` if nothing
    /// more differs. Never empty; may reach past the disk's end.
    ///
    /// # Errors
    /// If the changes can't be read.
    fn next_changed(&self, offset: u64) -> Result<Option<Range<u64>>>;
}

impl<D: DiskSource + ?Sized> DiskSource for &D {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn finish(&self) -> Result<()> {
        (**self).finish()
    }
}

/// An opened source.
pub enum Source {
    /// Random access: segments are read in parallel.
    Disk(Box<dyn DiskSource>),
    /// Read from start to end by one thread; its size is known at its end.
    Stream {
        /// The name in errors.
        name: String,
        /// The bytes.
        reader: Box<dyn Read + Send>,
    },
}

/// How a source's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// The format that a path's suffix stands for: `.qcow2` and `.qcow` for qcow2, anything else for raw.
    fn of_path(path: &str) -> Self {
        let suffix = Path::new(path).extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
        match suffix.as_deref() {
            Some("qcow2" | "qcow") => Self::Qcow2,
            _ => Self::Raw,
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(Error::invalid(format!("no such image format: {name:?}; there are raw and qcow2"))),
        }
    }
}

/// How a source is to be opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Its format; by default the path's suffix decides.
    pub format: Option<Format>,
    /// Where backing files may lie besides the image's own directory.
    pub backing_dir: Option<PathBuf>,
    /// Accept an image that QEMU has open for writing.
    pub live: bool,
}

/// Opens a source: a file, a block device, or a stream (`-` for standard input, a pipe, a character device).
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Refused`] if QEMU has it open for writing, or if a qcow2 image needs something
/// unsupported or forbidden; [`Error::Invalid`] if it is no image.
pub fn open(path: &str, options: &OpenOptions) -> Result<Source> {
    let format = options.format.unwrap_or_else(|| Format::of_path(path));
    if path == "-" {
        return open_stdin(format);
    }
    let file_type = fs::metadata(path).map_err(|error| host_file::open_error(path, error))?.file_type();
    if file_type.is_fifo() || file_type.is_char_device() {
        let file = File::open(path).map_err(|error| host_file::open_error(path, error))?;
        return stream(path, file, format);
    }
    check_type(path, file_type)?;
    let path = Path::new(path);
    Ok(Source::Disk(match format {
        Format::Raw => Box::new(raw::RawSource::open(path, options.live)?),
        Format::Qcow2 => Box::new(qcow2::Qcow2Source::open(path, options.backing_dir.as_deref(), options.live)?),
    }))
}

/// Opens a qcow2 image over a file that shows a snapshot in a mount, which is not opened itself and may lie anywhere;
/// `None` for any other source.
///
/// # Errors
/// As [`open`].
pub fn open_overlay(path: &str, options: &OpenOptions) -> Result<Option<Overlay>> {
    let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() || metadata.file_type().is_block_device());
    if !is_file || options.format.unwrap_or_else(|| Format::of_path(path)) != Format::Qcow2 {
        return Ok(None);
    }
    Overlay::open(Path::new(path), options.backing_dir.as_deref(), options.live)
}

fn open_stdin(format: Format) -> Result<Source> {
    const NAME: &str = "standard input";
    let descriptor = io::stdin().as_fd().try_clone_to_owned().map_err(|error| Error::io("opening", NAME, error))?;
    stream(NAME, File::from(descriptor), format)
}

fn stream(name: &str, file: File, format: Format) -> Result<Source> {
    match format {
        Format::Raw => Ok(Source::Stream { name: name.to_owned(), reader: Box::new(file) }),
        Format::Qcow2 => Err(Error::invalid(format!(
            "{name}: a qcow2 image can't be read from a stream; name its file, or convert it with `qemu-img convert`"
        ))),
    }
}

fn check_type(path: &str, file_type: FileType) -> Result<()> {
    if file_type.is_file() || file_type.is_block_device() {
        return Ok(());
    }
    let what = if file_type.is_dir() { "a directory" } else { "a socket" };
    Err(Error::invalid(format!("{path} is {what}; an image is a file, a block device or a pipe")))
}
