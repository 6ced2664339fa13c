//! A snapshot as a disk: its bytes by offset.
//!
//! A read copies from decoded chunks and waits for those that are missing; missing or damaged content fails only the
//! reads of that range. Sequential readers are detected (`streams`) and read ahead of (`readahead`). Imports
//! `chunk_cache` and `poison`; knows nothing of clones, of the far store, or of FUSE.

mod data_bytes;
mod manifest_tree;
mod readahead;
mod streams;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use chunkstore::catalog::{Snapshot, SnapshotName};
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::Leaf;
use chunkstore::format::{ChunkId, EntryId};
use chunkstore::{Error, Result};

use self::manifest_tree::{ManifestTree, read_leaf};
use self::streams::Streams;
use crate::chunk_cache::{Cached, ChunkCache, Key, Lookup, Retry};
use crate::poison::{Poison, lock};

/// Most that is read ahead of one stream, and which part of the cache at most.
const WINDOW_BYTES_MAX: u64 = 8 << 20;
const WINDOW_CACHE_PART: u64 = 32;

/// The disk of one snapshot.
pub struct SnapshotDisk {
    inner: Arc<Inner>,
}

/// The state that is shared with readahead, which may briefly outlive the disk.
struct Inner {
    cache: Arc<ChunkCache>,
    name: SnapshotName,
    entry: EntryId,
    tree: ManifestTree,
    size_bytes: u64,
    /// As the ingest counted them, if the snapshot was made here.
    ingested_bytes: Option<u64>,
    streams: Mutex<Streams>,
    poison: Poison,
}

impl Inner {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        lock(&self.streams)
    }
}

/// The part of a chunk that a read needs.
struct Piece {
    id: ChunkId,
    chunk_bytes: u32,
    /// Range within the chunk.
    from: Range<usize>,
    /// Offset in the buffer.
    to: usize,
}

impl SnapshotDisk {
    /// The disk of `snapshot`, whose chunks come from `cache`.
    pub fn new(cache: &Arc<ChunkCache>, snapshot: &Snapshot) -> Self {
        let entry = snapshot.entry();
        let window_bytes_max = WINDOW_BYTES_MAX.min(cache.options().cache_bytes_max / WINDOW_CACHE_PART);
        let inner = Inner {
            cache: Arc::clone(cache),
            name: snapshot.name(),
            entry: snapshot.entry_id(),
            tree: ManifestTree::new(entry.root, entry.virtual_bytes),
            size_bytes: entry.virtual_bytes,
            ingested_bytes: snapshot.state.ingest.as_ref().map(|report| report.data_bytes),
            streams: Mutex::new(Streams::new(window_bytes_max)),
            poison: Poison::new(snapshot.name().to_string()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    /// Fills `buf` from `offset`; the caller keeps within the size. Ready at the first poll if all is in memory; may be
    /// polled outside the runtime.
    ///
    /// # Errors
    /// If something is missing or damaged. [`Error::Unreachable`] only after the cache's timeout.
    pub async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner
            .poison
            .contain(async {
                let Inner { cache, name, entry, .. } = &*self.inner;
                let range = offset..offset + buf.len() as u64;
                let reading = cache.stats().begin_read();
                if let Some(observer) = &cache.options().observer {
                    observer.observe(*entry, range.clone());
                }
                self.follow(&range);
                self.fill(buf, offset).await.map_err(|error| located(error, name, &range))?;
                reading.succeed(buf.len());
                Ok(())
            })
            .await
    }

    async fn fill(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let Inner { cache, tree, .. } = &*self.inner;
        let mut retry = cache.new_retry();
        while !buf.is_empty() {
            let (segment, at) = (offset / SEGMENT_BYTES as u64, (offset % SEGMENT_BYTES as u64) as usize);
            let (part, rest) = buf.split_at_mut(buf.len().min(SEGMENT_BYTES - at));
            match tree.leaf(cache, segment, &mut retry).await? {
                Some(leaf) => self.fill_from(leaf.leaf(), at, part, &mut retry).await?,
                None => part.fill(0),
            }
            offset += part.len() as u64;
            buf = rest;
        }
        Ok(())
    }

    /// Fills a part of a segment, which begins at `at` there. All that is missing is asked for before any of it is
    /// waited for; chunks are released as soon as they are copied.
    async fn fill_from(&self, leaf: &Leaf, at: usize, buf: &mut [u8], retry: &mut Retry) -> Result<()> {
        let cache = &self.inner.cache;
        let pieces = pieces(leaf, &(at..at + buf.len()));
        let keys: Vec<Key> = pieces.iter().map(|piece| Key::Chunk(piece.id)).collect();
        let mut filled = 0;
        for (piece, found) in pieces.iter().zip(cache.demand(&keys)) {
            let chunk = match found {
                Lookup::Hit(chunk) => chunk,
                coming @ Lookup::Pending(_) => cache.obtain(Key::Chunk(piece.id), coming, retry).await?,
            };
            buf[filled..piece.to].fill(0);
            filled = piece.to + piece.from.len();
            buf[piece.to..filled].copy_from_slice(piece.bytes_of(&chunk)?);
        }
        buf[filled..].fill(0);
        Ok(())
    }

    /// The first range at or after `offset` that holds data. Looks no further than it must, so the range may end where
    /// the next begins.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.inner
            .poison
            .contain(async {
                let Inner { cache, tree, name, size_bytes, .. } = &*self.inner;
                let mut retry = cache.new_retry();
                let mut at = offset;
                let located = |error| located(error, name, &(offset..*size_bytes));
                loop {
                    let next =
                        tree.next_leaf_id(cache, at / SEGMENT_BYTES as u64, &mut retry).await.map_err(located)?;
                    let Some((segment, id)) = next else { return Ok(None) };
                    let leaf = read_leaf(cache, id, &mut retry).await.map_err(located)?;
                    let start = segment * SEGMENT_BYTES as u64;
                    if let Some(run) = first_run(leaf.leaf(), at.saturating_sub(start) as usize) {
                        return Ok(Some(start + run.start as u64..(start + run.end as u64).min(*size_bytes)));
                    }
                    at = start + SEGMENT_BYTES as u64;
                }
            })
            .await
    }

    /// Bytes that are not holes. Reads all of the manifest if they are not known; one disk of a cache at a time does.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub async fn data_bytes(&self) -> Result<u64> {
        self.inner
            .poison
            .contain(async {
                if let Some(known) = self.data_bytes_if_known() {
                    return Ok(known);
                }
                let Inner { cache, tree, name, size_bytes, .. } = &*self.inner;
                let Some((root, height)) = tree.root() else { return Ok(0) };
                let _turn = cache.turn_to_count().await;
                let mut retry = cache.new_retry();
                data_bytes::below(cache, root, height, &mut retry)
                    .await
                    .map_err(|error| located(error, name, &(0..*size_bytes)))
            })
            .await
    }

