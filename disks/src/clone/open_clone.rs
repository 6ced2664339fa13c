//! A clone that this process has open: its layers, its metadata, and what changes both together.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use chunkstore::format::limits::IMAGE_BYTES_MAX;
use chunkstore::{Error, Result};

use super::BLOCK_BYTES;
use super::files::Files;
use super::layer::blocks_of;
use super::layer_stack::LayerStack;
use super::lock::CloneLock;
use super::metadata::CloneMetadata;
use super::range_lock::{RangeGuard, RangeLock};
use crate::chunk_cache::ChunkCache;
use crate::poison::{POISONED, Poison, lock};

/// An open clone.
pub(super) struct OpenClone {
    /// The clone's directory.
    pub(super) dir: PathBuf,
    pub(super) files: Arc<dyn Files>,
    pub(super) cache: Arc<ChunkCache>,
    /// The content of `clone.json`. Held while the stack is changed, so that both agree.
    pub(super) metadata: Mutex<CloneMetadata>,
    pub(super) stack: RwLock<Arc<LayerStack>>,
    /// At least what the metadata says: growing is permanent with the next sync.
    pub(super) size_bytes: AtomicU64,
    pub(super) range_lock: RangeLock,
    pub(super) syncs: Syncs,
    /// Held by the running commit.
    pub(super) committing: parking_lot::Mutex<()>,
    /// Whether commits free the layers that they drop. It takes time, so a process that only commits leaves it.
    pub(super) frees_room: AtomicBool,
    pub(super) poison: Poison,
    _lock: CloneLock,
}

/// Syncs that share one run.
#[derive(Default)]
pub(super) struct Syncs {
    pub(super) requested: AtomicU64,
    /// All syncs up to this request are done. Locked by the running sync.
    pub(super) done: tokio::sync::Mutex<u64>,
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
            poison: Poison::new(format!("clone {}", metadata.name)),
            metadata: Mutex::new(metadata),
            range_lock: RangeLock::default(),
            syncs: Syncs::default(),
            committing: parking_lot::Mutex::default(),
            frees_room: AtomicBool::new(false),
            _lock: lock,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    /// The current stack. Its top stays the same while the caller holds a range lock.
    pub(super) fn stack(&self) -> Arc<LayerStack> {
        Arc::clone(&self.stack.read().expect(POISONED))
    }

    /// Locks the blocks of a range, or all if the disk must grow. Returns the size, too.
    pub(super) async fn lock_to_write(&self, range: &Range<u64>) -> (RangeGuard<'_>, u64) {
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
    pub(super) async fn write(&self, stack: &LayerStack, bytes: &[u8], offset: u64) -> Result<()> {
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

    pub(super) fn sync(&self) -> Result<()> {
        self.stack().layers.iter().try_for_each(|bounded| bounded.layer.sync())?;
        // A cut by a shorter size is permanent before this, so the old content can't reappear.
        let has_grown = self.size_bytes() > self.metadata().size_bytes;
        if has_grown { self.change(|_| {}, |_| {}) } else { Ok(()) }
    }

    /// Makes the disk shorter. The bounds come first: if this is cut short, opening the clone cuts off the rest.
    pub(super) fn shorten(&self, size_bytes: u64) -> Result<()> {
        let top = Arc::clone(self.stack().top());
        top.check()?;
        self.change(|metadata| metadata.shorten(size_bytes), |_| self.size_bytes.store(size_bytes, Ordering::SeqCst))?;
        top.cut(size_bytes)?;
        top.sync()
    }

    /// Changes what the clone consists of, durably, and then what is seen of it.
    ///
    /// # Errors
    /// The clone is unchanged then. If that is not certain, all later writes fail.
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
        *self.stack.write().expect(POISONED) = Arc::new(seen);
        Ok(())
    }

    pub(super) fn metadata(&self) -> MutexGuard<'_, CloneMetadata> {
        lock(&self.metadata)
    }

    /// Runs blocking work on a thread of its own.
    pub(super) async fn in_background<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(self);
        let done = self.cache.runtime().spawn_blocking(move || shared.poison.contain_blocking(|| work(&shared))).await;
        done.unwrap_or_else(|_| Err(Error::Interrupted))
    }
}

/// Syncs, so that the next open finds all that was written.
impl Drop for OpenClone {
    fn drop(&mut self) {
        let synced = self.poison.contain_blocking(|| self.sync());
        if let (Err(_), Ok(stack)) = (self.poison.check(), self.stack.read()) {
            stack.layers.iter().for_each(|bounded| bounded.layer.give_up());
        }
        if let Err(error) = synced {
            tracing::error!(
                "closing the clone in {}: writes since the last sync are lost: {error}",
                self.dir.display()
            );
        }
    }
}

pub(super) fn end_of(offset: u64, bytes: u64) -> Result<u64> {
    let end = offset.checked_add(bytes).filter(|end| *end <= IMAGE_BYTES_MAX);
    end.ok_or_else(|| Error::invalid(format!("a disk can't be longer than {IMAGE_BYTES_MAX} bytes")))
}

/// As many zeros as a range is long, which is short.
pub(super) fn zeros(range: &Range<u64>) -> Vec<u8> {
    vec![0; (range.end - range.start) as usize]
}
