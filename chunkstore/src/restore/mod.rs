//! Writing a snapshot out: to a raw or qcow2 file, a block device or a stream; sparse, in parallel, every byte
//! verified.
//!
//! Threads take segments from a walk over the manifest, fetch their chunks and write them where they belong. Zeros are
//! never written to a file, which is sparse from the start; on a device they are zeroed; a stream has them as bytes.
//! May import `format` and `catalog`.

mod device;
mod file;
mod file_writer;
mod pipeline;
mod qcow2_file;
mod segment;
mod stream;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use self::device::Device;
use self::file::PartFile;
pub use self::qcow2_file::check_qcow2;
use crate::catalog::Entry;
use crate::error::{Error, Result};
use crate::format::manifest::ChunkSource;
use crate::progress::Progress;

/// How to restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// Replace a file that exists, or write to a block device.
    pub force: bool,
    /// Wait until the bytes are on disk. Without it, a power cut soon afterwards may leave an incomplete file.
    pub sync: bool,
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

/// Restores to a regular file or a block device. When it returns, the bytes are on disk if `sync` is set.
///
/// # Errors
/// [`Error::Refused`] if `dest` is there and `force` is not given, or it is neither a file nor a block device, or the
/// device is too small or in use; [`Error::Damaged`] naming what can't be read. After an error a file is as it was
/// before, and a device is in part overwritten.
pub fn restore(
    source: &dyn ChunkSource,
    entry: &Entry,
    dest: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport> {
    let started = Instant::now();
    let (dest, kind) = destination(dest, options)?;
    let data_bytes = match kind {
        Destination::Device => {
            let device = Device::open(&dest, entry.virtual_bytes, options.sync)?;
            let data_bytes = pipeline::write_all(source, entry, &device, options.threads, progress)?;
            device.finish()?;
            data_bytes
        }
        Destination::NewFile | Destination::OldFile => {
            let file = PartFile::create(&dest, kind == Destination::OldFile, entry.virtual_bytes, options.sync)?;
            let data_bytes = pipeline::write_all(source, entry, &file, options.threads, progress)?;
            file.finish()?;
            data_bytes
        }
    };
    Ok(report(entry, data_bytes, started))
}

/// Restores to a qcow2 image, which `qemu-img` makes of a raw one in the same directory.
///
/// # Errors
/// As [`restore()`] to a file, and those of [`check_qcow2`].
pub fn restore_to_qcow2(
    source: &dyn ChunkSource,
    entry: &Entry,
    dest: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport> {
    qcow2_file::write(dest, options, progress, |raw, options| restore(source, entry, raw, options, progress))
}

/// Restores to a stream, zeros included.
///
/// # Errors
/// [`Error::Io`] with the kind `BrokenPipe` if the reader has gone away; [`Error::Damaged`] naming what can't be read,
/// after all that lies before it was written.
pub fn restore_to_stream(
    source: &dyn ChunkSource,
    entry: &Entry,
    out: &mut (dyn Write + Send),
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport> {
    let started = Instant::now();
    progress.set_total(entry.virtual_bytes);
    let data_bytes = stream::write(source, entry, out, options.threads.max(1), progress)?;
    Ok(report(entry, data_bytes, started))
}

fn report(entry: &Entry, data_bytes: u64, started: Instant) -> RestoreReport {
    RestoreReport { virtual_bytes: entry.virtual_bytes, data_bytes, elapsed_s: started.elapsed().as_secs_f64() }
}

/// The kind of the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Destination {
    NewFile,
    OldFile,
    Device,
}

/// Finds the kind of `dest`, and refuses one that must not be overwritten. Follows symbolic links.
fn destination(dest: &Path, options: &RestoreOptions) -> Result<(PathBuf, Destination)> {
    let found = match fs::metadata(dest) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if fs::symlink_metadata(dest).is_ok() {
                Err(Error::refused(format!("{} is a symbolic link to nothing", dest.display())))
            } else {
                Ok((dest.to_path_buf(), Destination::NewFile))
            };
        }
        Err(error) => return Err(Error::io("looking at", dest, error)),
    };
    let kind = if found.is_file() {
        Destination::OldFile
    } else if found.file_type().is_block_device() {
        Destination::Device
    } else {
        return Err(Error::refused(format!(
            "{} is neither a file nor a block device; to restore to a stream, give - as destination",
            dest.display()
        )));
    };
    if !options.force {
        let what = if kind == Destination::Device { "is a block device" } else { "is there already" };
        return Err(Error::refused(format!("{} {what}; it is overwritten only with --force", dest.display())));
    }
    let real = fs::canonicalize(dest).map_err(|error| Error::io("looking at", dest, error))?;
    Ok((real, kind))
}