    /// Bytes that are not holes, if that needs no reading: the ingest counted them, or someone asked before.
    fn data_bytes_if_known(&self) -> Option<u64> {
        let Some((root, _)) = self.inner.tree.root() else { return Some(0) };
        self.inner.ingested_bytes.or_else(|| self.inner.cache.known_data_bytes(root))
    }
}

impl Piece {
    fn bytes_of<'a>(&self, chunk: &'a Cached) -> Result<&'a [u8]> {
        let bytes = chunk.bytes();
        if bytes.len() != self.chunk_bytes as usize {
            let detail = format!("has {} bytes where the manifest says {}", bytes.len(), self.chunk_bytes);
            return Err(Error::damaged(format!("chunk {}", self.id), detail));
        }
        Ok(&bytes[self.from.clone()])
    }
}

/// Adds the place in the image to an error about damage.
fn located(error: Error, name: &SnapshotName, range: &Range<u64>) -> Error {
    match error {
        Error::Damaged { what, detail } => {
            let place = format!("{name} at {} to {}", range.start, range.end);
            Error::damaged(place, format!("{what}: {detail}"))
        }
        other => other,
    }
}

/// The chunks that a part of a segment needs, in order.
fn pieces(leaf: &Leaf, wanted: &Range<usize>) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(wanted.len() / (32 << 10) + 2);
    for (start, id, chunk_bytes) in leaf.chunks() {
        let end = start + chunk_bytes as usize;
        if start >= wanted.end {
            break;
        }
        if end > wanted.start {
            let (from, to) = (start.max(wanted.start), end.min(wanted.end));
            pieces.push(Piece { id, chunk_bytes, from: from - start..to - start, to: from - wanted.start });
        }
    }
    pieces
}

/// The first chunk that ends after `at`, with those that adjoin it.
fn first_run(leaf: &Leaf, at: usize) -> Option<Range<usize>> {
    let mut chunks =
        leaf.chunks().map(|(start, _, bytes)| start..start + bytes as usize).filter(|chunk| chunk.end > at);
    let first = chunks.next()?;
    let mut run = first.start.max(at)..first.end;
    for chunk in chunks {
        if chunk.start != run.end {
            break;
        }
        run.end = chunk.end;
    }
    Some(run)
}
