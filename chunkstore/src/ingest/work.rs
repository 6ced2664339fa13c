//! What the threads of an ingest do: a segment at a time, from its bytes to its leaf, and the leaves to a tree.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::encode::{self, Task};
use super::feed::Feed;
use super::{IngestInto, leaf_of};
use crate::catalog::{IngestReport, Snapshot};
use crate::chunker::{self, Cut, Hint};
use crate::codec::Encoder;
use crate::error::Result;
use crate::id::{NodeId, RecordId};
use crate::manifest::{Assembler, Leaf, LeafReader, Node};
use crate::parallel;
use crate::progress::Progress;
use crate::record::{Kind, Record};
use crate::sink::{Claim, Like};

/// What the threads share.
pub(super) struct Work<'a> {
    into: &'a IngestInto<'a>,
    feed: &'a Feed<'a>,
    parent: Option<LeafReader<'a>>,
    tree: Mutex<Tree>,
    /// Nodes that others have taken on.
    awaited: Mutex<Vec<AwaitedNode>>,
    progress: &'a Progress,
}

/// A node that another session has taken on to put.
struct AwaitedNode {
    id: NodeId,
    encoding: Vec<u8>,
}

/// Leaves that wait for their predecessors, and the tree over those that came.
#[derive(Default)]
struct Tree {
    assembler: Assembler,
    next_order: u64,
    waiting: BTreeMap<u64, (u64, Option<NodeId>)>,
}

/// What a thread did.
#[derive(Default, Clone, Copy)]
pub(super) struct Tally {
    data_bytes: u64,
    chunks: u64,
    new_chunks: u64,
    new_bytes: u64,
    delta_chunks: u64,
    reused_boundaries: u64,
}

impl<'a> Work<'a> {
    pub(super) fn new(into: &'a IngestInto<'a>, feed: &'a Feed<'a>, progress: &'a Progress) -> Self {
        let parent = into.parent.as_ref().map(Snapshot::entry);
        let parent = parent.map(|parent| LeafReader::new(into.source, parent.root, parent.virtual_bytes));
        Self { into, feed, parent, tree: Mutex::default(), awaited: Mutex::default(), progress }
    }

    pub(super) fn run(&self, threads: usize) -> Result<Tally> {
        let mut sum = Tally::default();
        for tally in parallel::run(threads, || self.work())? {
            sum.add(tally);
        }
        Ok(sum)
    }

    fn work(&self) -> Result<Tally> {
        let result = self.work_until_end();
        if result.is_err() {
            self.feed.stop();
        }
        result
    }

    fn work_until_end(&self) -> Result<Tally> {
        let mut encoder = self.encoder();
        let mut tally = Tally::default();
        let mut buffer = Vec::new();
        while let Some(ticket) = self.feed.next(&mut buffer)? {
            self.progress.check()?;
            let leaf = self.segment(ticket.segment, &buffer, &mut encoder, &mut tally)?;
            self.arrive(ticket.order, ticket.segment, leaf, &mut encoder)?;
        }
        Ok(tally)
    }

    fn encoder(&self) -> Encoder {
        Encoder::new(self.into.zstd_level)
    }

    /// Stores one segment and returns its leaf; `None` if it is all zeros.
    fn segment(&self, number: u64, bytes: &[u8], encoder: &mut Encoder, tally: &mut Tally) -> Result<Option<NodeId>> {
        let parent = self.parent_leaf(number);
        let parent_leaf = parent.as_ref().map(|(_, leaf)| leaf);
        let cuts = chunker::cut(bytes, &self.into.params, Hint::new(parent_leaf));
        if cuts.is_empty() {
            return Ok(None);
        }
        tally.count(&cuts);
        // The parent's own chunks are there.
        let mut asked: Vec<&Cut> = cuts.iter().filter(|cut| !(cut.reused && self.into.trusts_parent)).collect();
        let mut records = self.new_chunks(bytes, &mut asked, parent_leaf, encoder, tally)?;
        let node = Node::Leaf(leaf_of(&cuts));
        let id = self.new_node(&node, parent.as_ref().map(|(id, _)| *id), encoder, &mut records)?;
        self.put(records)?;
        let mut wait = Wait::new(self.progress);
        while !asked.is_empty() {
            // Others have taken them on. They will be there soon, or be this session's after all.
            wait.a_moment()?;
            let records = self.new_chunks(bytes, &mut asked, parent_leaf, encoder, tally)?;
            self.put(records)?;
        }
        Ok(Some(id))
    }

