//! The composition of a clone's disk at one moment: layers, one on top of another, over a snapshot.
//!
//! A stack is immutable. A new layer or a new snapshot makes another stack, and current readers keep theirs. Content
//! beyond the bound of a layer was cut off when the disk was shorter once, and reads as zeros.

use std::ops::Range;
use std::sync::Arc;

use chunkstore::Result;
use chunkstore::catalog::Lease;

use super::BLOCK_BYTES;
use super::layer::{Layer, blocks_of};
use super::metadata::CloneMetadata;
use crate::snapshot::SnapshotDisk;

/// A layer and its bound.
#[derive(Clone)]
pub(super) struct BoundedLayer {
    pub(super) layer: Arc<Layer>,
    /// Content from here on is ignored. No bound is above that of a higher layer.
    pub(super) bytes_max: u64,
}

/// The snapshot below all layers.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) disk: Arc<SnapshotDisk>,
    /// As for a layer; no more than the snapshot's size.
    pub(super) bytes_max: u64,
    /// Keeps the snapshot's content while it is read.
    pub(super) _lease: Option<Arc<Lease>>,
}

/// Layers over a snapshot.
#[derive(Clone)]
pub(super) struct LayerStack {
    /// The lowest first.
    pub(super) layers: Vec<BoundedLayer>,
    pub(super) base: Base,
}

/// The source of a range of the disk.
enum Owner<'a> {
    Layer(&'a BoundedLayer),
    Base,
}

impl LayerStack {
    /// The layer that is written.
    pub(super) fn top(&self) -> &Arc<Layer> {
        &self.layers.last().expect("a clone has a layer").layer
    }

    /// Takes over the bounds of metadata that names the same layers.
    pub(super) fn bound_by(&mut self, metadata: &CloneMetadata) {
        for (bounded, known) in self.layers.iter_mut().zip(&metadata.layers) {
            bounded.bytes_max = known.bytes_max.unwrap_or(u64::MAX);
        }
        self.base.bytes_max = metadata.base_bytes_max.min(self.base.disk.size_bytes());
    }

    /// The stack below the top.
    pub(super) fn below(&self) -> Self {
        Self { layers: self.layers[..self.layers.len() - 1].to_vec(), base: self.base.clone() }
    }

    /// Fills `buf` from `offset`.
    pub(super) async fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let (owner, end) = self.owner(offset, offset + buf.len() as u64);
            let bound = self.bound(&owner).clamp(offset, end);
            let (part, rest) = buf.split_at_mut((end - offset) as usize);
            let (counting, beyond) = part.split_at_mut((bound - offset) as usize);
            beyond.fill(0);
            match owner {
                _ if counting.is_empty() => {}
                Owner::Layer(bounded) => bounded.layer.read(counting, offset)?,
                Owner::Base => self.base.disk.read(counting, offset).await?,
            }
            (buf, offset) = (rest, end);
        }
        Ok(())
    }

    /// The first range at or after `offset` and before `end` that may hold something else than zeros.
    pub(super) async fn next_data(&self, offset: u64, end: u64) -> Result<Option<Range<u64>>> {
        let Some(mut found) = self.next_piece(offset, end).await? else { return Ok(None) };
        while let Some(next) = self.next_piece(found.end, end).await? {
            if next.start > found.end {
                break;
            }
            found.end = next.end;
        }
        Ok(Some(found))
    }

    /// As [`LayerStack::next_data`], but the range may end where another begins.
    async fn next_piece(&self, mut offset: u64, end: u64) -> Result<Option<Range<u64>>> {
        while offset < end {
            let (owner, owned_end) = self.owner(offset, end);
            let bound = self.bound(&owner).min(owned_end);
            let data = match owner {
                _ if bound <= offset => None,
                Owner::Layer(bounded) => bounded.layer.next_data(offset)?,
                Owner::Base => self.base.disk.next_data(offset).await?,
            };
            if let Some(data) = data.filter(|data| data.start < bound) {
                return Ok(Some(data.start.max(offset)..data.end.min(bound)));
            }
            offset = owned_end;
        }
        Ok(None)
    }

    /// The first range of whole blocks at or after `offset` and before `end` that some layer has.
    pub(super) fn next_written(&self, mut offset: u64, end: u64) -> Option<Range<u64>> {
        while offset < end {
            let (owner, owned_end) = self.owner(offset, end);
            if matches!(owner, Owner::Layer(_)) {
                return Some(offset..owned_end);
            }
            offset = owned_end;
        }
        None
    }

    /// Blocks of a range that would be seen if the top had nothing there.
    pub(super) async fn shadowed(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut shadowed: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while let Some(data) = self.next_data(at, range.end).await? {
            let blocks = blocks_of(&data);
            match shadowed.last_mut() {
                Some(last) if last.end >= blocks.start => last.end = blocks.end,
                _ => shadowed.push(blocks),
            }
            at = data.end;
        }
        Ok(shadowed)
    }

    /// Bytes that may be something else than zeros; no fewer than are.
    pub(super) async fn data_bytes(&self) -> Result<u64> {
        let mut bytes = self.base.disk.data_bytes().await?;
        for bounded in &self.layers {
            bytes = bytes.saturating_add(bounded.layer.stored_bytes()?);
        }
        Ok(bytes)
    }

    /// The source of the block at `offset`, and where that source ends, at most `end`.
    fn owner(&self, offset: u64, end: u64) -> (Owner<'_>, u64) {
        let (block, mut end_block) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        for bounded in self.layers.iter().rev() {
            let run = bounded.layer.run(block, end_block);
            end_block = run.end;
            if run.is_there {
                return (Owner::Layer(bounded), end.min(end_block * BLOCK_BYTES));
            }
        }
        (Owner::Base, end.min(end_block * BLOCK_BYTES))
    }

    fn bound(&self, owner: &Owner<'_>) -> u64 {
        match owner {
            Owner::Layer(bounded) => bounded.bytes_max,
            Owner::Base => self.base.bytes_max,
        }
    }
}
