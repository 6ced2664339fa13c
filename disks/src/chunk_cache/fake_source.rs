//! Shared parts of the tests of the data path: snapshots in memory, and a source that counts, fails and waits on
//! demand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use chunkstore::catalog::{Entry as CatalogEntry, Snapshot, State};
use chunkstore::format::limits::{SEGMENT_BYTES, ZERO_BLOCK_BYTES};
use chunkstore::format::manifest::{Assembler, ChunkSource, Entry, Leaf, Node};
use chunkstore::format::{Chunk, ChunkId, NodeId};
use chunkstore::testing::Rng;
use chunkstore::{Error, Result};
use tokio::runtime::Handle;

use super::{ChunkCache, ChunkCacheOptions};

/// A part of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// So many zero blocks.
    Zero(u32),
    /// A chunk of this length, its content by a seed.
    Data(u32, u64),
}

/// A snapshot's bytes, by segment; what isn't there is zero.
#[derive(Default)]
pub(crate) struct Truth {
    segments: BTreeMap<u64, Vec<u8>>,
    /// Where chunks are.
    pub(crate) data: Vec<std::ops::Range<u64>>,
}

impl Truth {
    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| {
            let segment = self.segments.get(&(at / SEGMENT_BYTES as u64));
            segment.and_then(|bytes| bytes.get((at % SEGMENT_BYTES as u64) as usize)).copied().unwrap_or(0)
        };
        (offset..offset + len as u64).map(byte).collect()
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.data.iter().map(|range| range.end - range.start).sum()
    }

    /// The first byte at or after `offset` that is data.
    pub(crate) fn next_data(&self, offset: u64) -> Option<u64> {
        self.data.iter().find(|range| range.end > offset).map(|range| range.start.max(offset))
    }
}

/// A source in memory.
#[derive(Default)]
pub(crate) struct Fake {
    chunks: Mutex<HashMap<ChunkId, Vec<u8>>>,
    nodes: Mutex<HashMap<NodeId, Vec<u8>>>,
    /// Chunks in the order in which they were asked for.
    asked: Mutex<Vec<ChunkId>>,
    asked_nodes: Mutex<Vec<NodeId>>,
    damaged: Mutex<HashSet<ChunkId>>,
    /// Number of calls that fail as unreachable.
    unreachable_calls: Mutex<u64>,
    panics: AtomicBool,
    /// Whether chunks are ready without waiting.
    is_at_hand: AtomicBool,
    is_shut: Mutex<bool>,
    opens: Condvar,
}

