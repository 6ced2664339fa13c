//! Reading trees: all leaves in order, one leaf at a time, or what differs between two.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::id::NodeId;
use crate::format::limits::{FANOUT, SEGMENT_BYTES};
use crate::format::manifest::chunk_source::ChunkSource;
use crate::format::manifest::{Inner, Leaf, Node, height_for, slot_segments};

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

/// The children of an inner node that must have this height. Announces the leaves to the source.
pub(super) fn children(source: &dyn ChunkSource, id: NodeId, height: u8) -> Result<Vec<(u8, NodeId)>> {
    match source.node(id)? {
        Node::Inner(inner) if inner.height() == height => {
            if height == 1 {
                let leaves: Vec<NodeId> = inner.children().iter().map(|(_, leaf)| *leaf).collect();
                source.expect_nodes(&leaves);
            }
            Ok(inner.children().to_vec())
        }
        node => Err(wrong_height(id, node.height(), height)),
    }
}

/// The error for a node of the wrong height.
pub(crate) fn wrong_height(id: NodeId, found: u8, wanted: u8) -> Error {
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
    diff_entering(source, a, b, &mut |_| Ok(true), visit)
}

/// A subtree of a tree at a position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subtree {
    /// `None` if all of it is zero.
    pub(crate) id: Option<NodeId>,
    pub(crate) height: u8,
    pub(crate) first_segment: u64,
}

impl Subtree {
    /// The segments that it spans.
    pub(crate) fn segments(&self) -> Range<u64> {
        self.first_segment..self.first_segment.saturating_add(slot_segments(self.height + 1))
    }
}

/// As [`diff`], but descends into a difference, or visits it, only if `enter` accepts the second tree's subtree there.
pub(crate) fn diff_entering(
    source: &dyn ChunkSource,
    a: (Option<NodeId>, u64),
    b: (Option<NodeId>, u64),
    enter: &mut dyn FnMut(Subtree) -> Result<bool>,
    visit: &mut dyn FnMut(u64, Option<NodeId>, Option<NodeId>) -> Result<()>,
) -> Result<()> {
    let view = |(root, virtual_bytes): (Option<NodeId>, u64)| root.map(|root| (root, height_for(virtual_bytes)));
    let height = height_for(a.1.max(b.1));
    diff_node(source, view(a), view(b), (height, 0), enter, visit)
}

/// A subtree in a comparison: a node, with the height it really has.
type View = Option<(NodeId, u8)>;

