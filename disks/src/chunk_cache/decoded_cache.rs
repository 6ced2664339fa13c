//! Decoded chunks and manifest nodes, bounded in bytes.
//!
//! Only what was verified comes in: a [`Cached`] is made from a [`Chunk`] or a [`Node`] and from nothing else. The
//! bound counts what an entry takes in memory, not only what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chunkstore::format::manifest::Node;
use chunkstore::format::{Chunk, ChunkId, NodeId};
use quick_cache::sync::{Cache as QuickCache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// Key of a chunk or node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A chunk.
    Chunk(ChunkId),
    /// A manifest node.
    Node(NodeId),
}

/// Verified content in memory.
pub(crate) enum Cached {
    /// A chunk's bytes, and whether they were read ahead and no reader came yet.
    Chunk { bytes: Vec<u8>, is_unread: AtomicBool },
    /// A manifest node.
    Node(Node),
}

impl Cached {
    /// Takes a chunk's bytes over. Its buffer may have been made for a larger one before.
    pub(crate) fn chunk(chunk: Chunk, is_unread: bool) -> Self {
        let mut bytes = chunk.into_bytes();
        if bytes.capacity() - bytes.len() > bytes.len() / 8 {
            bytes.shrink_to_fit();
        }
        Self::Chunk { bytes, is_unread: AtomicBool::new(is_unread) }
    }

    /// The bytes of a chunk; none of a node.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Chunk { bytes, .. } => bytes,
            Self::Node(_) => &[],
        }
    }

    /// The node, if it is one.
    pub(crate) fn node(&self) -> Option<&Node> {
        match self {
            Self::Chunk { .. } => None,
            Self::Node(node) => Some(node),
        }
    }

    /// Notes that a reader came. Whether the content had been read ahead for it, and it is the first.
    pub(crate) fn begin_use(&self) -> bool {
        match self {
            // Most often it is clear; a plain load keeps the line shared between processors.
            Self::Chunk { is_unread, .. } => {
                is_unread.load(Ordering::Relaxed) && is_unread.swap(false, Ordering::Relaxed)
            }
            Self::Node(_) => false,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Chunk { bytes, .. } => bytes.capacity(),
            Self::Node(Node::Leaf(leaf)) => leaf.entries().len() * LEAF_ENTRY_BYTES,
            Self::Node(Node::Inner(inner)) => inner.children().len() * CHILD_BYTES,
        }
    }
}

/// An entry of a leaf with the offset where it begins.
const LEAF_ENTRY_BYTES: usize = size_of::<chunkstore::format::manifest::Entry>() + 4;
const CHILD_BYTES: usize = size_of::<(u8, NodeId)>();
/// Overhead of the cache and the allocator for each entry.
const OVERHEAD_BYTES: usize = 192;
/// A typical entry, by which the cache sizes its tables.
const TYPICAL_BYTES: u64 = 64 << 10;
/// The cache is divided so that threads rarely meet, into parts that hold many of the largest chunks.
const PART_BYTES_MIN: u64 = 32 << 20;
const PARTS_MAX: u64 = 8;
/// Content that is read ahead enters cold and must last until its reader arrives, so the cold part is large.
const HOT_PART: f64 = 0.6;

#[derive(Clone)]
struct ByMemory;

impl Weighter<Key, Arc<Cached>> for ByMemory {
    fn weight(&self, _: &Key, cached: &Arc<Cached>) -> u64 {
        (cached.memory_bytes() + OVERHEAD_BYTES) as u64
    }
}

/// The content that was decoded last or is used often.
pub(crate) struct DecodedCache {
    entries: QuickCache<Key, Arc<Cached>, ByMemory>,
    bytes_max: u64,
}

impl DecodedCache {
    /// Holds at most so many bytes.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let options = OptionsBuilder::new()
            .weight_capacity(bytes_max)
            .estimated_items_capacity((bytes_max / TYPICAL_BYTES).max(16) as usize)
            .shards((bytes_max / PART_BYTES_MIN).clamp(1, PARTS_MAX) as usize)
            .hot_allocation(HOT_PART)
            .build()
            .expect("both capacities are given");
        let entries =
            QuickCache::with_options(options, ByMemory, DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self { entries, bytes_max }
    }

    /// Finds what a reader asks for.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Cached>> {
        self.entries.get(key)
    }

    /// Finds something without keeping it longer for that.
    pub(crate) fn peek(&self, key: &Key) -> Option<Arc<Cached>> {
        self.entries.peek(key)
    }

    /// Keeps something. What does not fit at all is not kept.
    pub(crate) fn insert(&self, key: Key, cached: Arc<Cached>) {
        self.entries.insert(key, cached);
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.weight()
    }

    /// The bound.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_in_bytes_holds() {
        for bytes_max in [0, 1 << 20, 4 << 20, 100 << 20] {
            let cache = DecodedCache::new(bytes_max);
            for number in 0..400u32 {
                let mut bytes = Vec::with_capacity(600_000);
                bytes.resize(if number % 3 == 0 { 1_000 } else { 500_000 }, 0);
                bytes[..4].copy_from_slice(&number.to_le_bytes());
                let chunk = Chunk::hash(bytes);
                let key = Key::Chunk(chunk.id());
                cache.insert(key, Arc::new(Cached::chunk(chunk, false)));
                assert!(cache.bytes() <= bytes_max, "{} of {bytes_max}", cache.bytes());
            }
            assert!(cache.bytes() >= bytes_max / 2, "{} of {bytes_max}", cache.bytes());
        }
    }

    #[test]
    fn a_buffer_made_for_more_is_cut() {
        let mut bytes = Vec::with_capacity(1 << 20);
        bytes.extend_from_slice(&[7; 5000]);
        let cached = Cached::chunk(Chunk::hash(bytes), true);
        assert!(cached.memory_bytes() < 6000);
        assert!(cached.begin_use() && !cached.begin_use(), "only the first reader finds it unread");
    }
}
