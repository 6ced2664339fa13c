//! The local store over a far one as one source, for plain threads that may wait.

use std::sync::Arc;

use chunkstore::chunk::Chunk;
use chunkstore::chunk_source::ChunkSource;
use chunkstore::id::{ChunkId, NodeId};
use chunkstore::manifest::Node;
use chunkstore::{Error, Result};
use tokio::runtime::Handle;

use super::{Far, Urgency, wait_for};

/// Gives what is here from here, and all else from there.
pub struct Layered {
    local: Arc<dyn ChunkSource>,
    far: Arc<dyn Far>,
    runtime: Handle,
}

impl Layered {
    /// A source of both; what waits runs on `runtime`.
    pub fn new(local: Arc<dyn ChunkSource>, far: Arc<dyn Far>, runtime: Handle) -> Self {
        Self { local, far, runtime }
    }
}

impl Layered {
    /// A leaf tells which chunks are neighbours.
    fn saw(&self, node: &Result<Node>) {
        if let Ok(Node::Leaf(leaf)) = node {
            let ids: Vec<ChunkId> = leaf.chunks().map(|(_, id, _)| id).collect();
            self.far.neighbours(&ids);
        }
    }
}

impl ChunkSource for Layered {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        let (mut asked, mut lacking) = (Vec::new(), Vec::new());
        for (at, id) in ids.iter().enumerate() {
            if self.far.is_absent(*id) { lacking.push(at) } else { asked.push(at) }
        }
        let wanted: Vec<ChunkId> = asked.iter().map(|at| ids[*at]).collect();
        self.local.chunks(&wanted, &mut |position, chunk| match chunk {
            Err(Error::Damaged { .. }) => {
                lacking.push(asked[position]);
                Ok(())
            }
            chunk => each(asked[position], chunk),
        })?;
        // All are asked for before the first is waited for.
        let fetching: Vec<_> = lacking.into_iter().map(|at| (at, self.far.fetch(ids[at], Urgency::Demand))).collect();
        fetching.into_iter().try_for_each(|(at, fetching)| each(at, wait_for(&self.runtime, fetching)))
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        let node = match self.local.node(id) {
            Err(Error::Damaged { .. }) => wait_for(&self.runtime, self.far.fetch_node(id, Urgency::Demand)),
            node => node,
        };
        self.saw(&node);
        node
    }

    fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        let mut fetching = Vec::new();
        self.local.nodes(ids, &mut |at, node| {
            if let Err(Error::Damaged { .. }) = node {
                fetching.push((at, self.far.fetch_node(ids[at], Urgency::Demand)));
                return Ok(());
            }
            self.saw(&node);
            each(at, node)
        })?;
        fetching.into_iter().try_for_each(|(at, fetching)| {
            let node = wait_for(&self.runtime, fetching);
            self.saw(&node);
            each(at, node)
        })
    }

    fn expect(&self, ids: &[ChunkId]) {
        self.local.expect(ids);
    }

    fn expect_nodes(&self, ids: &[NodeId]) {
        self.local.expect_nodes(ids);
    }
}