fn diff_node(
    source: &dyn ChunkSource,
    a: View,
    b: View,
    (height, first_segment): (u8, u64),
    enter: &mut dyn FnMut(Subtree) -> Result<bool>,
    visit: &mut dyn FnMut(u64, Option<NodeId>, Option<NodeId>) -> Result<()>,
) -> Result<()> {
    if a == b {
        return Ok(());
    }
    let is_lower = b.is_some_and(|(_, own)| own < height);
    if !is_lower && !enter(Subtree { id: b.map(|view| view.0), height, first_segment })? {
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
        let below = (height - 1, first_segment + slot as u64 * slot_segments(height));
        diff_node(source, a, b, below, enter, visit)?;
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

/// Random access to a tree's leaves by segment, with the inner nodes on the way kept. Sequential access reads leaves in
/// batches.
pub struct LeafReader<'a> {
    source: &'a dyn ChunkSource,
    root: Option<NodeId>,
    height: u8,
    inner: Mutex<HashMap<NodeId, Arc<Node>>>,
    pub(super) ahead: Mutex<Ahead>,
}

/// Leaves that were read together with a requested one.
#[derive(Default)]
pub(super) struct Ahead {
    /// The last two batches, because threads request a little out of order.
    pub(super) leaves: [HashMap<NodeId, Leaf>; 2],
    /// The segment after them.
    next: u64,
    /// How many were read together last.
    group: u64,
}

/// Inner nodes kept by a [`LeafReader`]; at 8 KiB each.
const INNER_NODES_KEPT: usize = 256;
/// Most leaves that are read together; at 2 KiB each, as a rule.
const GROUP_LEAVES_MAX: u64 = 64;
/// Threads that take segments in turn request leaves at most this far out of order.
const OUT_OF_ORDER: u64 = 16;

impl<'a> LeafReader<'a> {
    /// A reader of the tree with this root, of an image of this size.
    pub fn new(source: &'a dyn ChunkSource, root: Option<NodeId>, virtual_bytes: u64) -> Self {
        let (inner, ahead) = (Mutex::default(), Mutex::default());
        Self { source, root, height: height_for(virtual_bytes), inner, ahead }
    }

    /// The name of the node of this height that has this number among those of its height (a leaf: its segment);
    /// `None` if all below it is zero, or the tree is not that tall or wide.
    pub(crate) fn id_at(&self, height: u8, number: u64) -> Result<Option<NodeId>> {
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
        match self.leaf_ahead(id, segment) {
            Some(leaf) => Ok(Some((id, leaf))),
            None => Ok(Some((id, read_leaf(self.source, id)?))),
        }
    }

    /// The leaf of a segment, if it is in a batch, or a batch is read now.
    fn leaf_ahead(&self, id: NodeId, segment: u64) -> Option<Leaf> {
        // Held while leaves are read, because other threads will request the same ones.
        let mut ahead = self.ahead.lock();
        if let Some(leaf) = ahead.get(id) {
            return Some(leaf);
        }
        let group = ahead.group_from(segment);
        if group == 1 {
            return None;
        }
        let read = self.read_group(segment..segment + group);
        ahead.leaves.rotate_left(1);
        ahead.leaves[1] = read;
        ahead.get(id)
    }

    /// Reads the leaves of these segments. Unreadable ones are left out, and reported when they are requested.
    fn read_group(&self, segments: Range<u64>) -> HashMap<NodeId, Leaf> {
        let ids = segments.map_while(|segment| self.id_at(0, segment).ok());
        let mut ids: Vec<NodeId> = ids.flatten().collect();
        ids.dedup();
        let mut leaves = HashMap::with_capacity(ids.len());
        let read = self.source.nodes(&ids, &mut |at, node| {
            if let Ok(Node::Leaf(leaf)) = node {
                leaves.insert(ids[at], leaf);
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::debug!("leaves are read one by one: {error}");
        }
        leaves
    }

    /// Names the largest subtrees that lie wholly within a range of segments, in order: the height of each, its number
    /// among the nodes of its height, and its name. Only the nodes above them are read.
    pub fn subtrees(&self, segments: &Range<u64>, visit: &mut dyn FnMut(u8, u64, NodeId) -> Result<()>) -> Result<()> {
        match self.root {
            Some(root) => self.subtrees_of(root, self.height, 0, segments, visit),
            None => Ok(()),
        }
    }

    fn subtrees_of(
        &self,
        id: NodeId,
        height: u8,
        number: u64,
        segments: &Range<u64>,
        visit: &mut dyn FnMut(u8, u64, NodeId) -> Result<()>,
    ) -> Result<()> {
        let width = slot_segments(height + 1);
        let own = number.saturating_mul(width)..(number + 1).saturating_mul(width);
        if own.start >= segments.end || own.end <= segments.start {
            return Ok(());
        }
        if segments.start <= own.start && own.end <= segments.end {
            return visit(height, number, id);
        }
        for (slot, child) in self.children(id, height)?.children() {
            self.subtrees_of(*child, height - 1, number * FANOUT as u64 + u64::from(*slot), segments, visit)?;
        }
        Ok(())
    }

    /// The first segment from this one on that is not all zero.
    pub(crate) fn next_leaf(&self, segment: u64) -> Result<Option<u64>> {
        match self.root {
            Some(root) => self.next_leaf_of(root, self.height, 0, segment),
            None => Ok(None),
        }
    }

    fn next_leaf_of(&self, id: NodeId, height: u8, number: u64, from: u64) -> Result<Option<u64>> {
        if (number + 1).saturating_mul(slot_segments(height + 1)) <= from {
            return Ok(None);
        }
        if height == 0 {
            return Ok(Some(number));
        }
        for (slot, child) in self.children(id, height)?.children() {
            let child_number = number * FANOUT as u64 + u64::from(*slot);
            if let Some(found) = self.next_leaf_of(*child, height - 1, child_number, from)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The inner node `id`, which must have this height.
    fn children(&self, id: NodeId, height: u8) -> Result<Inner> {
        match &*self.inner_node(id)? {
            Node::Inner(inner) if inner.height() == height => Ok(inner.clone()),
            node => Err(wrong_height(id, node.height(), height)),
        }
    }

    fn inner_node(&self, id: NodeId) -> Result<Arc<Node>> {
        if let Some(node) = self.inner.lock().get(&id) {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(self.source.node(id)?);
        if let Node::Inner(inner) = &*node
            && inner.height() == 1
        {
            let leaves: Vec<NodeId> = inner.children().iter().map(|(_, leaf)| *leaf).collect();
            self.source.expect_nodes(&leaves);
        }
        let mut kept = self.inner.lock();
        if kept.len() >= INNER_NODES_KEPT {
            kept.clear();
        }
        kept.insert(id, Arc::clone(&node));
        Ok(node)
    }
}

impl Ahead {
    fn get(&self, id: NodeId) -> Option<Leaf> {
        self.leaves.iter().find_map(|leaves| leaves.get(&id)).cloned()
    }

    /// How many leaves to read together from this segment: the number grows while segments are requested in order.
    fn group_from(&mut self, segment: u64) -> u64 {
        let is_in_order = segment.abs_diff(self.next) <= OUT_OF_ORDER;
        self.group = if is_in_order { (self.group * 2).clamp(1, GROUP_LEAVES_MAX) } else { 1 };
        self.next = segment + self.group;
        self.group
    }
}