    /// The parent's leaf of a segment. If it can't be read there is none: a backup goes on beside damage, and heals it.
    fn parent_leaf(&self, number: u64) -> Option<(NodeId, Leaf)> {
        match self.parent.as_ref()?.leaf(number) {
            Ok(leaf) => leaf,
            Err(error) => {
                tracing::warn!("the base is not used for segment {number}: {error}");
                None
            }
        }
    }

    /// Encodes the chunks that the store lacks; those that others have taken on are left in `asked`.
    fn new_chunks(
        &self,
        bytes: &[u8],
        asked: &mut Vec<&Cut>,
        parent: Option<&Leaf>,
        encoder: &mut Encoder,
        tally: &mut Tally,
    ) -> Result<Vec<Record>> {
        let ids: Vec<RecordId> = asked.iter().map(|cut| cut.id.into()).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let claims = self.into.sink.claim(&ids)?;
        let claimed = || asked.iter().copied().zip(claims.iter().copied());
        let tasks: Vec<Task<'_>> = claimed().filter_map(|(cut, claim)| Task::of(cut, claim)).collect();
        let records = encode::chunks(self.into.sink, encoder, bytes, parent, &tasks)?;
        tally.count_new(&records);
        *asked = claimed().filter(|(_, claim)| *claim == Claim::Elsewhere).map(|(cut, _)| cut).collect();
        Ok(records)
    }

    /// Adds a node to the records if the store lacks it.
    fn new_node(
        &self,
        node: &Node,
        parent: Option<NodeId>,
        encoder: &mut Encoder,
        records: &mut Vec<Record>,
    ) -> Result<NodeId> {
        let encoding = node.encode();
        let id = NodeId::of(&encoding);
        if self.into.trusts_parent && parent == Some(id) {
            return Ok(id);
        }
        match self.into.sink.claim(&[id.into()])?[0] {
            Claim::Present => {}
            Claim::Yours => records.push(self.encode_node(id, &encoding, parent, encoder)?),
            Claim::YoursWhole => records.push(self.encode_node(id, &encoding, None, encoder)?),
            Claim::Elsewhere => lock(&self.awaited).push(AwaitedNode { id, encoding }),
        }
        Ok(id)
    }

    fn encode_node(
        &self,
        id: NodeId,
        encoding: &[u8],
        parent: Option<NodeId>,
        encoder: &mut Encoder,
    ) -> Result<Record> {
        let base = match parent {
            Some(parent) => self.into.sink.bases(&[Like::Record(parent.into())])?.pop().flatten(),
            None => None,
        };
        Ok(encode::record(encoder, Kind::Node, id.into(), encoding, base.as_ref()))
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        if records.is_empty() { Ok(()) } else { self.into.sink.put(records) }
    }

    /// Hands a leaf to the tree, with all that had waited for it.
    fn arrive(&self, order: u64, segment: u64, leaf: Option<NodeId>, encoder: &mut Encoder) -> Result<()> {
        let mut tree = lock(&self.tree);
        tree.waiting.insert(order, (segment, leaf));
        loop {
            let next = tree.next_order;
            let Some((segment, leaf)) = tree.waiting.remove(&next) else { return Ok(()) };
            tree.next_order += 1;
            if let Some(leaf) = leaf {
                tree.assembler.push(segment, leaf, &mut |node, number| self.put_inner(&node, number, encoder))?;
            }
        }
    }

