//! The disk of a clone: written blocks come from its layers, all others from its snapshot.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunkstore::{Progress, Result};

use super::BLOCK_BYTES;
use super::commit::{CommitOptions, Committed};
use super::layer::blocks_of;
use super::open_clone::{OpenClone, end_of, zeros};
use super::publisher::Publisher;
use super::socket::Listening;

/// The disk of one clone. Used by several threads at once.
pub struct CloneDisk {
    /// Where other processes ask for commits. First, because fields are dropped in order: once the lock is free,
    /// another process may listen there.
    pub(super) _listening: Option<Listening>,
    pub(super) shared: Arc<OpenClone>,
}

impl CloneDisk {
    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    /// Fills `buf` from `offset`. What is beyond the size reads as zeros.
    ///
    /// # Errors
    /// If something is missing or damaged.
    pub async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.shared.poison.contain(async { self.shared.stack().read(buf, offset).await }).await
    }

    /// The first range at or after `offset` that holds data.
    ///
    /// # Errors
    /// If the manifest or the overlay can't be read.
    pub async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.shared.poison.contain(async { self.shared.stack().next_data(offset, self.size_bytes()).await }).await
    }

    /// An upper bound of the bytes that are not holes: overwritten blocks may count twice.
    ///
    /// # Errors
    /// If the manifest or the overlay can't be read.
    pub async fn data_bytes(&self) -> Result<u64> {
        self.shared.poison.contain(async { Ok(self.shared.stack().data_bytes().await?.min(self.size_bytes())) }).await
    }

    /// Writes; beyond the size, the disk grows. Durable after [`CloneDisk::sync`].
    ///
    /// # Errors
    /// If the overlay can't be written, such as [`chunkstore::Error::OutOfSpace`]: nothing synced before is lost.
    pub async fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.shared.poison.contain(self.try_write(bytes, offset)).await
    }

    /// Makes a range read as zeros and frees its space. Ignores what is beyond the size.
    ///
    /// # Errors
    /// As [`CloneDisk::write`].
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.shared.poison.contain(self.try_discard(range)).await
    }

    /// Makes all that was written before durable. Concurrent calls share the next sync.
    ///
    /// # Errors
    /// If that fails; it then is not known what is durable, and every later write and sync fails too. Only a disk that
    /// is too full for a layer's map is different: once there is room, a sync makes all durable.
    pub async fn sync(&self) -> Result<()> {
        self.shared.poison.contain(self.try_sync()).await
    }

    /// Changes the size, durably. What is beyond reads as zeros, also after it grows again.
    ///
    /// # Errors
    /// As [`CloneDisk::write`]; [`chunkstore::Error::Invalid`] beyond the largest size of an image.
    pub async fn set_size(&self, bytes: u64) -> Result<()> {
        self.shared.poison.contain(self.try_set_size(bytes)).await
    }

    /// Makes a snapshot of the disk as it is when those writes have ended that were begun before. Blocks, and must not
    /// be called by a task.
    ///
    /// # Errors
    /// [`chunkstore::Error::Busy`] if a commit of this clone runs; [`chunkstore::Error::Refused`] if there is such a
    /// snapshot; what the ingest returns. Nothing that was written is lost then, and the clone can be committed again.
    pub fn commit(&self, publisher: &dyn Publisher, options: &CommitOptions, progress: &Progress) -> Result<Committed> {
        self.shared.commit(publisher, options, progress)
    }

    async fn try_write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let range = offset..end_of(offset, bytes.len() as u64)?;
        let (_guard, size_bytes) = self.shared.lock_to_write(&range).await;
        let stack = self.shared.stack();
        let written = self.shared.write(&stack, bytes, range.start).await;
        if range.end > size_bytes {
            match written {
                Ok(()) => self.shared.size_bytes.store(range.end, Ordering::SeqCst),
                // A part of it must not show when the disk grows.
                Err(_) => stack.top().cut(size_bytes)?,
            }
        }
        written
    }

    async fn try_discard(&self, range: Range<u64>) -> Result<()> {
        let _guard = self.shared.range_lock.lock(blocks_of(&range)).await;
        let size_bytes = self.size_bytes();
        let range = range.start..range.end.min(size_bytes);
        if range.is_empty() {
            return Ok(());
        }
        let stack = self.shared.stack();
        let whole_end = if range.end == size_bytes { range.end } else { range.end / BLOCK_BYTES * BLOCK_BYTES };
        let whole = range.start.next_multiple_of(BLOCK_BYTES)..whole_end;
        if whole.is_empty() {
            return self.shared.write(&stack, &zeros(&range), range.start).await;
        }
        for edge in [range.start..whole.start, whole.end..range.end] {
            if !edge.is_empty() {
                self.shared.write(&stack, &zeros(&edge), edge.start).await?;
            }
        }
        let shadowed = stack.below().shadowed(&whole).await?;
        stack.top().discard(whole.start..whole.end.next_multiple_of(BLOCK_BYTES), &shadowed)
    }

    async fn try_sync(&self) -> Result<()> {
        let shared = &self.shared;
        let request = shared.syncs.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut done = shared.syncs.done.lock().await;
        if *done >= request {
            return Ok(());
        }
        let begun = shared.syncs.requested.load(Ordering::SeqCst);
        shared.in_background(OpenClone::sync).await?;
        *done = begun;
        Ok(())
    }

    async fn try_set_size(&self, bytes: u64) -> Result<()> {
        end_of(0, bytes)?;
        let guard = self.shared.range_lock.lock_all().await;
        if bytes >= self.size_bytes() {
            self.shared.stack().top().check()?;
            self.shared.size_bytes.store(bytes, Ordering::SeqCst);
            drop(guard);
            return self.sync().await;
        }
        self.shared.in_background(move |shared| shared.shorten(bytes)).await
    }
}
