//! Reading trees: all leaves in order, one leaf at a time, or what differs between two.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::chunk_source::ChunkSource;
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::limits::{FANOUT, SEGMENT_BYTES};
use crate::manifest::{Leaf, Node, height_for, slot_segments};

/// A segment that is not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Its leaf's name.
    pub leaf: NodeId,
}

impl Segment {
    /// Where it begins in the image.
    pub fn offset(&self) -> u64 {
        self.number * SEGMENT_BYTES as u64
    }

    /// Where it ends, if the image does not end before.
    pub fn end(&self) -> u64 {
        self.offset() + SEGMENT_BYTES as u64
    }
}

/// Names every leaf of a tree in the order of segments, without reading the leaves themselves.
pub fn walk(
    source: &dyn ChunkSource,
    root: Option<NodeId>,
    virtual_bytes: u64,
    visit: &mut dyn FnMut(Segment) -> Result<()>,
) -> Result<()> {
    match root {
        Some(root) => walk_node(source, root, height_for(virtual_bytes), 0, visit),
        None => Ok(()),
    }
}

fn walk_node(
    source: &dyn ChunkSource,
    id: NodeId,
    height: u8,
    first_segment: u64,
    visit: &mut dyn FnMut(Segment) -> Result<()>,
) -> Result<()> {
    if height == 0 {
        return visit(Segment { number: first_segment, leaf: id });
    }
    for (slot, child) in children(source, id, height)? {
        walk_node(source, child, height - 1, first_segment + u64::from(slot) * slot_segments(height), visit)?;
    }
    Ok(())
}

/// The children of an inner node that must have this height.
fn children(source: &dyn ChunkSource, id: NodeId, height: u8) -> Result<Vec<(u8, NodeId)>> {
    match source.node(id)? {
        Node::Inner(inner) if inner.height() == height => Ok(inner.children().to_vec()),
        node => Err(wrong_height(id, node.height(), height)),
    }
}

fn wrong_height(id: NodeId, found: u8, wanted: u8) -> Error {
    Error::damaged(format!("manifest node {id}"), format!("has height {found} where {wanted} belongs"))
}

/// Reads the leaf `id`.
pub(crate) fn read_leaf(source: &dyn ChunkSource, id: NodeId) -> Result<Leaf> {
    match source.node(id)? {
        Node::Leaf(leaf) => Ok(leaf),
        Node::Inner(inner) => Err(wrong_height(id, inner.height(), 0)),
    }
}

/// Visits the segments in which two trees differ, with the leaf each has there. Equal subtrees are not read, so the
/// cost follows the difference. A lower tree compares as slot 0 of a taller one.
pub fn diff(
    source: &dyn ChunkSource,
    a: (Option<NodeId>, u64),
    b: (Option<NodeId>, u64),
    visit: &mut dyn FnMut(u64, Option<NodeId>, Option<NodeId>) -> Result<()>,
) -> Result<()> {
    let view = |(root, virtual_bytes): (Option<NodeId>, u64)| root.map(|root| (root, height_for(virtual_bytes)));
    let height = height_for(a.1.max(b.1));
    diff_node(source, view(a), view(b), height, 0, visit)
}

/// A subtree in a comparison: a node, with the height it really has.
type View = Option<(NodeId, u8)>;

fn diff_node(
    source: &dyn ChunkSource,
    a: View,
    b: View,
    height: u8,
    first_segment: u64,
    visit: &mut dyn FnMut(u64, Option<NodeId>, Option<NodeId>) -> Result<()>,
) -> Result<()> {
    if a == b {
        return Ok(());
    }
    if height == 0 {
        return visit(first_segment, a.map(|view| view.0), b.map(|view| view.0));
    }
    let mut slots: Vec<[View; 2]> = vec![[None, None]; FANOUT];
    for (side, view) in [a, b].into_iter().enumerate() {
        for (slot, child) in view_children(source, view, height)? {
            slots[usize::from(slot)][side] = Some(child);
        }
    }
    for (slot, [a, b]) in slots.into_iter().enumerate() {
        diff_node(source, a, b, height - 1, first_segment + slot as u64 * slot_segments(height), visit)?;
    }
    Ok(())
}

/// The children of a view at a height: those of its node, or the node itself in slot 0 if it is lower.
fn view_children(source: &dyn ChunkSource, view: View, height: u8) -> Result<Vec<(u8, (NodeId, u8))>> {
    Ok(match view {
        None => Vec::new(),
        Some((id, own)) if own < height => vec![(0, (id, own))],
        Some((id, _)) => {
            children(source, id, height)?.into_iter().map(|(slot, child)| (slot, (child, height - 1))).collect()
        }
    })
}

/// Random access to a tree's leaves by segment, with the inner nodes on the way kept.
pub struct LeafReader<'a> {
    source: &'a dyn ChunkSource,
    root: Option<NodeId>,
    height: u8,
    inner: Mutex<HashMap<NodeId, Arc<Node>>>,
}

/// Inner nodes kept by a [`LeafReader`]; at 8 KiB each.
const INNER_NODES_KEPT: usize = 256;

impl<'a> LeafReader<'a> {
    /// A reader of the tree with this root, of an image of this size.
    pub fn new(source: &'a dyn ChunkSource, root: Option<NodeId>, virtual_bytes: u64) -> Self {
        Self { source, root, height: height_for(virtual_bytes), inner: Mutex::default() }
    }

    /// The name of the node of this height that has this number among those of its height (a leaf: its segment);
    /// `None` if all below it is zero, or the tree is not that tall or wide.
    pub fn id_at(&self, height: u8, number: u64) -> Result<Option<NodeId>> {
        if height > self.height || number >= (FANOUT as u64).saturating_pow(u32::from(self.height - height)) {
            return Ok(None);
        }
        let mut id = self.root;
        for above in (height + 1..=self.height).rev() {
            let Some(node) = id else { return Ok(None) };
            let slot = (number >> (8 * u32::from(above - height - 1))) as u8;
            id = match &*self.inner_node(node)? {
                Node::Inner(inner) if inner.height() == above => inner.child(slot),
                other => return Err(wrong_height(node, other.height(), above)),
            };
        }
        Ok(id)
    }

    /// The leaf of a segment, with its name.
    pub fn leaf(&self, segment: u64) -> Result<Option<(NodeId, Leaf)>> {
        let Some(id) = self.id_at(0, segment)? else { return Ok(None) };
        Ok(Some((id, read_leaf(self.source, id)?)))
    }

    fn inner_node(&self, id: NodeId) -> Result<Arc<Node>> {
        if let Some(node) = self.inner.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(self.source.node(id)?);
        let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= INNER_NODES_KEPT {
            kept.clear();
        }
        kept.insert(id, Arc::clone(&node));
        Ok(node)
    }
}
