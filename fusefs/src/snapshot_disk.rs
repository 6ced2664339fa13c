//! A snapshot's bytes, by offset.

use std::ops::Range;
use std::sync::Arc;

use chunkstore::catalog::Snapshot;
use chunkstore::id::NodeId;
use chunkstore::limits::SEGMENT_BYTES;
use chunkstore::manifest::LeafReader;
use chunkstore::{Error, Result};

use crate::pool::Pool;

/// The disk of one snapshot.
pub struct SnapshotDisk {
    pool: Arc<Pool>,
    root: Option<NodeId>,
    size_bytes: u64,
}

impl SnapshotDisk {
    /// The disk of `snapshot`, whose chunks come from `pool`.
    pub fn new(pool: &Arc<Pool>, snapshot: &Snapshot) -> Self {
        let entry = snapshot.entry();
        Self { pool: Arc::clone(pool), root: entry.root, size_bytes: entry.virtual_bytes }
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buf` from `offset`; the caller keeps within the size.
    ///
    /// # Errors
    /// If something can't be had, or is damaged.
    pub async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (root, size_bytes, bytes) = (self.root, self.size_bytes, buf.len());
        let read = self.in_background(move |pool| {
            let mut filled = vec![0; bytes];
            let leaves = LeafReader::new(&**pool.source(), root, size_bytes);
            let end = offset + bytes as u64;
            for segment in offset / SEGMENT_BYTES as u64..end.div_ceil(SEGMENT_BYTES as u64) {
                let Some((_, leaf)) = leaves.leaf(segment)? else { continue };
                for (at, id, chunk_bytes) in leaf.chunks() {
                    let start = segment * SEGMENT_BYTES as u64 + at as u64;
                    let (from, to) = (start.max(offset), (start + u64::from(chunk_bytes)).min(end));
                    if from < to {
                        let chunk = pool.source().chunk(id)?;
                        filled[(from - offset) as usize..(to - offset) as usize]
                            .copy_from_slice(&chunk.bytes()[(from - start) as usize..(to - start) as usize]);
                    }
                }
            }
            Ok(filled)
        });
        buf.copy_from_slice(&read.await?);
        Ok(())
    }

    /// The first range at or after `offset` that holds data.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok(self
            .ranges()
            .await?
            .into_iter()
            .find(|range| range.end > offset)
            .map(|range| range.start.max(offset)..range.end))
    }

    /// Bytes that are not holes.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub async fn data_bytes(&self) -> Result<u64> {
        Ok(self.ranges().await?.into_iter().map(|range| range.end - range.start).sum())
    }

    async fn ranges(&self) -> Result<Vec<Range<u64>>> {
        let (root, size_bytes) = (self.root, self.size_bytes);
        self.in_background(move |pool| {
            let leaves = LeafReader::new(&**pool.source(), root, size_bytes);
            let mut ranges = Vec::new();
            for segment in 0..size_bytes.div_ceil(SEGMENT_BYTES as u64) {
                let Some((_, leaf)) = leaves.leaf(segment)? else { continue };
                ranges.extend(leaf.chunks().map(|(at, _, bytes)| {
                    let start = segment * SEGMENT_BYTES as u64 + at as u64;
                    start..start + u64::from(bytes)
                }));
            }
            Ok(ranges)
        })
        .await
    }

    async fn in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pool = Arc::clone(&self.pool);
        let done = self.pool.runtime().spawn_blocking(move || work(&pool)).await;
        done.unwrap_or_else(|_| Err(Error::Interrupted))
    }
}
