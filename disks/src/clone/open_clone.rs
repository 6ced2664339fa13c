//! A clone's disk: written blocks come from its layers, all others from its snapshot.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use chunkstore::format::limits::IMAGE_BYTES_MAX;
use chunkstore::{Error, Result};

use super::BLOCK_BYTES;
use super::files::Files;
use super::layer::blocks_of;
use super::layer_stack::LayerStack;
use super::lock::CloneLock;
use super::metadata::CloneMetadata;
use super::range_lock::{RangeGuard, RangeLock};
use super::socket::Listening;
use crate::chunk_cache::ChunkCache;

/// The disk of one clone. Used by several threads at once.
pub struct CloneDisk {
    /// Where other processes ask for commits. First, because fields are dropped in order: once the lock is free, another
    /// process may listen there.
    pub(super) _listening: Option<Listening>,
    pub(super) shared: Arc<OpenClone>,
}

/// An open clone.
pub(super) struct OpenClone {
    /// The clone's directory.
    pub(super) dir: PathBuf,
    pub(super) files: Arc<dyn Files>,
    pub(super) cache: Arc<ChunkCache>,
    /// What is on the disk as `clone.json`. Whoever changes the stack holds it, so that both tell the same.
    pub(super) metadata: Mutex<CloneMetadata>,
    stack: RwLock<Arc<LayerStack>>,
    /// At least what the metadata says: growing is permanent with the next sync.
    size_bytes: AtomicU64,
    pub(super) range_lock: RangeLock,
    syncs: Syncs,
    /// Held by the one commit that may run.
    pub(super) committing: Mutex<()>,
    /// Whether commits free the layers that they let go of. It takes time, which who only commits does not spend.
    pub(super) frees_room: AtomicBool,
    _lock: CloneLock,
}

/// Syncs that wait for the same work.
#[derive(Default)]
struct Syncs {
    requested: AtomicU64,
    /// All that were requested up to this one are done. Locked by whoever works.
    done: tokio::sync::Mutex<u64>,
}

