//! Naming the snapshots and byte ranges that damage affects.

use std::collections::HashMap;

use super::closure::Lost;
use super::{DamagedRange, VerifyReport};
use crate::catalog::Snapshot;
use crate::error::{Error, Result};
use crate::format::limits::{FANOUT, SEGMENT_BYTES};
use crate::format::manifest::{ChunkSource, Leaf, Node, height_for};
use crate::format::{ChunkId, NodeId, RecordId};
use crate::progress::Progress;
use crate::store::Store;

/// Most ranges that a report lists.
const RANGES_MAX: usize = 100_000;
/// Adds all damaged ranges of these snapshots to the report.
pub(super) fn name(
    store: &Store,
    snapshots: &[Snapshot],
    lost: &Lost,
    progress: &Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let mut hurt = HashMap::new();
    for snapshot in snapshots {
        let entry = snapshot.entry();
        let Some(root) = entry.root else { continue };
        let (virtual_bytes, name) = (entry.virtual_bytes, entry.name().to_string());
        let walk = Walk { store, lost, progress, virtual_bytes, name, is_partial: snapshot.state.partial };
        walk.node(root, height_for(entry.virtual_bytes), 0, &mut hurt, report)?;
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
    /// Records may be absent.
    is_partial: bool,
}

impl Walk<'_> {
    /// Reports the losses below a node whose subtree begins at `start`; returns the number of affected ranges. Inner
    /// nodes are remembered, so that one without losses is entered once; once the report is full, every one is entered
    /// once, because a few can span any size.
    fn node(
        &self,
        id: NodeId,
        height: u8,
        start: u64,
        hurt: &mut HashMap<(NodeId, u8), u64>,
        report: &mut VerifyReport,
    ) -> Result<u64> {
        if let Some(ranges) = hurt.get(&(id, height)).copied()
            && (ranges == 0 || report.damage.len() >= RANGES_MAX)
        {
            report.damage_left_out = report.damage_left_out.saturating_add(ranges);
            return Ok(ranges);
        }
        self.progress.check()?;
        let span_bytes = (SEGMENT_BYTES as u64).saturating_mul((FANOUT as u64).saturating_pow(u32::from(height)));
        let is_lost = self.lost.ids.contains(&id.into());
        let node = if is_lost { None } else { self.read(id)? };
        if node.is_none() && !is_lost && self.is_partial {
            return Ok(0);
        }
        let ranges = match node {
            Some(Node::Leaf(leaf)) if height == 0 => self.leaf(&leaf, start, report),
            Some(Node::Inner(inner)) if inner.height() == height => {
                let child_bytes = span_bytes / FANOUT as u64;
                let mut ranges: u64 = 0;
                for (slot, child) in inner.children() {
                    let start = start.saturating_add(u64::from(*slot).saturating_mul(child_bytes));
                    ranges = ranges.saturating_add(self.node(*child, height - 1, start, hurt, report)?);
                }
                ranges
            }
            // It can't be read, or does not belong here.
            _ => {
                self.add(id.into(), start, span_bytes, report);
                1
            }
        };
        if height > 0 {
            hurt.insert((id, height), ranges);
        }
        Ok(ranges)
    }

    fn read(&self, id: NodeId) -> Result<Option<Node>> {
        match self.store.node(id) {
            Ok(node) => Ok(Some(node)),
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn leaf(&self, leaf: &Leaf, start: u64, report: &mut VerifyReport) -> u64 {
        let lost = leaf.chunks().filter(|(_, id, _)| self.lost.ids.contains(&RecordId::from(*id)));
        let each = |(at, id, bytes): (usize, ChunkId, u32)| {
            self.add(id.into(), start.saturating_add(at as u64), u64::from(bytes), report);
        };
        lost.map(each).count() as u64
    }

    fn add(&self, id: RecordId, offset_bytes: u64, bytes: u64, report: &mut VerifyReport) {
        if report.damage.len() >= RANGES_MAX {
            report.damage_left_out = report.damage_left_out.saturating_add(1);
            return;
        }
        let bytes = bytes.min(self.virtual_bytes.saturating_sub(offset_bytes));
        report.damage.push(DamagedRange { snapshot: self.name.clone(), offset_bytes, bytes, id: id.to_string() });
    }
}
