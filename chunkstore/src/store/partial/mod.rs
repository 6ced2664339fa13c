//! The share of a partial snapshot that is here.
//!
//! The records of a partial snapshot are fetched from another store as they are needed. gc keeps those that are here,
//! verify counts the others as absent, and publishing the snapshot again, when all are here, makes it an ordinary one.

use std::collections::HashMap;

use crate::catalog::{Entry, Presence, SnapshotName};
use crate::error::{Error, Result};
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::{ChunkSource, Node, height_for, slot_segments};
use crate::format::{NodeId, RecordId};
use crate::store::Store;

/// Counts the records of a snapshot that are here. Parts whose manifest is not here are assumed to need as many records
/// as the others.
///
/// # Errors
/// If the index can't be read.
pub fn presence(store: &Store, entry: &Entry) -> Result<Presence> {
    let mut survey =
        Survey { store, segments: entry.virtual_bytes.div_ceil(SEGMENT_BYTES as u64), known: HashMap::new() };
    let found = match entry.root {
        Some(root) => survey.node(root, height_for(entry.virtual_bytes), 0)?,
        None => Found::default(),
    };
    Ok(survey.presence(&found, entry.virtual_bytes))
}

/// Counts them, and stores the result durably in the snapshot's state.
///
/// # Errors
/// [`Error::NotFound`] if the snapshot does not exist.
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
    /// The counts below inner nodes that lie completely in the image, by their heights: a few nodes can span any size.
    known: HashMap<(NodeId, u8), Found>,
}

/// The counts below a node.
#[derive(Clone, Copy, Default)]
struct Found {
    /// Segments about which nothing is known.
    unknown_segments: u64,
    known_bytes: u64,
    present_bytes: u64,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.unknown_segments = self.unknown_segments.saturating_add(other.unknown_segments);
        self.known_bytes = self.known_bytes.saturating_add(other.known_bytes);
        self.present_bytes = self.present_bytes.saturating_add(other.present_bytes);
    }
}

impl Survey<'_> {
    fn node(&mut self, id: NodeId, height: u8, first_segment: u64) -> Result<Found> {
        if height == 0 {
            return self.leaves(&[id]);
        }
        if let Some(found) = self.known.get(&(id, height)) {
            return Ok(*found);
        }
        let span = slot_segments(height + 1);
        let inner = match self.store.node(id) {
            Ok(Node::Inner(inner)) if inner.height() == height => inner,
            Ok(_) | Err(Error::Damaged { .. }) => {
                let unknown_segments = span.min(self.segments.saturating_sub(first_segment));
                return Ok(Found { unknown_segments, ..Found::default() });
            }
            Err(error) => return Err(error),
        };
        let mut found = Found::default();
        if height == 1 {
            let leaves: Vec<NodeId> = inner.children().iter().map(|(_, leaf)| *leaf).collect();
            found = self.leaves(&leaves)?;
        } else {
            for (slot, child) in inner.children() {
                found.add(self.node(*child, height - 1, first_segment + u64::from(*slot) * slot_segments(height))?);
            }
        }
        if first_segment.saturating_add(span) <= self.segments {
            self.known.insert((id, height), found);
        }
        Ok(found)
    }

    fn leaves(&self, ids: &[NodeId]) -> Result<Found> {
        let mut found = Found::default();
        let mut chunks = Vec::new();
        self.store.nodes(ids, &mut |_, node| {
            match node {
                Ok(Node::Leaf(leaf)) => chunks.extend(leaf.chunks().map(|(_, id, bytes)| (RecordId::from(id), bytes))),
                Ok(_) | Err(Error::Damaged { .. }) => found.unknown_segments += 1,
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        let ids: Vec<RecordId> = chunks.iter().map(|(id, _)| *id).collect();
        for ((_, bytes), location) in chunks.iter().zip(self.store.locate(&ids)?) {
            found.known_bytes += u64::from(*bytes);
            found.present_bytes += if location.is_some() { u64::from(*bytes) } else { 0 };
        }
        Ok(found)
    }

    fn presence(&self, found: &Found, virtual_bytes: u64) -> Presence {
        let known_segments = self.segments.saturating_sub(found.unknown_segments);
        let guessed = match (found.unknown_segments, known_segments) {
            (0, _) => 0,
            (_, 0) => u128::from(virtual_bytes),
            (unknown, known) => u128::from(found.known_bytes) * u128::from(unknown) / u128::from(known),
        };
        let needed = (u128::from(found.known_bytes) + guessed).min(u128::from(virtual_bytes)) as u64;
        // While anything is unknown, something is missing.
        let least = found.present_bytes.saturating_add(u64::from(found.unknown_segments > 0));
        Presence { present_bytes: found.present_bytes, needed_bytes: needed.max(least) }
    }
}

#[cfg(test)]
mod tests;
