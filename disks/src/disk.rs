//! A disk: a snapshot, which can only be read, or a clone, which can be written, too.

use std::ops::Range;
use std::sync::Arc;

use chunkstore::Result;

use crate::clone::CloneDisk;
use crate::snapshot::SnapshotDisk;

/// The disk behind a file.
#[derive(Clone)]
pub enum Disk {
    /// A snapshot's.
    Snapshot(Arc<SnapshotDisk>),
    /// A clone's.
    Clone(Arc<CloneDisk>),
}

impl Disk {
    /// Size in bytes; a clone's may change.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Snapshot(disk) => disk.size_bytes(),
            Self::Clone(disk) => disk.size_bytes(),
        }
    }

    /// Fills `buf` from `offset`; the caller keeps within the size.
    ///
    /// # Errors
    /// If something is missing or damaged.
    pub async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::Snapshot(disk) => disk.read(buf, offset).await,
            Self::Clone(disk) => disk.read(buf, offset).await,
        }
    }

    /// The first range at or after `offset` that holds data.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        match self {
            Self::Snapshot(disk) => disk.next_data(offset).await,
            Self::Clone(disk) => disk.next_data(offset).await,
        }
    }

    /// Bytes that are not holes.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub async fn data_bytes(&self) -> Result<u64> {
        match self {
            Self::Snapshot(disk) => disk.data_bytes().await,
            Self::Clone(disk) => disk.data_bytes().await,
        }
    }
}
