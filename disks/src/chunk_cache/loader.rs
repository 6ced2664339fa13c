//! Loads from the local source and, what that lacks, from the far one.
//!
//! The local source blocks its thread for a short time. The far one is asked by a task, so that a slow link holds no
//! decoder thread.

use std::cell::RefCell;
use std::sync::Arc;

use chunkstore::format::manifest::Node;
use chunkstore::format::{Chunk, ChunkId, NodeId};
use chunkstore::{Error, Result};

use super::decoded_cache::{Cached, Key};
use super::single_flight::LoadGuard;
use super::{ChunkCache, failure};
use crate::stats::Origin;
use crate::upstream::{FarSource, Fetching, Urgency};

impl ChunkCache {
    /// Does loads, and gives the waiting readers their outcome.
    pub(super) fn load(&self, batch: Vec<LoadGuard>) {
        let mut chunks = Vec::with_capacity(batch.len());
        for taken in batch {
            match taken.load().key() {
                Key::Chunk(id) => chunks.push((id, taken)),
                Key::Node(id) => self.load_node(id, taken),
            }
        }
        if let Some(far) = &self.options.far {
            let absent = chunks.extract_if(.., |(id, _)| far.is_absent(*id));
            absent.for_each(|(id, taken)| self.fetch_chunk(far, id, taken));
        }
        self.load_chunks(chunks);
    }

    /// Loads what the source has ready; gives back what it has not.
    pub(super) fn load_at_hand(&self, taken: LoadGuard) -> Option<LoadGuard> {
        let Key::Chunk(id) = taken.load().key() else { return Some(taken) };
        match self.source.chunk_at_hand(id) {
            Some(chunk) => self.chunk_came(taken, Ok(chunk), Origin::Local),
            None => return Some(taken),
        }
        None
    }

    fn load_chunks(&self, chunks: Vec<(ChunkId, LoadGuard)>) {
        let (ids, taken): (Vec<ChunkId>, Vec<LoadGuard>) = chunks.into_iter().unzip();
        if ids.is_empty() {
            return;
        }
        let taken: Vec<_> = taken.into_iter().map(|taken| RefCell::new(Some(taken))).collect();
        let given = self.source.chunks(&ids, &mut |at, chunk| {
            if let Some(taken) = taken[at].take() {
                self.local_chunk(ids[at], taken, chunk);
            }
            Ok(())
        });
        let error = given.err().unwrap_or_else(|| Error::unreachable("the store left a chunk out"));
        for (id, taken) in ids.iter().zip(taken) {
            if let Some(taken) = taken.into_inner() {
                self.local_chunk(*id, taken, Err(failure::repeated(&error)));
            }
        }
    }

    fn local_chunk(&self, id: ChunkId, taken: LoadGuard, chunk: Result<Chunk>) {
        match (chunk, &self.options.far) {
            (Err(Error::Damaged { .. }), Some(far)) => self.fetch_chunk(far, id, taken),
            (chunk, _) => self.chunk_came(taken, chunk, Origin::Local),
        }
    }

    fn fetch_chunk(&self, far: &Arc<dyn FarSource>, id: ChunkId, taken: LoadGuard) {
        let fetching = far.fetch(id, urgency(&taken));
        self.when_fetched(taken, fetching, |cache, taken, chunk| cache.chunk_came(taken, chunk, Origin::Upstream));
    }

    fn chunk_came(&self, taken: LoadGuard, chunk: Result<Chunk>, origin: Origin) {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return taken.tell(Err(Arc::new(error))),
        };
        let bytes = chunk.bytes().len() as u64;
        let (was_ahead, is_ahead) = (taken.load().began_ahead(), taken.load().is_ahead());
        if was_ahead {
            self.stats.readahead_bytes.add(bytes);
            self.stats.readahead_used_bytes.add(if is_ahead { 0 } else { bytes });
        }
        self.stats.came(origin, bytes);
        self.keep(taken, Cached::chunk(chunk, is_ahead));
    }

    fn load_node(&self, id: NodeId, taken: LoadGuard) {
        match (self.source.node(id), &self.options.far) {
            (Err(Error::Damaged { .. }), Some(far)) => {
                let fetching = far.fetch_node(id, urgency(&taken));
                self.when_fetched(taken, fetching, Self::far_node_came);
            }
            (node, _) => self.node_came(taken, node),
        }
    }

    /// Announces the coming reads to the local source, which may block for a short time.
    fn far_node_came(&self, taken: LoadGuard, node: Result<Node>) {
        let this = self.this.clone();
        self.runtime.spawn_blocking(move || {
            if let Some(cache) = this.upgrade() {
                cache.node_came(taken, node);
            }
        });
    }

    fn node_came(&self, taken: LoadGuard, node: Result<Node>) {
        match node {
            Ok(node) => {
                self.announce(&node);
                self.keep(taken, Cached::Node(node));
            }
            Err(error) => taken.tell(Err(Arc::new(error))),
        }
    }

    /// Tells the sources what is likely to be asked for next. Before the reader goes on, or it would ask itself.
    fn announce(&self, node: &Node) {
        match node {
            Node::Leaf(leaf) => {
                let ids: Vec<ChunkId> = leaf.chunks().map(|(_, id, _)| id).collect();
                self.source.expect(&ids);
                if let Some(far) = &self.options.far {
                    far.neighbours(&ids);
                }
            }
            Node::Inner(inner) => {
                let ids: Vec<NodeId> = inner.children().iter().map(|(_, id)| *id).collect();
                self.source.expect_nodes(&ids);
            }
        }
    }

    fn keep(&self, taken: LoadGuard, cached: Cached) {
        let cached = Arc::new(cached);
        self.decoded.insert(taken.load().key(), Arc::clone(&cached));
        taken.tell(Ok(cached));
    }

    /// Ends a load when the far source answers. If the cache is gone by then, the dropped guard fails the readers.
    fn when_fetched<T: 'static>(&self, taken: LoadGuard, fetching: Fetching<T>, then: fn(&Self, LoadGuard, Result<T>)) {
        let this = self.this.clone();
        self.runtime.spawn(async move {
            let fetched = fetching.await;
            if let Some(cache) = this.upgrade() {
                then(&cache, taken, fetched);
            }
        });
    }
}

fn urgency(taken: &LoadGuard) -> Urgency {
    if taken.load().is_ahead() { Urgency::Ahead } else { Urgency::Demand }
}
