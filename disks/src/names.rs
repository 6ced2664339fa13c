//! The snapshots that can be opened: those of the local catalog and, with an upstream, those of the far store.

use std::path::PathBuf;

use chunkstore::Result;
use chunkstore::catalog::{Catalog, ImageName, Lease, Snapshot, SnapshotName};

/// Lists and opens snapshots. Calls return quickly.
pub trait Names: Send + Sync {
    /// All images, in order.
    fn images(&self) -> Result<Vec<ImageName>>;

    /// The snapshots of an image, the oldest first. None if there is no such image.
    fn snapshots(&self, image: &ImageName) -> Result<Vec<SnapshotName>>;

    /// Reads one.
    fn read(&self, name: &SnapshotName) -> Result<Snapshot>;

    /// Reads one and protects it from gc until the lease is dropped.
    fn open(&self, name: &SnapshotName) -> Result<Opened>;
}

/// An open snapshot.
pub struct Opened {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Protects it from gc; none where nothing of it is here.
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
