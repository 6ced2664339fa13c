//! The operations of the store's owner that clones need: the seam between this crate and the programs.

use chunkstore::catalog::{Snapshot, SnapshotName};
use chunkstore::ingest::IngestOptions;
use chunkstore::{Progress, Result};

use super::frozen_disk::FrozenDisk;

/// Holds snapshots and makes new ones. Calls block, and may be made from several threads.
pub trait Publisher: Send + Sync {
    /// Keeps a snapshot from being removed, durably, and returns it. No failure if it is held for this reason already.
    ///
    /// # Errors
    /// [`chunkstore::Error::NotFound`] if there is no such snapshot.
    fn hold(&self, snapshot: &SnapshotName, reason: &str) -> Result<Snapshot>;

    /// Takes that back, durably. No failure if it was not held for this reason, or is not there.
    ///
    /// # Errors
    /// If it can't be done.
    fn release(&self, snapshot: &SnapshotName, reason: &str) -> Result<()>;

    /// Makes a snapshot of a disk that differs from `options.base` in those ranges that it tells
    /// ([`chunkstore::source::ChangedRanges`]). When this returns, the snapshot is durable.
    ///
    /// # Errors
    /// As an ingest's; no snapshot appears then.
    fn ingest(&self, disk: FrozenDisk, options: &IngestOptions, progress: &Progress) -> Result<Snapshot>;
}
