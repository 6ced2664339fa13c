//! The content of the mount's directories, read anew at each look-up: snapshots come and go while it is mounted.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use chunkstore::catalog::{ImageName, SnapshotName, SnapshotTime};
use chunkstore::{Error, Result};

use crate::inodes::{Node, SnapshotFile};
use crate::open_disk::OpenDisk;
use disks::chunk_cache::ChunkCache;
use disks::clone::Clones;
use disks::disk::Disk;
use disks::names::Names;
use disks::snapshot::SnapshotDisk;

/// The ending of every disk's file.
const SUFFIX: &str = ".raw";
const LATEST: &str = "latest.raw";
const SNAPSHOTS: &str = "snapshots";
const CLONES: &str = "clones";
/// The directory that is not listed.
pub(crate) const HIDDEN: &str = ".vmfs";
/// The file in it.
pub(crate) const STATUS: &str = "status.json";

/// The directories of a mount and their sources.
pub(crate) struct Namespace {
    pub(crate) names: Arc<dyn Names>,
    pub(crate) clones: Arc<Clones>,
    pub(crate) cache: Arc<ChunkCache>,
    /// The store's directory.
    pub(crate) store: PathBuf,
    pub(crate) started: SystemTime,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryEntry {
    pub(crate) name: String,
    target: EntryTarget,
}

/// The target of an entry. Anything more expensive than a name is read when the listing gets there.
#[derive(Clone, Debug)]
enum EntryTarget {
    Snapshots,
    Clones,
    Status,
    Image(ImageName),
    Latest(ImageName),
    Snapshot(SnapshotName),
    Clone(String),
}

impl Namespace {
    /// The node called `name` in a directory.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Names::read`].
    pub(crate) fn child(&self, parent: &Node, name: &OsStr) -> Result<Node> {
        let name = name.to_str().ok_or_else(|| absent(name))?;
        let found = match (parent, name) {
            (Node::Root, SNAPSHOTS) => Some(Node::Snapshots),
            (Node::Root, CLONES) => Some(Node::Clones),
            (Node::Root, HIDDEN) => Some(Node::Hidden),
            (Node::Hidden, STATUS) => Some(Node::Status),
            (Node::Snapshots, _) => self.image(name)?,
            (Node::Image(image), LATEST) => self.newest(image)?.map(|_| Node::Latest(image.clone())),
            (Node::Image(image), _) => self.snapshot(image, name)?,
            (Node::Clones, _) => self.clone_of(name)?,
            _ => None,
        };
        found.ok_or_else(|| absent(name.as_ref()))
    }

    fn image(&self, name: &str) -> Result<Option<Node>> {
        let Ok(image) = name.parse::<ImageName>() else { return Ok(None) };
        Ok(self.newest(&image)?.map(|_| Node::Image(image)))
    }

    fn snapshot(&self, image: &ImageName, file: &str) -> Result<Option<Node>> {
        let Some(time) = file.strip_suffix(SUFFIX).and_then(SnapshotTime::from_compact) else { return Ok(None) };
        let snapshot = self.names.read(&SnapshotName::new(image.clone(), time))?;
        Ok(Some(Node::Snapshot(SnapshotFile::of(&snapshot))))
    }

    fn clone_of(&self, file: &str) -> Result<Option<Node>> {
        let Some(name) = file.strip_suffix(SUFFIX) else { return Ok(None) };
        let is_there = self.clones.list()?.iter().any(|clone| clone == name);
        Ok(is_there.then(|| Node::Clone(name.to_owned())))
    }

    /// The newest snapshot of an image; none if there is no such image.
    pub(crate) fn newest(&self, image: &ImageName) -> Result<Option<SnapshotName>> {
        Ok(self.names.snapshots(image)?.pop())
    }

    /// The entries of a directory, without `.` and `..`.
    ///
    /// # Errors
    /// As [`Names`].
    pub(crate) fn list(&self, node: &Node) -> Result<Vec<DirectoryEntry>> {
        match node {
            Node::Root => Ok(vec![listed(SNAPSHOTS, EntryTarget::Snapshots), listed(CLONES, EntryTarget::Clones)]),
            Node::Hidden => Ok(vec![listed(STATUS, EntryTarget::Status)]),
            Node::Snapshots => Ok(self
                .names
                .images()?
                .into_iter()
                .map(|image| listed(image.as_ref(), EntryTarget::Image(image.clone())))
                .collect()),
            Node::Image(image) => self.list_image(image),
            Node::Clones => {
                let clones = self.clones.list()?.into_iter();
                Ok(clones.map(|name| listed(&format!("{name}{SUFFIX}"), EntryTarget::Clone(name))).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn list_image(&self, image: &ImageName) -> Result<Vec<DirectoryEntry>> {
        let snapshots = self.names.snapshots(image)?;
        let latest = (!snapshots.is_empty()).then(|| listed(LATEST, EntryTarget::Latest(image.clone())));
        let snapshots = snapshots.into_iter().map(|name| listed(&target(&name), EntryTarget::Snapshot(name)));
        Ok(snapshots.chain(latest).collect())
    }

    /// The node of an entry; none if it has gone since it was listed.
    pub(crate) fn resolve(&self, listed: &DirectoryEntry) -> Option<Node> {
        Some(match &listed.target {
            EntryTarget::Snapshots => Node::Snapshots,
            EntryTarget::Clones => Node::Clones,
            EntryTarget::Status => Node::Status,
            EntryTarget::Image(image) => Node::Image(image.clone()),
            EntryTarget::Latest(image) => Node::Latest(image.clone()),
            EntryTarget::Clone(name) => Node::Clone(name.clone()),
            EntryTarget::Snapshot(name) => match self.names.read(name) {
                Ok(snapshot) => Node::Snapshot(SnapshotFile::of(&snapshot)),
                Err(Error::NotFound { .. }) => return None,
                Err(error) => {
                    tracing::warn!("{error}");
                    Node::Unreadable(name.clone())
                }
            },
        })
    }

    /// Opens a snapshot's disk and takes its lease.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is gone, or another has taken its name.
    pub(crate) fn open_snapshot(&self, file: &SnapshotFile) -> Result<OpenDisk> {
        let opened = self.names.open(&file.name)?;
        if opened.snapshot.entry_id() != file.entry_id {
            return Err(Error::not_found(format!("the snapshot that {} was", file.name)));
        }
        let disk = Disk::Snapshot(Arc::new(SnapshotDisk::new(&self.cache, &opened.snapshot)));
        Ok(OpenDisk { name: file.name.to_string(), disk, opened: Some(opened) })
    }

    /// Opens a clone's disk.
    ///
    /// # Errors
    /// As [`Clones::open`].
    pub(crate) fn open_clone(&self, name: &str) -> Result<OpenDisk> {
        let disk = self.clones.open(name, &self.cache, &*self.names)?;
        Ok(OpenDisk { name: format!("clone {name}"), disk: Disk::Clone(Arc::new(disk)), opened: None })
    }
}

/// Where an image's `latest.raw` leads.
pub(crate) fn target(name: &SnapshotName) -> String {
    format!("{}{SUFFIX}", name.time)
}

fn listed(name: &str, target: EntryTarget) -> DirectoryEntry {
    DirectoryEntry { name: name.to_owned(), target }
}

fn absent(name: &OsStr) -> Error {
    Error::not_found(name.to_string_lossy())
}