/// Bytes that are never zero, by a seed.
pub(crate) fn content(bytes: u32, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..bytes).map(|_| rng.number() as u8 | 1).collect()
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn put_chunk(&self, bytes: Vec<u8>) -> ChunkId {
        let id = ChunkId::of(&bytes);
        self.chunks.lock().unwrap().insert(id, bytes);
        id
    }

    pub(crate) fn put_node(&self, node: &Node) -> NodeId {
        let encoding = node.encode();
        let id = NodeId::of(&encoding);
        self.nodes.lock().unwrap().insert(id, encoding);
        id
    }

    /// Makes a snapshot of these segments, in order.
    pub(crate) fn snapshot(&self, segments: &[(u64, Vec<Part>)], size_bytes: u64) -> (Snapshot, Truth) {
        let (mut assembler, mut truth) = (Assembler::default(), Truth::default());
        let put = &mut |node: Node, _| Ok::<_, Infallible>(self.put_node(&node));
        for (segment, parts) in segments {
            let (mut bytes, mut entries) = (Vec::new(), Vec::new());
            for part in parts {
                match *part {
                    Part::Zero(blocks) => {
                        entries.push(Entry::Zero { bytes: blocks * ZERO_BLOCK_BYTES as u32 });
                        bytes.resize(bytes.len() + blocks as usize * ZERO_BLOCK_BYTES, 0);
                    }
                    Part::Data(len, seed) => {
                        let start = segment * SEGMENT_BYTES as u64 + bytes.len() as u64;
                        truth.data.push(start..start + u64::from(len));
                        let chunk = content(len, seed);
                        bytes.extend_from_slice(&chunk);
                        entries.push(Entry::Chunk { id: self.put_chunk(chunk), bytes: len });
                    }
                }
            }
            let leaf = self.put_node(&Node::Leaf(Leaf::new(entries).unwrap()));
            truth.segments.insert(*segment, bytes);
            assembler.push(*segment, leaf, put).unwrap();
        }
        let root = assembler.finish(size_bytes, put).unwrap();
        (snapshot(root, size_bytes), truth)
    }

    /// How often chunks were asked for, in all.
    pub(crate) fn asked(&self) -> Vec<ChunkId> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn asked_nodes(&self) -> usize {
        self.asked_nodes.lock().unwrap().len()
    }

    pub(crate) fn damage(&self, id: ChunkId, is_damaged: bool) {
        let mut damaged = self.damaged.lock().unwrap();
        if is_damaged {
            damaged.insert(id)
        } else {
            damaged.remove(&id)
        };
    }

    pub(crate) fn fail_calls(&self, calls: u64) {
        *self.unreachable_calls.lock().unwrap() = calls;
    }

    /// Makes chunks ready without waiting.
    pub(crate) fn if_ready(&self, is_at_hand: bool) {
        self.is_at_hand.store(is_at_hand, Ordering::Relaxed);
    }

    pub(crate) fn panic(&self, panics: bool) {
        self.panics.store(panics, Ordering::Relaxed);
    }

    /// Lets callers wait until it is opened.
    pub(crate) fn shut(&self, is_shut: bool) {
        *self.is_shut.lock().unwrap() = is_shut;
        self.opens.notify_all();
    }

    fn enter(&self) -> Result<()> {
        let shut = self.is_shut.lock().unwrap();
        drop(self.opens.wait_while(shut, |is_shut| *is_shut).unwrap());
        assert!(!self.panics.load(Ordering::Relaxed), "as it was told");
        let mut calls = self.unreachable_calls.lock().unwrap();
        if *calls > 0 {
            *calls -= 1;
            return Err(Error::unreachable("nobody is there"));
        }
        Ok(())
    }
}

impl ChunkSource for Fake {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        self.asked.lock().unwrap().extend(ids);
        self.enter()?;
        // As a store does, which reads in the order of places.
        for (at, id) in ids.iter().enumerate().rev() {
            let is_damaged = self.damaged.lock().unwrap().contains(id);
            let bytes = self.chunks.lock().unwrap().get(id).filter(|_| !is_damaged).cloned();
            let chunk = bytes.ok_or_else(|| Error::damaged(format!("chunk {id}"), "as it was told"));
            each(at, chunk.and_then(|bytes| Chunk::verify(*id, bytes)))?;
        }
        Ok(())
    }

    fn chunk_at_hand(&self, id: ChunkId) -> Option<Chunk> {
        let is_there = self.is_at_hand.load(Ordering::Relaxed) && self.chunks.lock().unwrap().contains_key(&id);
        is_there.then(|| self.chunk(id).ok()).flatten()
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        self.asked_nodes.lock().unwrap().push(id);
        self.enter()?;
        let encoding = self.nodes.lock().unwrap().get(&id).cloned();
        Node::verify(id, &encoding.ok_or_else(|| Error::damaged(format!("manifest node {id}"), "absent"))?)
    }
}

/// A snapshot of a tree.
pub(crate) fn snapshot(root: Option<NodeId>, virtual_bytes: u64) -> Snapshot {
    let entry = CatalogEntry {
        image: "web01".parse().unwrap(),
        time: "20261120T020000Z".parse().unwrap(),
        root,
        virtual_bytes,
        labels: BTreeMap::new(),
        group: None,
        origin: "00112233445566778899aabbccddeeff".to_owned(),
        created: "2026-11-20T02:00:07Z".parse().unwrap(),
        attachments: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    Snapshot::create(entry, State::default()).unwrap()
}

/// A cache over a fake source, on the runtime of this test.
pub(crate) fn cache(source: &Arc<Fake>, options: ChunkCacheOptions) -> Arc<ChunkCache> {
    ChunkCache::with_options(source.clone(), Handle::current(), options)
}
