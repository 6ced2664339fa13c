//! A clone's disk: written blocks come from its overlay, all others from its snapshot.

use std::ops::Range;
use std::sync::Arc;

use chunkstore::{Error, Result};

use crate::snapshot_disk::SnapshotDisk;

/// The disk of one clone. Used by several threads at once.
pub struct CloneDisk {
    base: Arc<SnapshotDisk>,
}

impl CloneDisk {
    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    /// Fills `buf` from `offset`; the caller keeps within the size.
    ///
    /// # Errors
    /// If something can't be had, or is damaged.
    pub async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.base.read(buf, offset).await
    }

    /// The first range at or after `offset` that holds data.
    ///
    /// # Errors
    /// If the manifest or the overlay can't be read.
    pub async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.base.next_data(offset).await
    }

    /// Bytes that are not holes.
    ///
    /// # Errors
    /// If the manifest or the overlay can't be read.
    pub async fn data_bytes(&self) -> Result<u64> {
        self.base.data_bytes().await
    }

    /// Writes. Durable after [`CloneDisk::sync`].
    ///
    /// # Errors
    /// If the overlay can't be written, such as [`std::io::ErrorKind::StorageFull`]: nothing synced before is lost.
    pub async fn write(&self, _bytes: &[u8], _offset: u64) -> Result<()> {
        Err(Error::refused("clones can't be written yet"))
    }

    /// Makes a range read as zeros, and frees what it took.
    ///
    /// # Errors
    /// As [`CloneDisk::write`].
    pub async fn discard(&self, _range: Range<u64>) -> Result<()> {
        Err(Error::refused("clones can't be written yet"))
    }

    /// Makes all that was written before durable.
    ///
    /// # Errors
    /// If that fails; it then is not known what is durable, and every later call fails too.
    pub async fn sync(&self) -> Result<()> {
        Err(Error::refused("clones can't be written yet"))
    }

    /// Changes the size. What is beyond reads as zeros, also after it grows again.
    ///
    /// # Errors
    /// As [`CloneDisk::write`].
    pub async fn set_size(&self, _bytes: u64) -> Result<()> {
        Err(Error::refused("clones can't be written yet"))
    }
}
