//! How much of a partial snapshot is here.
//!
//! A partial snapshot is one whose records are fetched from another store as they are needed. gc keeps what is there of
//! them, verify counts the rest as absent, and publishing it once more, when all is there, makes it an ordinary one.

use crate::catalog::{Entry, Presence};
use crate::chunk_source::ChunkSource;
use crate::error::{Error, Result};
use crate::id::{NodeId, RecordId};
use crate::limits::SEGMENT_BYTES;
use crate::manifest::{Node, height_for, slot_segments};
use crate::name::SnapshotName;
use crate::store::Store;

/// Leaves that are read together.
const BATCH_LEAVES: usize = 256;

/// Counts what is here of a snapshot. What the parts need of which the manifest is not here is taken to be as much as the
/// others need.
///
/// # Errors
/// If the index can't be read.
pub fn presence(store: &Store, entry: &Entry) -> Result<Presence> {
    let mut survey = Survey::new(store, entry.virtual_bytes.div_ceil(SEGMENT_BYTES as u64));
    if let Some(root) = entry.root {
        survey.node(root, height_for(entry.virtual_bytes), 0)?;
        survey.settle()?;
    }
    Ok(survey.presence(entry.virtual_bytes))
}

/// Counts it, and notes it durably in the snapshot's state.
///
/// # Errors
/// [`Error::NotFound`] if there is no such snapshot.
pub fn note_presence(store: &Store, name: &SnapshotName) -> Result<Option<Presence>> {
    let snapshot = store.catalog().read(name)?;
    if !snapshot.state.partial {
        return Ok(None);
    }
    let presence = presence(store, snapshot.entry())?;
    store.update_state(name, |state| {
        // It may have been completed meanwhile.
        state.presence = state.partial.then_some(presence);
        Ok(state.presence)
    })
}

struct Survey<'a> {
    store: &'a Store,
    segments: u64,
    /// Segments of which nothing is known.
    unknown_segments: u64,
    known_bytes: u64,
    present_bytes: u64,
    leaves: Vec<NodeId>,
}

impl<'a> Survey<'a> {
    fn new(store: &'a Store, segments: u64) -> Self {
        Self { store, segments, unknown_segments: 0, known_bytes: 0, present_bytes: 0, leaves: Vec::new() }
    }

    fn node(&mut self, id: NodeId, height: u8, first_segment: u64) -> Result<()> {
        if height == 0 {
            self.leaves.push(id);
            return if self.leaves.len() < BATCH_LEAVES { Ok(()) } else { self.settle() };
        }
        let inner = match self.store.node(id) {
            Ok(Node::Inner(inner)) if inner.height() == height => inner,
            Ok(_) | Err(Error::Damaged { .. }) => {
                let span = slot_segments(height + 1);
                self.unknown_segments += span.min(self.segments.saturating_sub(first_segment));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (slot, child) in inner.children() {
            self.node(*child, height - 1, first_segment + u64::from(*slot) * slot_segments(height))?;
        }
        Ok(())
    }

    /// Looks at the leaves that wait.
    fn settle(&mut self) -> Result<()> {
        let leaves = std::mem::take(&mut self.leaves);
        let (mut chunks, mut unknown) = (Vec::new(), 0);
        self.store.nodes(&leaves, &mut |_, node| {
            match node {
                Ok(Node::Leaf(leaf)) => chunks.extend(leaf.chunks().map(|(_, id, bytes)| (RecordId::from(id), bytes))),
                Ok(_) | Err(Error::Damaged { .. }) => unknown += 1,
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        let ids: Vec<RecordId> = chunks.iter().map(|(id, _)| *id).collect();
        for ((_, bytes), place) in chunks.iter().zip(self.store.places(&ids)?) {
            self.known_bytes += u64::from(*bytes);
            self.present_bytes += if place.is_some() { u64::from(*bytes) } else { 0 };
        }
        self.unknown_segments += unknown;
        Ok(())
    }

    fn presence(&self, virtual_bytes: u64) -> Presence {
        let known_segments = self.segments.saturating_sub(self.unknown_segments);
        let guessed = match (self.unknown_segments, known_segments) {
            (0, _) => 0,
            (_, 0) => u128::from(virtual_bytes),
            (unknown, known) => u128::from(self.known_bytes) * u128::from(unknown) / u128::from(known),
        };
        let needed = (u128::from(self.known_bytes) + guessed).min(u128::from(virtual_bytes)) as u64;
        // As long as something is unknown, something is missing.
        let least = self.present_bytes + u64::from(self.unknown_segments > 0);
        Presence { present_bytes: self.present_bytes, needed_bytes: needed.max(least) }
    }
}

#[cfg(test)]
mod tests;
