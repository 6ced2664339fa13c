//! The manifest's nodes of an ingest: leaves meet in the order of segments, and nodes that others put are waited for.

use std::collections::BTreeMap;
use std::ops::Range;

use super::encode;
use super::worker::{ELSEWHERE, Work, lock};
use crate::error::Result;
use crate::format::codec::Encoder;
use crate::format::id::{NodeId, RecordId};
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::{Assembler, Node};
use crate::format::record::{Kind, Record};
use crate::store::sink::{Claim, Like};

/// A node, and what the parent has in its place.
pub(super) struct NewNode {
    pub(super) id: NodeId,
    pub(super) encoding: Vec<u8>,
    pub(super) parent: Option<NodeId>,
}

impl NewNode {
    pub(super) fn new(node: &Node, parent: Option<NodeId>) -> Self {
        let encoding = node.encode();
        Self { id: NodeId::of(&encoding), encoding, parent }
    }
}

/// Leaves that wait for their predecessors, and the tree over those that came.
#[derive(Default)]
pub(super) struct Tree {
    assembler: Assembler,
    next_order: u64,
    /// Where the parent's subtrees were kept up to, if they are.
    next_segment: u64,
    waiting: BTreeMap<u64, (Range<u64>, Option<NodeId>)>,
}

impl Work<'_, '_> {
    /// Hands segments to the tree, which are one with this leaf or zeros, with all that had waited for them.
    pub(super) fn arrive(
        &self,
        order: u64,
        segments: Range<u64>,
        leaf: Option<NodeId>,
        encoder: &mut Encoder,
    ) -> Result<()> {
        let mut tree = lock(&self.tree);
        let tree = &mut *tree;
        tree.waiting.insert(order, (segments, leaf));
        while let Some((segments, leaf)) = tree.waiting.remove(&tree.next_order) {
            tree.next_order += 1;
            self.keep_until(segments.start, tree, encoder)?;
            tree.next_segment = segments.end;
            if let Some(leaf) = leaf {
                let put = &mut |node, number| self.put_inner(&node, number, encoder);
                tree.assembler.push(segments.start, leaf, put)?;
            }
        }
        Ok(())
    }

    /// Takes what lies before a segment from the parent, if only changes are ingested.
    fn keep_until(&self, segment: u64, tree: &mut Tree, encoder: &mut Encoder) -> Result<()> {
        let kept = tree.next_segment..segment;
        let Some(parent) = self.parent.as_ref().filter(|_| self.changes.is_some() && !kept.is_empty()) else {
            return Ok(());
        };
        parent.subtrees(&kept, &mut |height, number, id| {
            let put = &mut |node, number| self.put_inner(&node, number, encoder);
            tree.assembler.push_subtree(height, number, id, put)
        })
    }

    fn put_inner(&self, node: &Node, number: u64, encoder: &mut Encoder) -> Result<NodeId> {
        let parent = self.parent.as_ref().and_then(|parent| parent.id_at(node.height(), number).ok().flatten());
        let node = NewNode::new(node, parent);
        if self.parent_has(&node) {
            return Ok(node.id);
        }
        let id = node.id;
        match self.into.sink.claim(&[id.into()])?[0] {
            Claim::Present => {}
            Claim::Yours => self.put(vec![self.encode_node(&node, encoder)?])?,
            Claim::YoursWhole => self.put(vec![encode_whole(&node, encoder)])?,
            Claim::Elsewhere => lock(&self.awaited).push(node),
        }
        Ok(id)
    }

    /// Whether a node need not be looked up.
    pub(super) fn parent_has(&self, node: &NewNode) -> bool {
        self.into.trusts_parent && node.parent == Some(node.id)
    }

    fn encode_node(&self, node: &NewNode, encoder: &mut Encoder) -> Result<Record> {
        let base = match node.parent {
            Some(parent) => self.into.sink.bases(&[Like::Record(parent.into())])?.pop().flatten(),
            None => None,
        };
        Ok(encode::record(encoder, Kind::Node, node.id.into(), &node.encoding, base.as_ref()))
    }

    /// Ends the tree; returns its root.
    pub(super) fn finish(&self, virtual_bytes: u64) -> Result<Option<NodeId>> {
        let mut tree = std::mem::take(&mut *lock(&self.tree));
        assert!(tree.waiting.is_empty(), "every order was given out and came back");
        let mut encoder = self.encoder();
        self.keep_until(virtual_bytes.div_ceil(SEGMENT_BYTES as u64), &mut tree, &mut encoder)?;
        let root =
            tree.assembler.finish(virtual_bytes, &mut |node, number| self.put_inner(&node, number, &mut encoder))?;
        self.settle_awaited(&mut encoder)?;
        Ok(root)
    }

    /// Waits for the nodes that others have taken on, and puts those that they do not.
    fn settle_awaited(&self, encoder: &mut Encoder) -> Result<()> {
        let mut awaited = std::mem::take(&mut *lock(&self.awaited));
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
                    Claim::Yours | Claim::YoursWhole => self.put(vec![encode_whole(&node, encoder)])?,
                }
            }
            if !still.is_empty() {
                delay.sleep(self.progress)?;
            }
            awaited = still;
        }
    }
}

fn encode_whole(node: &NewNode, encoder: &mut Encoder) -> Record {
    encode::record(encoder, Kind::Node, node.id.into(), &node.encoding, None)
}
