//! Finding the files of a qcow2 chain, and which of them may be opened.
//!
//! The header's author is not trusted. So a backing file is opened only if its format is recorded (a raw file's content
//! would otherwise decide), and only if it lies below the image's own directory or one that the caller named, symbolic
//! links resolved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use imago::format::builder::FormatDriverBuilder;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess};

use super::super::Format;
use super::super::host_file::HostFile;
use super::header::{Backing, Header};
use super::storage::LayerFile;
use super::{convert_hint, imago_error};
use crate::error::{Error, Result};

/// Most files of a chain.
const DEPTH_MAX: usize = 200;
/// Most bytes of first-level tables in memory, over the whole chain.
const L1_BYTES_MAX: u64 = 64 << 20;

/// The files of an image, the image itself first, each the backing file of the one before.
pub(super) struct Chain {
    layers: Vec<Layer>,
}

/// The backing file of an image, unopened.
pub(super) struct Below {
    pub(super) path: PathBuf,
    /// Whether it might be opened.
    pub(super) is_allowed: bool,
}

struct Layer {
    /// As the header of the layer above names it; what it names itself is relative to this, as in QEMU.
    path: PathBuf,
    file: Arc<HostFile>,
    /// `None` for a raw file.
    header: Option<Header>,
}

impl Chain {
    /// Opens the files, without reading more than headers.
    pub(super) fn open(path: &Path, backing_dir: Option<&Path>) -> Result<Self> {
        let top = Layer::open(path.to_path_buf(), path, Format::Qcow2)?;
        let allowed = AllowedDirs::new(path, backing_dir)?;
        let mut chain = Self { layers: vec![top] };
        while let Some(next) = chain.next_layer(&allowed)? {
            chain.layers.push(next);
            chain.check_limits()?;
        }
        // Only now: a hint to convert the image must not be given for one that names files it should not.
        chain.check_supported()?;
        Ok(chain)
    }

    /// Opens the image alone, and names its backing file if that is a raw file.
    pub(super) fn open_top(path: &Path, backing_dir: Option<&Path>) -> Result<Option<(Self, Below)>> {
        let top = Layer::open(path.to_path_buf(), path, Format::Qcow2)?;
        let Some(backing) = top.header.as_ref().and_then(|header| header.backing.as_ref()) else { return Ok(None) };
        let (Ok(name), Some("raw")) = (local_name(&top, backing), backing.format.as_deref()) else { return Ok(None) };
        let below = top.path.parent().unwrap_or(Path::new("")).join(name);
        let is_allowed = AllowedDirs::new(path, backing_dir)?.resolve(&below, top.file.name()).is_ok();
        let chain = Self { layers: vec![top] };
        chain.check_supported()?;
        Ok(Some((chain, Below { path: below, is_allowed })))
    }

    /// The file below the last one so far.
    fn next_layer(&self, allowed: &AllowedDirs) -> Result<Option<Layer>> {
        let last = self.layers.last().expect("a chain has a top");
        let Some(backing) = last.header.as_ref().and_then(|header| header.backing.as_ref()) else {
            return Ok(None);
        };
        let path = last.path.parent().unwrap_or(Path::new("")).join(local_name(last, backing)?);
        let real_path = allowed.resolve(&path, last.file.name())?;
        let next = Layer::open(path, &real_path, self.recorded_format(last, backing)?)?;
        if self.layers.iter().any(|layer| layer.file.is_same_as(&next.file)) {
            return Err(Error::invalid(format!("{} is its own backing file", next.file.name())));
        }
        Ok(Some(next))
    }

    fn recorded_format(&self, layer: &Layer, backing: &Backing) -> Result<Format> {
        let (name, file) = (layer.file.name(), &backing.name);
        match backing.format.as_deref() {
            Some("raw") => Ok(Format::Raw),
            Some("qcow2") => Ok(Format::Qcow2),
            Some(format) => Err(Error::refused(format!(
                "{name}: its backing file {file} has the format {format:?}, which is not supported; {}",
                convert_hint(self.top().name())
            ))),
            None => Err(Error::refused(format!(
                "{name} does not record the format of its backing file {file}; record it with `qemu-img rebase -u -f \
                 qcow2 -F FORMAT -b {} {}`, where FORMAT is raw or qcow2",
                super::shell_word(file),
                super::shell_word(name)
            ))),
        }
    }

