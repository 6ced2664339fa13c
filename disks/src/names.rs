//! Which snapshots there are to see: those of the local catalog, and where there is an upstream, its too.

use std::path::PathBuf;

use chunkstore::Result;
use chunkstore::catalog::{Catalog, ImageName, Lease, Snapshot, SnapshotName};

/// Lists and opens snapshots. Calls return soon.
pub trait Names: Send + Sync {
    /// All images, in order.
    fn images(&self) -> Result<Vec<ImageName>>;

    /// The snapshots of an image, the oldest first. None if there is no such image.
    fn snapshots(&self, image: &ImageName) -> Result<Vec<SnapshotName>>;

    /// Reads one.
    fn read(&self, name: &SnapshotName) -> Result<Snapshot>;

    /// Reads one and keeps gc from it until the lease is dropped.
    fn open(&self, name: &SnapshotName) -> Result<Opened>;
}

/// A snapshot that is in use.
pub struct Opened {
    /// What it is.
    pub snapshot: Snapshot,
    /// Keeps it; none where nothing of it is here.
    pub lease: Option<Lease>,
}

/// The snapshots of a local store.
pub struct LocalNames {
    dir: PathBuf,
    catalog: Catalog,
}

impl LocalNames {
    /// Those of the store in `dir`, whose catalog this is.
    pub fn new(dir: impl Into<PathBuf>, catalog: Catalog) -> Self {
        Self { dir: dir.into(), catalog }
    }
}

impl Names for LocalNames {
    fn images(&self) -> Result<Vec<ImageName>> {
        self.catalog.images()
    }

    fn snapshots(&self, image: &ImageName) -> Result<Vec<SnapshotName>> {
        let times = self.catalog.times(image)?;
        Ok(times.into_iter().map(|time| SnapshotName { image: image.clone(), time }).collect())
    }

    fn read(&self, name: &SnapshotName) -> Result<Snapshot> {
        self.catalog.read(name)
    }

    fn open(&self, name: &SnapshotName) -> Result<Opened> {
        let (lease, snapshot) = Lease::of(&self.dir, &self.catalog, name)?;
        Ok(Opened { snapshot, lease: Some(lease) })
    }
}
