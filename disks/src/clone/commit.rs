//! Commit: makes a snapshot of a clone's disk as it is at one moment, while the guest goes on writing.
//!
//! The written layers are frozen under a new one and ingested. When the snapshot is durable, it replaces the old
//! snapshot of the clone and the frozen layers. `clone.json` names all parts of the disk at every moment: a commit that
//! is cut short leaves a clone with more layers, and perhaps an unneeded snapshot.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use chunkstore::catalog::{ImageName, Lease, Snapshot, SnapshotName, SnapshotTime};
use chunkstore::ingest::{Base as IngestBase, IngestOptions};
use chunkstore::{Error, Progress, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::frozen_disk::FrozenDisk;
use super::layer::{self, Layer};
use super::layer_stack::{Base, BoundedLayer, LayerStack};
use super::open_clone::OpenClone;
use super::publisher::Publisher;
use super::{hold_reason, metadata, replaced, store_dir};
use crate::snapshot::SnapshotDisk;

/// Options of a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitOptions {
    /// Of which image; by default of the one that the clone's snapshot is of.
    pub image: Option<ImageName>,
    /// Of which time.
    pub time: SnapshotTime,
    /// Labels to keep with it.
    pub labels: BTreeMap<String, String>,
    /// When this is done.
    pub now: Timestamp,
}

/// Result of a commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The new snapshot, now the clone's.
    pub snapshot: Snapshot,
    /// The snapshot before.
    pub base: SnapshotName,
    /// Bytes of the blocks that were written or discarded; 0 if the snapshot is equal to the one before.
    pub written_bytes: u64,
}

/// The frozen part of the disk.
struct Frozen {
    disk: FrozenDisk,
    layers: Vec<Arc<Layer>>,
}

impl OpenClone {
    pub(super) fn commit(
        &self,
        publisher: &dyn Publisher,
        options: &CommitOptions,
        progress: &Progress,
    ) -> Result<Committed> {
        self.poison.contain_blocking(|| self.try_commit(publisher, options, progress))
    }

    fn try_commit(&self, publisher: &dyn Publisher, options: &CommitOptions, progress: &Progress) -> Result<Committed> {
        let Some(_one) = self.committing.try_lock() else {
            return Err(Error::busy(format!("clone {}", self.metadata().name), "another commit"));
        };
        self.settle(publisher)?;
        let base = self.hold_base(publisher)?;
        let image = options.image.clone().unwrap_or_else(|| base.image.clone());
        let name = SnapshotName::new(image, options.time);
        if name == base {
            return Err(Error::refused(format!("snapshot {name} exists already")));
        }
        let frozen = self.freeze(&name)?;
        let written_bytes = frozen.disk.changed_bytes()?;
        let snapshot = publisher.ingest(frozen.disk.clone(), &ingest_options(name, &base, options), progress)?;
        self.rebase(&frozen, &snapshot, publisher)?;
        if self.frees_room.load(Ordering::SeqCst) {
            let numbers = frozen.layers.iter().map(|layer| layer.number()).collect();
            layer::remove_later(&self.files, &self.dir, numbers, frozen.layers);
        }
        Ok(Committed { snapshot, base, written_bytes })
    }

    /// Removes the remains of interrupted operations and the layers that earlier commits dropped; later commits then
    /// free theirs. Called before commits can be requested.
    pub(super) fn remove_left_over(&self) -> Result<()> {
        self.frees_room.store(true, Ordering::SeqCst);
        let aside = self.dir.join(metadata::ASIDE);
        match self.files.remove(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", aside, error)),
            _ => {}
        }
        let named = self.metadata().numbers();
        let mut let_go = layer::unnamed(&self.dir, &named)?;
        // Now, because a commit may use their numbers.
        for number in let_go.split_off(&named[0]) {
            layer::remove(&*self.files, &self.dir, number);
        }
        if !let_go.is_empty() {
            layer::remove_later(&self.files, &self.dir, let_go.into_iter().collect(), Vec::new());
        }
        Ok(())
    }

    /// Ensures that the clone's snapshot still exists and is held: the commit is ingested as a change of it.
    fn hold_base(&self, publisher: &dyn Publisher) -> Result<SnapshotName> {
        let metadata = self.metadata().clone();
        let held = publisher.hold(&metadata.snapshot, &hold_reason(&metadata.name))?;
        if held.entry_id() == metadata.entry { Ok(metadata.snapshot) } else { Err(replaced(&metadata)) }
    }

