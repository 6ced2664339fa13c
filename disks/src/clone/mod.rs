//! Writable clones: layers of written blocks over a snapshot, under `clones/NAME/` in a store. CLONES.md specifies the
//! files.
//!
//! A synced write survives `kill -9` and a power cut; of the others, any block may be old or new. A clone holds its
//! snapshot for the reason `clone:NAME`, so that it is not removed. One process has a clone open at a time; others ask
//! it for commits through a socket. Imports `snapshot`, `chunk_cache`, `names` and `poison`; knows nothing of the far
//! store or of FUSE.

mod clone_disk;
mod commit;
#[cfg(test)]
mod fault_tests;
mod files;
mod frozen_disk;
#[cfg(any(test, feature = "test-util"))]
pub(crate) mod fuzzing;
mod layer;
mod layer_stack;
mod lifecycle;
mod lock;
mod map;
mod metadata;
mod open_clone;
#[cfg(test)]
mod panic_tests;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod power_cut_tests;
mod publisher;
mod range_lock;
#[cfg(test)]
mod recording;
mod socket;
#[cfg(test)]
mod test_store;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use chunkstore::catalog::{ImageName, SnapshotName};
use chunkstore::{Error, Progress, Result};
use jiff::Timestamp;

pub use self::clone_disk::CloneDisk;
pub use self::commit::{CommitOptions, Committed};
use self::files::{Files, HostFiles};
pub use self::frozen_disk::FrozenDisk;
use self::layer::Layer;
use self::layer_stack::{Base, BoundedLayer, LayerStack};
use self::lock::CloneLock;
use self::metadata::CloneMetadata;

use self::open_clone::OpenClone;
pub use self::publisher::Publisher;
use self::socket::Listening;
use crate::chunk_cache::ChunkCache;
use crate::names::Names;
use crate::snapshot::SnapshotDisk;

/// The unit in which writes are tracked.
const BLOCK_BYTES: u64 = 4096;
/// The directory of the clones in a store.
const DIR: &str = "clones";

/// The clones of a store, each a directory under `clones/`.
pub struct Clones {
    store_dir: PathBuf,
    dir: PathBuf,
    files: Arc<dyn Files>,
    publisher: Option<Arc<dyn Publisher>>,
}

/// Information about a clone that needs no opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneInfo {
    /// Its name.
    pub name: ImageName,
    /// Its snapshot.
    pub snapshot: SnapshotName,
    /// The disk's size in bytes, as it was last synced.
    pub size_bytes: u64,
    /// Bytes of the disk that its written blocks take.
    pub written_bytes: u64,
    /// When it was created.
    pub created: Timestamp,
    /// When it was last written.
    pub modified: SystemTime,
    /// Id of the process that has it open; 0 if that can't be read.
    pub open_by: Option<u32>,
}

