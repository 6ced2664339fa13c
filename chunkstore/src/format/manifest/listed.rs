//! Totals of a tree. A repeated node is counted each time and read once: a few nodes can span any size.

use std::collections::HashMap;

use super::walk::children;
use super::{Leaf, height_for, read_leaf};
use crate::error::Result;
use crate::format::id::NodeId;
use crate::format::manifest::chunk_source::ChunkSource;

/// Totals of leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Listed {
    pub(crate) data_bytes: u64,
    pub(crate) chunks: u64,
}

impl Listed {
    /// The totals of a leaf.
    pub(crate) fn of_leaf(leaf: &Leaf) -> Self {
        let mut listed = Self::default();
        for (_, _, bytes) in leaf.chunks() {
            listed.add(Self { data_bytes: u64::from(bytes), chunks: 1 });
        }
        listed
    }

    /// The totals of a tree.
    pub(crate) fn of_tree(source: &dyn ChunkSource, root: Option<NodeId>, virtual_bytes: u64) -> Result<Self> {
        let known = &mut HashMap::new();
        root.map_or(Ok(Self::default()), |root| Self::below(source, root, height_for(virtual_bytes), known))
    }

    fn below(
        source: &dyn ChunkSource,
        id: NodeId,
        height: u8,
        known: &mut HashMap<(NodeId, u8), Self>,
    ) -> Result<Self> {
        if height == 0 {
            return Ok(Self::of_leaf(&read_leaf(source, id)?));
        }
        if let Some(listed) = known.get(&(id, height)) {
            return Ok(*listed);
        }
        let mut listed = Self::default();
        for (_, child) in children(source, id, height)? {
            listed.add(Self::below(source, child, height - 1, known)?);
        }
        known.insert((id, height), listed);
        Ok(listed)
    }

    /// Adds, saturating.
    pub(crate) fn add(&mut self, other: Self) {
        self.data_bytes = self.data_bytes.saturating_add(other.data_bytes);
        self.chunks = self.chunks.saturating_add(other.chunks);
    }
}