    /// Releases what an earlier commit left held.
    pub(super) fn settle(&self, publisher: &dyn Publisher) -> Result<()> {
        let (name, releases) = {
            let metadata = self.metadata();
            (metadata.name.clone(), metadata.to_release())
        };
        release_all(publisher, &name, &releases)?;
        // Permanent with the next change: releasing twice does no harm.
        self.metadata().releases.clear();
        Ok(())
    }

    /// Puts a new layer on top, so that those below do not change any more. A top without blocks stays.
    fn freeze(&self, name: &SnapshotName) -> Result<Frozen> {
        self.stack().layers.iter().try_for_each(|bounded| bounded.layer.check())?;
        let number = self.metadata().next_layer();
        let new = Arc::new(Layer::create(&*self.files, &self.dir, number)?);
        let guard = self.cache.runtime().block_on(self.range_lock.lock_all());
        let is_written = !self.stack().top().is_empty();
        let size_bytes = self.size_bytes();
        let changed = self.change(
            |metadata| {
                // It will be held before it is the clone's.
                metadata.releases.push(name.clone());
                if is_written {
                    metadata.add_layer(size_bytes);
                }
            },
            |stack| {
                if is_written {
                    stack.layers.push(BoundedLayer { layer: new, bytes_max: u64::MAX });
                }
            },
        );
        let below = self.stack().below();
        drop(guard);
        // If it is unknown whether the metadata was stored, the top was given up, and the new layer may be named.
        let may_be_named = is_written && (changed.is_ok() || self.stack().top().check().is_err());
        if !may_be_named {
            layer::remove(&*self.files, &self.dir, number);
        }
        changed?;
        let layers = below.layers.iter().map(|bounded| Arc::clone(&bounded.layer)).collect();
        let shown = format!("clone {}", self.metadata().name);
        Ok(Frozen { disk: FrozenDisk::new(&shown, below, size_bytes, self.cache.runtime()), layers })
    }

    /// Puts the layers above the frozen ones on the new snapshot.
    fn rebase(&self, frozen: &Frozen, snapshot: &Snapshot, publisher: &dyn Publisher) -> Result<()> {
        let (name, root) = (self.metadata().name.clone(), snapshot.entry().root);
        let lease = root.map(|root| Lease::take(store_dir(&self.dir), &[root])).transpose()?;
        // It fails if the snapshot was removed before the lease was taken.
        publisher.hold(&snapshot.name(), &hold_reason(&name))?;
        let disk = Arc::new(SnapshotDisk::new(&self.cache, snapshot));
        let lease = lease.map(Arc::new);
        let is_frozen = |number| frozen.layers.iter().any(|layer| layer.number() == number);
        self.change(
            |metadata| {
                let old = metadata.snapshot.clone();
                // The size that the disk was shortened to meanwhile.
                let last = metadata.layers.iter().rfind(|layer| is_frozen(layer.number));
                let bytes_max = last.map_or(Some(metadata.base_bytes_max), |layer| layer.bytes_max);
                let bytes_max = bytes_max.unwrap_or(u64::MAX).min(snapshot.entry().virtual_bytes);
                metadata.layers.retain(|layer| !is_frozen(layer.number));
                metadata.rebase(snapshot, bytes_max);
                metadata.releases = vec![old];
            },
            |stack: &mut LayerStack| {
                stack.layers.retain(|bounded| !is_frozen(bounded.layer.number()));
                stack.base = Base { disk, bytes_max: 0, _lease: lease };
            },
        )?;
        if let Err(error) = self.settle(publisher) {
            tracing::warn!("clone {name}: releasing its old snapshot: {error}; the next commit does it");
        }
        Ok(())
    }
}

fn ingest_options(name: SnapshotName, base: &SnapshotName, options: &CommitOptions) -> IngestOptions {
    IngestOptions {
        name,
        labels: options.labels.clone(),
        group: None,
        base: IngestBase::Snapshot(base.clone()),
        threads: thread::available_parallelism().map_or(1, usize::from),
        now: options.now,
    }
}

/// Releases snapshots that were held for a clone.
pub(super) fn release_all(publisher: &dyn Publisher, clone: &ImageName, snapshots: &[SnapshotName]) -> Result<()> {
    snapshots.iter().try_for_each(|snapshot| publisher.release(snapshot, &hold_reason(clone)))
}

#[cfg(test)]
mod tests;