impl Clones {
    /// The clones of the store in `dir`, for listing, reading and writing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let store_dir = dir.into();
        Self { dir: store_dir.join(DIR), store_dir, files: Arc::new(HostFiles), publisher: None }
    }

    /// Allows creating, discarding and committing, too.
    #[must_use]
    pub fn with_publisher(self, publisher: Arc<dyn Publisher>) -> Self {
        Self { publisher: Some(publisher), ..self }
    }

    /// Their names, in order.
    ///
    /// # Errors
    /// If they can't be listed.
    pub fn list(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io("listing", &self.dir, error);
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name.parse::<ImageName>().is_ok() && self.dir.join(&name).join(metadata::FILE).exists() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Describes a clone without opening it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`].
    pub fn info(&self, name: &str) -> Result<CloneInfo> {
        let dir = self.dir_of(&self.known_name(name)?);
        let metadata = CloneMetadata::read(&dir)?;
        let mut written_bytes = 0;
        for number in metadata.numbers() {
            written_bytes += layer::stored_bytes(&dir, number)?;
        }
        Ok(CloneInfo {
            open_by: lock::open_by(&dir),
            name: metadata.name,
            snapshot: metadata.snapshot,
            size_bytes: metadata.size_bytes,
            written_bytes,
            created: metadata.created,
            modified: modified(&dir),
        })
    }

    /// Opens a clone for reading and writing, for this process alone. With a publisher, other processes can from then
    /// on ask this one to commit it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Busy`] if another process has it open, or this one; [`Error::Damaged`].
    pub fn open(&self, name: &str, cache: &Arc<ChunkCache>, names: &dyn Names) -> Result<CloneDisk> {
        let shared = self.open_alone(name, cache, names)?;
        shared.remove_left_over()?;
        self.listen(shared)
    }

    /// Opens a clone without freeing the layers that commits have dropped: the next ordinary open does that.
    fn open_for_commit(&self, name: &str, cache: &Arc<ChunkCache>, names: &dyn Names) -> Result<CloneDisk> {
        self.listen(self.open_alone(name, cache, names)?)
    }

    fn open_alone(&self, name: &str, cache: &Arc<ChunkCache>, names: &dyn Names) -> Result<Arc<OpenClone>> {
        let dir = self.dir_of(&self.known_name(name)?);
        let lock = CloneLock::acquire(&dir)?;
        // The process that made or changed it may have been killed before these names were permanent.
        self.sync_dir(&self.dir)?;
        self.sync_dir(&dir)?;
        let metadata = CloneMetadata::read(&dir)?;
        let stack = open_stack(&*self.files, &dir, &metadata, cache, names)?;
        // Remains of an unfinished shortening, and data beyond a size that was not synced.
        stack.top().cut(metadata.size_bytes)?;
        stack.top().sync()?;
        Ok(Arc::new(OpenClone::new(&dir, &self.files, lock, cache, metadata, stack)))
    }

    fn listen(&self, shared: Arc<OpenClone>) -> Result<CloneDisk> {
        let listening = self.publisher.as_ref().map(|publisher| Listening::start(&shared, publisher)).transpose()?;
        Ok(CloneDisk { _listening: listening, shared })
    }

    /// Commits a clone: through the process that has it open, or else by opening it for that time. Blocks.
    ///
    /// # Errors
    /// As [`CloneDisk::commit`] and [`Clones::open`].
    pub fn commit(
        &self,
        name: &str,
        cache: &Arc<ChunkCache>,
        names: &dyn Names,
        options: &CommitOptions,
        progress: &Progress,
    ) -> Result<Committed> {
        match self.open_for_commit(name, cache, names) {
            Ok(disk) => disk.commit(self.publisher()?, options, progress),
            Err(busy @ Error::Busy { .. }) => {
                let asked = socket::ask(&self.dir_of(&self.known_name(name)?), options, progress)?;
                // Its holder is about to close it, or can't commit.
                asked.ok_or(busy)
            }
            Err(error) => Err(error),
        }
    }

    fn dir_of(&self, name: &ImageName) -> PathBuf {
        self.dir.join(name.as_ref())
    }

    /// Parses a name; one that no clone can have is not found.
    fn known_name(&self, name: &str) -> Result<ImageName> {
        name.parse().map_err(|_| Error::not_found(format!("clone {name:?} in {}", self.dir.display())))
    }

    fn publisher(&self) -> Result<&dyn Publisher> {
        self.publisher.as_deref().ok_or_else(|| Error::refused("clones can't be changed here"))
    }
}

fn open_stack(
    files: &dyn Files,
    dir: &Path,
    metadata: &CloneMetadata,
    cache: &Arc<ChunkCache>,
    names: &dyn Names,
) -> Result<LayerStack> {
    let opened = names.open(&metadata.snapshot)?;
    if opened.snapshot.entry_id() != metadata.entry {
        return Err(replaced(metadata));
    }
    let lease = opened.lease.map(Arc::new);
    let base = Base { disk: Arc::new(SnapshotDisk::new(cache, &opened.snapshot)), bytes_max: 0, _lease: lease };
    let layers = metadata.numbers().into_iter().map(|number| {
        let layer = Arc::new(Layer::open(files, dir, number)?);
        Ok(BoundedLayer { layer, bytes_max: 0 })
    });
    let mut stack = LayerStack { layers: layers.collect::<Result<_>>()?, base };
    stack.bound_by(metadata);
    Ok(stack)
}

fn replaced(metadata: &CloneMetadata) -> Error {
    let CloneMetadata { name, snapshot, .. } = metadata;
    Error::refused(format!("clone {name} is of another snapshot {snapshot} than the one that has this name now"))
}

/// The reason for which a clone's snapshot is held.
fn hold_reason(clone: &ImageName) -> String {
    format!("clone:{clone}")
}

/// The store of a clone's directory.
fn store_dir(dir: &Path) -> &Path {
    dir.ancestors().nth(2).expect("a clone lies two directories below its store")
}

fn checked_name(name: &str) -> Result<ImageName> {
    let rule = "letters, digits, '.', '_' or '-' are allowed, the first a letter or digit, at most 128";
    name.parse().map_err(|_| Error::invalid(format!("not a clone's name: {name:?}: {rule}")))
}

/// When anything of a clone was last written.
fn modified(dir: &Path) -> SystemTime {
    let times =
        fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok());
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}
