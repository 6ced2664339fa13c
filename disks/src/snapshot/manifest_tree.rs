//! A snapshot's manifest, read lazily through the cache.

use std::sync::Arc;

use chunkstore::format::NodeId;
use chunkstore::format::limits::{FANOUT, SEGMENT_BYTES};
use chunkstore::format::manifest::{Inner, Leaf, Node, height_for, slot_segments};
use chunkstore::{Error, Result};

use crate::chunk_cache::{Cached, ChunkCache, Key, Retry};

/// The tree of one snapshot.
pub(super) struct ManifestTree {
    root: Option<NodeId>,
    height: u8,
    /// Number of segments of the image.
    segments: u64,
}

/// A leaf in memory.
pub(super) struct CachedLeaf(Arc<Cached>);

impl CachedLeaf {
    pub(super) fn leaf(&self) -> &Leaf {
        match self.0.node() {
            Some(Node::Leaf(leaf)) => leaf,
            _ => unreachable!("it was looked at when this was made"),
        }
    }
}

/// Result of one step down: a child, or the end of the way.
enum Step {
    Down(NodeId),
    /// All zeros; the next segment that can hold data.
    Skip(u64),
}

impl ManifestTree {
    pub(super) fn new(root: Option<NodeId>, size_bytes: u64) -> Self {
        Self { root, height: height_for(size_bytes), segments: size_bytes.div_ceil(SEGMENT_BYTES as u64) }
    }

    /// The root, and its height.
    pub(super) fn root(&self) -> Option<(NodeId, u8)> {
        self.root.map(|root| (root, self.height))
    }

    /// The leaf of a segment; none if all of it is zero.
    pub(super) async fn leaf(&self, cache: &ChunkCache, segment: u64, retry: &mut Retry) -> Result<Option<CachedLeaf>> {
        match self.leaf_id(cache, segment, retry).await? {
            Step::Down(id) => read_leaf(cache, id, retry).await.map(Some),
            Step::Skip(_) => Ok(None),
        }
    }

    /// The first segment from this one on that holds data, with the name of its leaf.
    pub(super) async fn next_leaf_id(
        &self,
        cache: &ChunkCache,
        mut segment: u64,
        retry: &mut Retry,
    ) -> Result<Option<(u64, NodeId)>> {
        while segment < self.segments {
            match self.leaf_id(cache, segment, retry).await? {
                Step::Down(id) => return Ok(Some((segment, id))),
                Step::Skip(next) => segment = next,
            }
        }
        Ok(None)
    }

    async fn leaf_id(&self, cache: &ChunkCache, segment: u64, retry: &mut Retry) -> Result<Step> {
        let Some(mut id) = self.root.filter(|_| segment < self.segments) else { return Ok(Step::Skip(u64::MAX)) };
        for height in (1..=self.height).rev() {
            let cached = cache.get(Key::Node(id), retry).await?;
            match step(inner(&cached, id, height)?, segment) {
                Step::Down(child) => id = child,
                skip @ Step::Skip(_) => return Ok(skip),
            }
        }
        Ok(Step::Down(id))
    }
}

/// Reads the leaf `id`.
pub(super) async fn read_leaf(cache: &ChunkCache, id: NodeId, retry: &mut Retry) -> Result<CachedLeaf> {
    let cached = cache.get(Key::Node(id), retry).await?;
    match cached.node() {
        Some(Node::Leaf(_)) => Ok(CachedLeaf(cached)),
        found => Err(wrong_height(id, found, 0)),
    }
}

/// An inner node that must have this height.
fn inner(cached: &Cached, id: NodeId, height: u8) -> Result<&Inner> {
    match cached.node() {
        Some(Node::Inner(inner)) if inner.height() == height => Ok(inner),
        found => Err(wrong_height(id, found, height)),
    }
}

pub(super) fn wrong_height(id: NodeId, found: Option<&Node>, wanted: u8) -> Error {
    let found = found.map_or(0, Node::height);
    Error::damaged(format!("manifest node {id}"), format!("has height {found} where {wanted} belongs"))
}

/// From an inner node toward a segment below it.
fn step(inner: &Inner, segment: u64) -> Step {
    let below = slot_segments(inner.height());
    let slot = segment / below % FANOUT as u64;
    let first = inner.children().partition_point(|(child, _)| u64::from(*child) < slot);
    match inner.children().get(first) {
        Some((child, id)) if u64::from(*child) == slot => Step::Down(*id),
        next => {
            let skipped = next.map_or(FANOUT as u64, |(child, _)| u64::from(*child));
            let first_below = segment / below - slot;
            Step::Skip((first_below + skipped).saturating_mul(below))
        }
    }
}
