//! Reads ahead of sequential readers, as [`Streams`](super::streams::Streams) plans it.

use std::ops::Range;
use std::sync::Arc;

use chunkstore::Result;
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::Leaf;

use super::SnapshotDisk;
use super::manifest_tree::read_leaf;
use super::streams::{Plan, Planned};
use crate::chunk_cache::Key;

/// Leaves that are fetched before their chunks are planned, so that far ones arrive in time.
const LEAVES_AHEAD: u64 = 2;

impl SnapshotDisk {
    /// Notes a read, and begins to read ahead if it is part of a stream.
    pub(super) fn follow(&self, read: &Range<u64>) {
        let Some(plan) = self.inner.streams().note(read) else { return };
        let inner = Arc::clone(&self.inner);
        self.inner.cache.runtime().spawn(async move { inner.read_ahead(plan).await });
    }
}

impl super::Inner {
    /// Loads the chunks of a plan. Errors are left for the reader to meet.
    async fn read_ahead(&self, plan: Plan) {
        let mut chunks = Vec::new();
        let until = self.plan_chunks(&plan, &mut chunks).await.unwrap_or(plan.from);
        self.streams().planned(plan.stream, &chunks, until);
    }

    /// Walks the leaves from the plan's begin on until there is enough; begins loading on the way. Where it came to.
    async fn plan_chunks(&self, plan: &Plan, chunks: &mut Vec<Planned>) -> Result<u64> {
        let mut retry = self.cache.new_retry();
        let (mut at, mut wanted_bytes) = (plan.from, plan.data_bytes);
        while wanted_bytes > 0 {
            let next = self.tree.next_leaf_id(&self.cache, at / SEGMENT_BYTES as u64, &mut retry).await?;
            let Some((segment, id)) = next else { return Ok(self.size_bytes) };
            let leaf = read_leaf(&self.cache, id, &mut retry).await?;
            let start = segment * SEGMENT_BYTES as u64;
            let before = chunks.len();
            self.cache.prefetch(take_chunks(leaf.leaf(), start, at, wanted_bytes, chunks));
            let taken_bytes = chunks[before..].iter().map(|chunk| chunk.bytes).sum::<u64>();
            wanted_bytes = wanted_bytes.saturating_sub(taken_bytes);
            at =
                if wanted_bytes > 0 { start + SEGMENT_BYTES as u64 } else { chunks.last().map_or(at, |last| last.end) };
        }
        for segment in 1..=LEAVES_AHEAD {
            let segment = at / SEGMENT_BYTES as u64 + segment;
            if let Some((_, id)) = self.tree.next_leaf_id(&self.cache, segment, &mut retry).await? {
                self.cache.prefetch([Key::Node(id)]);
            }
        }
        Ok(at)
    }
}

/// The chunks of a leaf at `start` that end after `at`, up to so many bytes.
fn take_chunks(leaf: &Leaf, start: u64, at: u64, wanted_bytes: u64, chunks: &mut Vec<Planned>) -> Vec<Key> {
    let mut taken_bytes = 0;
    let mut keys = Vec::new();
    for (offset, id, bytes) in leaf.chunks() {
        let bytes = u64::from(bytes);
        let end = start + offset as u64 + bytes;
        if end > at && taken_bytes < wanted_bytes {
            taken_bytes += bytes;
            chunks.push(Planned { end, bytes });
            keys.push(Key::Chunk(id));
        }
    }
    keys
}
