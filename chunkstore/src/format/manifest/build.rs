//! Building a tree from its leaves, in bounded memory.

use crate::format::id::NodeId;
use crate::format::limits::FANOUT;
use crate::format::manifest::{Inner, Node, height_for, slot_segments};

/// Builds the inner nodes over leaves that come in the order of their segments. Holds one open node a level.
#[derive(Default)]
pub struct Assembler {
    /// Open nodes; index 0 is height 1.
    levels: Vec<Open>,
    last_segment: Option<u64>,
    first_leaf: Option<NodeId>,
}

#[derive(Default)]
struct Open {
    /// Number of this node among those of its height.
    number: u64,
    children: Vec<(u8, NodeId)>,
}

impl Assembler {
    /// Adds the leaf of a segment. Segments that are all zero are left out. Inner nodes that become complete are
    /// given to `emit` with their number among those of their height, children before parents.
    pub fn push<E>(
        &mut self,
        segment: u64,
        leaf: NodeId,
        emit: &mut impl FnMut(Node, u64) -> Result<NodeId, E>,
    ) -> Result<(), E> {
        self.push_subtree(0, segment, leaf, emit)
    }

    /// Adds a whole subtree of another tree at its position: a node of this height and its number among those of its
    /// height (with height 0, a leaf and its segment). Otherwise as [`Assembler::push`].
    pub(crate) fn push_subtree<E>(
        &mut self,
        height: u8,
        number: u64,
        id: NodeId,
        emit: &mut impl FnMut(Node, u64) -> Result<NodeId, E>,
    ) -> Result<(), E> {
        let segments = slot_segments(height + 1);
        let first = number.saturating_mul(segments);
        assert!(self.last_segment.is_none_or(|last| last < first), "subtrees come in order");
        self.last_segment = Some(first.saturating_add(segments - 1));
        if height == 0 {
            self.first_leaf.get_or_insert(id);
        }
        let level = usize::from(height);
        for below in 0..level {
            if self.levels.len() > below {
                self.close(below, emit)?;
            } else {
                self.levels.push(Open::default());
            }
        }
        self.insert(level, number, id, emit)
    }

    /// Adds a child to the node of height `level + 1` that covers it, closing that level's open node if it is another.
    fn insert<E>(
        &mut self,
        level: usize,
        child: u64,
        id: NodeId,
        emit: &mut impl FnMut(Node, u64) -> Result<NodeId, E>,
    ) -> Result<(), E> {
        if self.levels.len() == level {
            self.levels.push(Open::default());
        }
        let number = child / FANOUT as u64;
        if self.levels[level].number != number {
            self.close(level, emit)?;
            self.levels[level].number = number;
        }
        self.levels[level].children.push(((child % FANOUT as u64) as u8, id));
        Ok(())
    }

    fn close<E>(&mut self, level: usize, emit: &mut impl FnMut(Node, u64) -> Result<NodeId, E>) -> Result<(), E> {
        let open = std::mem::take(&mut self.levels[level]);
        if open.children.is_empty() {
            return Ok(());
        }
        // A level as high as the greatest height is the root's; nothing is above it.
        let node = Inner::new(level as u8 + 1, open.children).expect("slots were filled in order");
        let id = emit(Node::Inner(node), open.number)?;
        self.insert(level + 1, open.number, id, emit)
    }

    /// Ends the tree of an image of this size and returns its root; `None` if the image is all zeros.
    pub fn finish<E>(
        mut self,
        virtual_bytes: u64,
        emit: &mut impl FnMut(Node, u64) -> Result<NodeId, E>,
    ) -> Result<Option<NodeId>, E> {
        let height = height_for(virtual_bytes);
        debug_assert!(self.last_segment.is_none_or(|last| height == 5 || last < slot_segments(height + 1)));
        if height == 0 {
            return Ok(self.first_leaf);
        }
        for level in 0..usize::from(height) {
            if self.levels.len() > level {
                self.close(level, emit)?;
            }
        }
        let root = self.levels.get(usize::from(height)).and_then(|open| open.children.first());
        Ok(root.map(|(_, id)| *id))
    }
}
