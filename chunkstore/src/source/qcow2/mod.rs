//! qcow2 images with their backing chains, read with the crate imago.
//!
//! [`chain`] decides which files are opened, [`header`] checks what they claim, [`storage`] is how imago reads
//! them. imago maps the disk's offsets to the files'; plain data is read from the files directly.

mod chain;
mod header;
mod overlay;
mod storage;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use imago::{FormatAccess, Mapping};

use self::chain::Chain;
use self::header::Header;
pub use self::overlay::{Overlay, SnapshotFile};
use self::storage::LayerFile;
use super::DiskSource;
use super::host_file::HostFile;
use crate::error::{Error, Result};

/// imago keeps up to 128 second-level tables of every file of a chain; when it has read this much, they are dropped.
const IMAGO_BYTES_MAX: u64 = 64 << 20;
/// Neighbouring data is joined up to this, so that callers make few calls and none of them takes long.
const RUN_BYTES_MAX: u64 = 64 << 20;

/// A qcow2 image.
pub(super) struct Qcow2Source {
    image: FormatAccess<LayerFile>,
    size_bytes: u64,
    /// The image's own first.
    files: Vec<Arc<HostFile>>,
    live: bool,
    imago_bytes: Arc<AtomicU64>,
    /// Locked shared while imago is used, and exclusively while its caches are dropped.
    in_use: RwLock<()>,
}

/// The kind of a range of the disk.
enum Piece {
    Data,
    Zeros,
}

impl Qcow2Source {
    /// Opens an image and its backing files, which must lie below its directory or `backing_dir`; `live` permits an
    /// image that QEMU has open for writing.
    pub(super) fn open(path: &Path, backing_dir: Option<&Path>, live: bool) -> Result<Self> {
        Self::of(Chain::open(path, backing_dir)?, live)
    }

    fn of(chain: Chain, live: bool) -> Result<Self> {
        let files: Vec<_> = chain.files().map(Arc::clone).collect();
        if !live {
            files.iter().try_for_each(|file| file.check_not_written())?;
        }
        let imago_bytes = Arc::default();
        let image = chain.assemble(&imago_bytes)?;
        let size_bytes = image.size();
        Ok(Self { image, size_bytes, files, live, imago_bytes, in_use: RwLock::new(()) })
    }

    /// The mapping at `offset`, which is never empty before the end of the disk.
    fn mapping(&self, offset: u64, length_max: u64) -> Result<(Mapping<'_, LayerFile>, u64)> {
        let (mapping, length) = self.image.get_mapping(offset, length_max).map_err(|error| self.error(error))?;
        if length == 0 {
            return Err(Error::invalid(format!("{} has no mapping at offset {offset}", self.name())));
        }
        Ok((mapping, length))
    }

    /// The kind of the range at `offset`, and its length.
    fn piece(&self, offset: u64) -> Result<(Piece, u64)> {
        let (mapping, length) = self.mapping(offset, self.size_bytes - offset)?;
        let (storage, start) = match mapping {
            Mapping::Zero { .. } => return Ok((Piece::Zeros, length)),
            Mapping::Raw { storage, offset, .. } => (storage, offset),
            _ => return Ok((Piece::Data, length)),
        };
        // A mapped range may still be a hole of the file: in a preallocated image, or a sparse raw backing file.
        storage.check_end(start + length)?;
        Ok(match storage.file().next_data(start..start + length)? {
            None => (Piece::Zeros, length),
            Some(data) if data.start == start => (Piece::Data, data.end - start),
            Some(data) => (Piece::Zeros, data.start - start),
        })
    }

    fn read_piece(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let (mapping, length) = self.mapping(offset, buf.len() as u64)?;
        let length = length as usize;
        let buf = &mut buf[..length];
        match mapping {
            Mapping::Zero { .. } => buf.fill(0),
            Mapping::Raw { storage, offset, .. } => storage.read_exact_at(buf, offset)?,
            Mapping::Special { layer, offset, .. } => {
                // A hostile compressed cluster refers to bytes before its own: imago's decoder takes what lies in
                // `buf`.
                buf.fill(0);
                layer.read(buf, offset).map_err(|error| self.error(error))?;
            }
            _ => return Err(Error::invalid(format!("{} has no known mapping at offset {offset}", self.name()))),
        }
        Ok(length)
    }

    /// Bounds the memory of imago's caches, however long the chain.
    fn bound_caches(&self) -> Result<()> {
        if self.imago_bytes.load(Ordering::Relaxed) <= IMAGO_BYTES_MAX {
            return Ok(());
        }
        let _alone = self.in_use.write();
        if self.imago_bytes.swap(0, Ordering::Relaxed) <= IMAGO_BYTES_MAX {
            return Ok(());
        }
        // SAFETY: the image is open for reading only, so nothing unwritten is lost, and no mapping is in use,
        // because every use holds `in_use`.
        unsafe { self.image.invalidate_cache() }.map_err(|error| self.error(error))
    }

    fn error(&self, error: io::Error) -> Error {
        imago_error(self.name(), error)
    }
}

impl DiskSource for Qcow2Source {
    fn name(&self) -> &str {
        self.files[0].name()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.bound_caches()?;
        let _in_use = self.in_use.read();
        let mut position = offset;
        let mut found: Option<Range<u64>> = None;
        while position < self.size_bytes {
            let (piece, length) = self.piece(position)?;
            let end = position + length;
            match (piece, &mut found) {
                (Piece::Zeros, None) => {}
                (Piece::Zeros, Some(_)) => break,
                (Piece::Data, None) => found = Some(position..end),
                (Piece::Data, Some(run)) => run.end = end,
            }
            if found.as_ref().is_some_and(|run| run.end - run.start >= RUN_BYTES_MAX) {
                break;
            }
            position = end;
        }
        Ok(found)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size_bytes) {
            return Err(Error::invalid(format!("{} ends before offset {offset} + {}", self.name(), buf.len())));
        }
        self.bound_caches()?;
        let _in_use = self.in_use.read();
        let mut done_bytes = 0;
        while done_bytes < buf.len() {
            done_bytes += self.read_piece(&mut buf[done_bytes..], offset + done_bytes as u64)?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        if self.live {
            // The file of a running machine grows; its disk must not.
            return check_virtual_size(&self.files[0], self.size_bytes);
        }
        self.files.iter().try_for_each(|file| {
            file.check_size()?;
            file.check_not_written()
        })
    }
}

fn check_virtual_size(file: &HostFile, size_bytes: u64) -> Result<()> {
    let now_bytes = Header::read(file)?.size_bytes;
    if now_bytes == size_bytes {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{} changed size while it was read: its disk had {size_bytes} bytes and now has {now_bytes}",
        file.name()
    )))
}

/// Converts imago's error: our own error from below it, or else a malformed image.
fn imago_error(name: &str, error: io::Error) -> Error {
    error
        .downcast::<Error>()
        .unwrap_or_else(|error| Error::invalid(format!("{name} is not a sound qcow2 image: {error}")))
}

/// The command that turns an image into one without a chain or rare features.
fn convert_hint(name: &str) -> String {
    let output = Path::new(name).with_extension("converted.qcow2");
    format!(
        "convert it with `qemu-img convert -O qcow2 {} {}`",
        shell_word(name),
        shell_word(&output.display().to_string())
    )
}

/// `text` as one word of a shell's command line.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