impl CloneDisk {
    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    /// Fills `buf` from `offset`. What is beyond the size reads as zeros.
    ///
    /// # Errors
    /// If something can't be had, or is damaged.
    pub async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.shared.stack().read(buf, offset).await
    }

    /// The first range at or after `offset` that holds data.
    ///
    /// # Errors
    /// If the manifest or the overlay can't be read.
    pub async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.shared.stack().next_data(offset, self.size_bytes()).await
    }

    /// Bytes that are not holes, no fewer than there are: what was overwritten may count twice.
    ///
    /// # Errors
    /// If the manifest or the overlay can't be read.
    pub async fn data_bytes(&self) -> Result<u64> {
        Ok(self.shared.stack().data_bytes().await?.min(self.size_bytes()))
    }

    /// Writes; beyond the size, the disk grows. Durable after [`CloneDisk::sync`].
    ///
    /// # Errors
    /// If the overlay can't be written, such as [`Error::OutOfSpace`]: nothing synced before is lost.
    pub async fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
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

    /// Makes a range read as zeros, and frees what it took. What is beyond the size is left out.
    ///
    /// # Errors
    /// As [`CloneDisk::write`].
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
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

    /// Makes all that was written before durable. Those who ask while one is at work share the next one's.
    ///
    /// # Errors
    /// If that fails; it then is not known what is durable, and every later write and sync fails too. Only a disk that
    /// is too full for a layer's map is different: once there is room, a sync makes all durable.
    pub async fn sync(&self) -> Result<()> {
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

    /// Changes the size, durably. What is beyond reads as zeros, also after it grows again.
    ///
    /// # Errors
    /// As [`CloneDisk::write`]; [`Error::Invalid`] beyond the largest size of an image.
    pub async fn set_size(&self, bytes: u64) -> Result<()> {
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

impl OpenClone {
    pub(super) fn new(
        dir: &Path,
        files: &Arc<dyn Files>,
        lock: CloneLock,
        cache: &Arc<ChunkCache>,
        metadata: CloneMetadata,
        stack: LayerStack,
    ) -> Self {
        Self {
            dir: dir.to_path_buf(),
            files: Arc::clone(files),
            cache: Arc::clone(cache),
            stack: RwLock::new(Arc::new(stack)),
            size_bytes: AtomicU64::new(metadata.size_bytes),
            metadata: Mutex::new(metadata),
            range_lock: RangeLock::default(),
            syncs: Syncs::default(),
            committing: Mutex::default(),
            frees_room: AtomicBool::new(false),
            _lock: lock,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    /// What the disk is made of now. Its top stays the same while the caller holds a range lock.
    pub(super) fn stack(&self) -> Arc<LayerStack> {
        Arc::clone(&self.stack.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for whoever changes the same blocks; for everyone, if the disk must grow. Returns the size, too.
    async fn lock_to_write(&self, range: &Range<u64>) -> (RangeGuard<'_>, u64) {
        loop {
            let grows = range.end > self.size_bytes();
            let guard = self.range_lock.lock(if grows { 0..u64::MAX } else { blocks_of(range) }).await;
            let size_bytes = self.size_bytes();
            if grows || range.end <= size_bytes {
                return (guard, size_bytes);
            }
        }
    }

    /// Writes. Blocks that are written in part, and that the top has not yet, are completed by what is seen there.
    async fn write(&self, stack: &LayerStack, bytes: &[u8], offset: u64) -> Result<()> {
        let (top, end) = (stack.top(), offset + bytes.len() as u64);
        let is_missing = |at: u64| !at.is_multiple_of(BLOCK_BYTES) && !top.has(at / BLOCK_BYTES);
        let start = if is_missing(offset) { offset / BLOCK_BYTES * BLOCK_BYTES } else { offset };
        let filled =
            if is_missing(end) { end.next_multiple_of(BLOCK_BYTES).min(self.size_bytes()).max(end) } else { end };
        if (start, filled) == (offset, end) {
            return top.write(bytes, offset);
        }
        let mut whole = vec![0; (filled - start) as usize];
        let (head, rest) = whole.split_at_mut((offset - start) as usize);
        let (middle, tail) = rest.split_at_mut(bytes.len());
        stack.read(head, start).await?;
        middle.copy_from_slice(bytes);
        stack.read(tail, end).await?;
        top.write(&whole, start)
    }

    fn sync(&self) -> Result<()> {
        self.stack().layers.iter().try_for_each(|bounded| bounded.layer.sync())?;
        // What a shorter size cut off is permanently so before this, and so can't be seen again.
        let has_grown = self.size_bytes() > self.metadata().size_bytes;
        if has_grown { self.change(|_| {}, |_| {}) } else { Ok(()) }
    }

    /// Makes the disk shorter. The bounds come first: if this is cut short, opening the clone cuts off the rest.
    fn shorten(&self, size_bytes: u64) -> Result<()> {
        let top = Arc::clone(self.stack().top());
        top.check()?;
        self.change(|metadata| metadata.shorten(size_bytes), |_| self.size_bytes.store(size_bytes, Ordering::SeqCst))?;
        top.cut(size_bytes)?;
        top.sync()
    }

    /// Changes what the clone consists of, durably, and then what is seen of it.
    ///
    /// # Errors
    /// Nothing is changed then. If nobody knows whether it is, nothing can be written any more.
    pub(super) fn change(
        &self,
        metadata: impl FnOnce(&mut CloneMetadata),
        stack: impl FnOnce(&mut LayerStack),
    ) -> Result<()> {
        let mut current = self.metadata();
        let mut changed = current.clone();
        changed.size_bytes = self.size_bytes();
        metadata(&mut changed);
        changed.store(&*self.files, &self.dir).map_err(|failed| {
            if failed.is_unknown {
                self.stack().layers.iter().for_each(|bounded| bounded.layer.give_up());
            }
            failed.error
        })?;
        let mut seen = LayerStack::clone(&self.stack());
        stack(&mut seen);
        seen.bound_by(&changed);
        *current = changed;
        *self.stack.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(seen);
        Ok(())
    }

    pub(super) fn metadata(&self) -> std::sync::MutexGuard<'_, CloneMetadata> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what blocks on a thread of its own.
    async fn in_background<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(self);
        let done = self.cache.runtime().spawn_blocking(move || work(&shared)).await;
        done.unwrap_or_else(|_| Err(Error::Interrupted))
    }
}

/// What was written is there when the clone is next opened, also if nobody asked for a sync.
impl Drop for OpenClone {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            tracing::error!(
                "closing the clone in {}: what was written since the last sync is lost: {error}",
                self.dir.display()
            );
        }
    }
}

fn end_of(offset: u64, bytes: u64) -> Result<u64> {
    let end = offset.checked_add(bytes).filter(|end| *end <= IMAGE_BYTES_MAX);
    end.ok_or_else(|| Error::invalid(format!("a disk can't be longer than {IMAGE_BYTES_MAX} bytes")))
}

/// As many zeros as a range is long, which is short.
fn zeros(range: &Range<u64>) -> Vec<u8> {
    vec![0; (range.end - range.start) as usize]
}
