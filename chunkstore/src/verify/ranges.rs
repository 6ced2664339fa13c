//! Naming the snapshots and byte ranges that damage hurts.

use std::collections::HashSet;

use super::closure::Lost;
use super::{DamagedRange, VerifyReport};
use crate::catalog::Snapshot;
use crate::chunk_source::ChunkSource;
use crate::error::{Error, Result};
use crate::id::{NodeId, RecordId};
use crate::limits::{FANOUT, SEGMENT_BYTES};
use crate::manifest::{Leaf, Node, height_for};
use crate::progress::Progress;
use crate::store::Store;

/// Most ranges that a report lists.
const RANGES_MAX: usize = 100_000;
/// Nodes below which nothing is lost, remembered at most.
const CLEAN_MAX: usize = 1 << 18;

/// Adds all damaged ranges of these snapshots to the report.
pub(super) fn name(
    store: &Store,
    snapshots: &[Snapshot],
    lost: &Lost,
    progress: &Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let mut clean = HashSet::new();
    for snapshot in snapshots {
        let entry = snapshot.entry();
        let Some(root) = entry.root else { continue };
        let (virtual_bytes, name) = (entry.virtual_bytes, entry.name().to_string());
        let walk = Walk { store, lost, progress, virtual_bytes, name, is_partial: snapshot.state.partial };
        walk.node(root, height_for(entry.virtual_bytes), 0, &mut clean, report)?;
    }
    Ok(())
}

/// A walk over one snapshot's manifest.
struct Walk<'a> {
    store: &'a Store,
    lost: &'a Lost,
    progress: &'a Progress,
    virtual_bytes: u64,
    name: String,
    /// Something may be absent.
    is_partial: bool,
}

impl Walk<'_> {
    /// Reports what is lost below a node whose subtree begins at `start`; tells whether nothing is.
    fn node(
        &self,
        id: NodeId,
        height: u8,
        start: u64,
        clean: &mut HashSet<NodeId>,
        report: &mut VerifyReport,
    ) -> Result<bool> {
        if clean.contains(&id) {
            return Ok(true);
        }
        self.progress.check()?;
        let span_bytes = (SEGMENT_BYTES as u64).saturating_mul((FANOUT as u64).saturating_pow(u32::from(height)));
        let is_lost = self.lost.ids.contains(&id.into());
        let node = if is_lost { None } else { self.read(id)? };
        if node.is_none() && !is_lost && self.is_partial {
            return Ok(true);
        }
        let is_clean = match node {
            Some(Node::Leaf(leaf)) if height == 0 => self.leaf(&leaf, start, report),
            Some(Node::Inner(inner)) if inner.height() == height => {
                let child_bytes = span_bytes / FANOUT as u64;
                let mut is_clean = true;
                for (slot, child) in inner.children() {
                    let start = start.saturating_add(u64::from(*slot).saturating_mul(child_bytes));
                    is_clean &= self.node(*child, height - 1, start, clean, report)?;
                }
                is_clean
            }
            // It can't be read, or is not what belongs here.
            _ => {
                self.add(id.into(), start, span_bytes, report);
                false
            }
        };
        if is_clean && clean.len() < CLEAN_MAX {
            clean.insert(id);
        }
        Ok(is_clean)
    }

    fn read(&self, id: NodeId) -> Result<Option<Node>> {
        match self.store.node(id) {
            Ok(node) => Ok(Some(node)),
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn leaf(&self, leaf: &Leaf, start: u64, report: &mut VerifyReport) -> bool {
        let mut is_clean = true;
        for (at, id, bytes) in leaf.chunks() {
            if self.lost.ids.contains(&RecordId::from(id)) {
                self.add(id.into(), start + at as u64, u64::from(bytes), report);
                is_clean = false;
            }
        }
        is_clean
    }

    fn add(&self, id: RecordId, offset_bytes: u64, bytes: u64, report: &mut VerifyReport) {
        if report.damage.len() >= RANGES_MAX {
            report.damage_left_out += 1;
            return;
        }
        let bytes = bytes.min(self.virtual_bytes.saturating_sub(offset_bytes));
        report.damage.push(DamagedRange { snapshot: self.name.clone(), offset_bytes, bytes, id: id.to_string() });
    }
}
