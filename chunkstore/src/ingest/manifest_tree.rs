//! The manifest of an ingest: it puts leaves together in the order of segments, and waits for nodes that other sessions
//! put.

use std::collections::BTreeMap;
use std::ops::Range;

use parking_lot::Mutex;

use super::batch::NewNode;
use super::encode;
use super::{ELSEWHERE, IngestInto};
use crate::catalog::Snapshot;
use crate::error::Result;
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::{Assembler, Leaf, LeafReader, Node};
use crate::format::{Kind, NodeId, Record, RecordId};
use crate::progress::Progress;
use crate::store::{Claim, Like};

/// The new manifest while its leaves arrive from several threads, and the parent's.
pub(super) struct ManifestTree<'a> {
    into: &'a IngestInto<'a>,
    parent: Option<LeafReader<'a>>,
    /// Only changes are ingested: other segments are the parent's.
    keeps_parent: bool,
    ordered: Mutex<Ordered>,
    /// Nodes that other sessions have claimed.
    awaited: Mutex<Vec<NewNode>>,
    progress: &'a Progress,
}

/// Leaves that wait for their predecessors, and the tree over the leaves so far.
#[derive(Default)]
struct Ordered {
    assembler: Assembler,
    next_order: u64,
    /// The segment up to which the tree is complete.
    next_segment: u64,
    waiting: BTreeMap<u64, (Range<u64>, Option<NodeId>)>,
}

impl<'a> ManifestTree<'a> {
    pub(super) fn new(into: &'a IngestInto<'a>, keeps_parent: bool, progress: &'a Progress) -> Self {
        let parent = into.parent.as_ref().map(Snapshot::entry);
        let parent = parent.map(|parent| LeafReader::new(into.source, parent.root, parent.virtual_bytes));
        Self { into, parent, keeps_parent, ordered: Mutex::default(), awaited: Mutex::default(), progress }
    }

    /// Adds segments to the tree, one with this leaf or several of zeros, and then those that waited for them.
    pub(super) fn arrive(&self, order: u64, segments: Range<u64>, leaf: Option<NodeId>) -> Result<()> {
        let mut tree = self.ordered.lock();
        let tree = &mut *tree;
        tree.waiting.insert(order, (segments, leaf));
        while let Some((segments, leaf)) = tree.waiting.remove(&tree.next_order) {
            tree.next_order += 1;
            self.keep_until(segments.start, tree)?;
            tree.next_segment = segments.end;
            if let Some(leaf) = leaf {
                let put = &mut |node, number| self.put_inner(&node, number);
                tree.assembler.push(segments.start, leaf, put)?;
            }
        }
        Ok(())
    }

    /// If only changes are ingested, takes the parent's subtrees before a segment.
    fn keep_until(&self, segment: u64, tree: &mut Ordered) -> Result<()> {
        let kept = tree.next_segment..segment;
        let Some(parent) = self.parent.as_ref().filter(|_| self.keeps_parent && !kept.is_empty()) else {
            return Ok(());
        };
        parent.subtrees(&kept, &mut |height, number, id| {
            let put = &mut |node, number| self.put_inner(&node, number);
            tree.assembler.push_subtree(height, number, id, put)
        })
    }

    /// Waits at the end for a node that another session has claimed.
    pub(super) fn wait_for(&self, nodes: impl IntoIterator<Item = NewNode>) {
        self.awaited.lock().extend(nodes);
    }

    /// The parent's leaf of a segment. One that can't be read counts as none: a backup continues despite damage, and
    /// heals it. It is an error if only changes are ingested, since only the parent has the rest.
    pub(super) fn parent_leaf(&self, number: u64) -> Result<Option<(NodeId, Leaf)>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        match parent.leaf(number) {
            Err(error) if !self.keeps_parent => {
                tracing::warn!("the base is not used for segment {number}: {error}");
                Ok(None)
            }
            leaf => leaf,
        }
    }

    fn put_inner(&self, node: &Node, number: u64) -> Result<NodeId> {
        let parent = self.parent.as_ref().and_then(|parent| parent.id_at(node.height(), number).ok().flatten());
        let node = NewNode::new(node, parent);
        if self.parent_has(&node) {
            return Ok(node.id);
        }
        let id = node.id;
        match self.into.sink.claim(&[id.into()])?[0] {
            Claim::Present => {}
            Claim::Yours => self.into.sink.put(vec![self.encode_node(&node)?])?,
            Claim::YoursWhole => self.into.sink.put(vec![self.encode_whole(&node)])?,
            Claim::Elsewhere => self.awaited.lock().push(node),
        }
        Ok(id)
    }

    /// Whether the parent has this node, so that it need not be looked up.
    pub(super) fn parent_has(&self, node: &NewNode) -> bool {
        self.into.trusts_parent && node.parent == Some(node.id)
    }

    fn encode_node(&self, node: &NewNode) -> Result<Record> {
        let base = match node.parent {
            Some(parent) => self.into.sink.bases(&[Like::Record(parent.into())])?.pop().flatten(),
            None => None,
        };
        Ok(encode::record(&self.into.codec, Kind::Node, node.id.into(), &node.encoding, base.as_ref()))
    }

    fn encode_whole(&self, node: &NewNode) -> Record {
        encode::record(&self.into.codec, Kind::Node, node.id.into(), &node.encoding, None)
    }

    /// Ends the tree; returns its root.
    pub(super) fn finish(&self, virtual_bytes: u64) -> Result<Option<NodeId>> {
        let mut tree = std::mem::take(&mut *self.ordered.lock());
        assert!(tree.waiting.is_empty(), "every order was given out and came back");
        self.keep_until(virtual_bytes.div_ceil(SEGMENT_BYTES as u64), &mut tree)?;
        let root = tree.assembler.finish(virtual_bytes, &mut |node, number| self.put_inner(&node, number))?;
        self.settle_awaited()?;
        Ok(root)
    }

    /// Waits for the nodes that other sessions have claimed, and puts those whose claims lapse.
    fn settle_awaited(&self) -> Result<()> {
        let mut awaited = std::mem::take(&mut *self.awaited.lock());
        let mut delay = ELSEWHERE;
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
                    Claim::Yours | Claim::YoursWhole => self.into.sink.put(vec![self.encode_whole(&node)])?,
                }
            }
            if !still.is_empty() {
                delay.sleep(self.progress)?;
            }
            awaited = still;
        }
    }
}