    fn put_inner(&self, node: &Node, number: u64, encoder: &mut Encoder) -> Result<NodeId> {
        let parent = self.parent.as_ref().and_then(|parent| parent.id_at(node.height(), number).ok().flatten());
        let mut records = Vec::new();
        let id = self.new_node(node, parent, encoder, &mut records)?;
        self.put(records)?;
        Ok(id)
    }

    /// Ends the tree; returns its root.
    pub(super) fn finish(&self, virtual_bytes: u64) -> Result<Option<NodeId>> {
        let tree = std::mem::take(&mut *lock(&self.tree));
        assert!(tree.waiting.is_empty(), "every order was given out and came back");
        let mut encoder = self.encoder();
        let root =
            tree.assembler.finish(virtual_bytes, &mut |node, number| self.put_inner(&node, number, &mut encoder))?;
        self.settle_awaited(&mut encoder)?;
        Ok(root)
    }

    /// Waits for the nodes that others have taken on, and puts those that they do not.
    fn settle_awaited(&self, encoder: &mut Encoder) -> Result<()> {
        let mut awaited = std::mem::take(&mut *lock(&self.awaited));
        let mut wait = Wait::new(self.progress);
        loop {
            let ids: Vec<RecordId> = awaited.iter().map(|node| node.id.into()).collect();
            if ids.is_empty() {
                return Ok(());
            }
            let mut still = Vec::new();
            for (node, claim) in awaited.into_iter().zip(self.into.sink.claim(&ids)?) {
                match claim {
                    Claim::Present => {}
                    Claim::Elsewhere => still.push(node),
                    Claim::Yours | Claim::YoursWhole => {
                        self.put(vec![self.encode_node(node.id, &node.encoding, None, encoder)?])?;
                    }
                }
            }
            if !still.is_empty() {
                wait.a_moment()?;
            }
            awaited = still;
        }
    }
}

/// Waiting for what other sessions do: a little, then longer.
struct Wait<'a> {
    progress: &'a Progress,
    next: Duration,
}

impl<'a> Wait<'a> {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);

    fn new(progress: &'a Progress) -> Self {
        Self { progress, next: Self::SHORTEST }
    }

    /// # Errors
    /// [`Error::Interrupted`] if a stop was asked for.
    fn a_moment(&mut self) -> Result<()> {
        self.progress.check()?;
        thread::sleep(self.next);
        self.next = (self.next * 2).min(Self::LONGEST);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    fn count(&mut self, cuts: &[Cut]) {
        self.chunks += cuts.len() as u64;
        self.data_bytes += cuts.iter().map(|cut| cut.range.len() as u64).sum::<u64>();
        self.reused_boundaries += cuts.iter().filter(|cut| cut.reused).count() as u64;
    }

    fn count_new(&mut self, records: &[Record]) {
        self.new_chunks += records.len() as u64;
        self.new_bytes += records.iter().map(|record| u64::from(record.header.plain_bytes)).sum::<u64>();
        self.delta_chunks += records.iter().filter(|record| record.header.base.is_some()).count() as u64;
    }

    fn add(&mut self, other: Self) {
        self.data_bytes += other.data_bytes;
        self.chunks += other.chunks;
        self.new_chunks += other.new_chunks;
        self.new_bytes += other.new_bytes;
        self.delta_chunks += other.delta_chunks;
        self.reused_boundaries += other.reused_boundaries;
    }

    pub(super) fn report(&self, parent: Option<String>, virtual_bytes: u64, started: Instant) -> IngestReport {
        let elapsed_s = started.elapsed().as_secs_f64();
        IngestReport {
            parent,
            data_bytes: self.data_bytes,
            zero_bytes: virtual_bytes - self.data_bytes,
            chunks: self.chunks,
            new_chunks: self.new_chunks,
            new_bytes: self.new_bytes,
            delta_chunks: self.delta_chunks,
            reused_boundaries: self.reused_boundaries,
            stored_bytes: 0,
            elapsed_s,
            throughput_bytes_per_s: self.data_bytes as f64 / elapsed_s,
            extra: BTreeMap::new(),
        }
    }
}