    fn check_limits(&self) -> Result<()> {
        let l1_bytes: u64 = self.layers.iter().filter_map(|layer| layer.header.as_ref()).map(|h| h.l1_bytes).sum();
        if self.layers.len() <= DEPTH_MAX && l1_bytes <= L1_BYTES_MAX {
            return Ok(());
        }
        let name = self.top().name();
        Err(Error::refused(format!(
            "{name} has too long a chain of backing files (at most {DEPTH_MAX} files and {L1_BYTES_MAX} bytes of \
             first-level tables); {}",
            convert_hint(name)
        )))
    }

    fn check_supported(&self) -> Result<()> {
        for layer in &self.layers {
            if let Some(what) = layer.header.as_ref().and_then(|header| header.unsupported.as_ref()) {
                let hint = convert_hint(self.top().name());
                return Err(Error::refused(format!("{} is {what}; {hint}", layer.file.name())));
            }
        }
        Ok(())
    }

    /// The image's own file.
    pub(super) fn top(&self) -> &HostFile {
        &self.layers[0].file
    }

    /// All its files, the image's own first.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<HostFile>> {
        self.layers.iter().map(|layer| &layer.file)
    }

    /// Lets imago open the files; `imago_bytes` will count what it reads by itself.
    pub(super) fn assemble(self, imago_bytes: &Arc<AtomicU64>) -> Result<FormatAccess<LayerFile>> {
        let mut below = None;
        for layer in self.layers.into_iter().rev() {
            below = Some(layer.assemble(below.take(), imago_bytes)?);
        }
        Ok(below.expect("a chain has a top"))
    }
}

impl Layer {
    /// Opens the file at `real_path`; errors name it `path`.
    fn open(path: PathBuf, real_path: &Path, format: Format) -> Result<Self> {
        let file = HostFile::open(real_path, path.display().to_string())?;
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(Header::read(&file)?),
        };
        Ok(Self { path, file: Arc::new(file), header })
    }

    fn assemble(
        self,
        below: Option<FormatAccess<LayerFile>>,
        imago_bytes: &Arc<AtomicU64>,
    ) -> Result<FormatAccess<LayerFile>> {
        let cluster_bytes = self.header.as_ref().map_or(1, |header| header.cluster_bytes);
        let storage = LayerFile::new(Arc::clone(&self.file), cluster_bytes, Arc::clone(imago_bytes));
        let image = if self.header.is_some() {
            let builder = Qcow2::<LayerFile>::builder(storage).backing(below).data_file(None);
            builder.open(DenyImplicitOpenGate::default()).map(FormatAccess::new)
        } else {
            Raw::open_image(storage, false).map(FormatAccess::new)
        };
        image.map_err(|error| imago_error(self.file.name(), error))
    }
}

/// The backing file's name, if it is that of a local file.
fn local_name<'a>(layer: &Layer, backing: &'a Backing) -> Result<&'a str> {
    // QEMU's rule: a colon before the first slash ends a protocol's name, `json:` and `nbd:` among them.
    let first_part = backing.name.split('/').next().unwrap_or_default();
    if first_part.contains(':') {
        return Err(Error::refused(format!(
            "{}: its backing file {:?} is not a plain path",
            layer.file.name(),
            backing.name
        )));
    }
    Ok(&backing.name)
}

/// Directories that may contain backing files, symbolic links resolved.
struct AllowedDirs(Vec<PathBuf>);

impl AllowedDirs {
    fn new(image: &Path, backing_dir: Option<&Path>) -> Result<Self> {
        let own = match image.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let resolve = |dir: &Path| dir.canonicalize().map_err(|error| Error::io("opening", dir, error));
        std::iter::once(own).chain(backing_dir).map(resolve).collect::<Result<_>>().map(Self)
    }

    /// The real path of a backing file that may be opened. `image` is the file that names it.
    fn resolve(&self, path: &Path, image: &str) -> Result<PathBuf> {
        let real_path = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found(format!("{}, the backing file of {image},", path.display()))
            }
            _ => Error::io("opening", path, error),
        })?;
        if self.0.iter().any(|dir| real_path.starts_with(dir)) {
            return Ok(real_path);
        }
        Err(Error::refused(format!(
            "{image}: its backing file {} lies outside the image's directory; if it belongs there, allow its directory \
             with --backing-dir",
            real_path.display()
        )))
    }
}
