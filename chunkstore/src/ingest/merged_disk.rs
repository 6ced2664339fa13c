//! The disk of an overlay over a snapshot: the overlay's own clusters, and the snapshot's chunks elsewhere.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::ChangedRanges;
use crate::error::Result;
use crate::format::ChunkId;
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::{ChunkSource, Leaf, LeafReader};
use crate::source::{DiskSource, Overlay};

/// Leaves kept, because a segment is read in several steps.
const LEAVES_KEPT: usize = 16;

/// The disk that a machine on the overlay sees.
pub(super) struct MergedDisk<'a> {
    overlay: &'a Overlay,
    source: &'a dyn ChunkSource,
    leaves: LeafReader<'a>,
    /// The leaves read last, by segment.
    recent: Mutex<Vec<(u64, Option<Arc<Leaf>>)>>,
}

impl<'a> MergedDisk<'a> {
    /// The overlay's disk over the snapshot with these leaves.
    pub(super) fn new(overlay: &'a Overlay, source: &'a dyn ChunkSource, leaves: LeafReader<'a>) -> Self {
        Self { overlay, source, leaves, recent: Mutex::default() }
    }

    fn leaf(&self, segment: u64) -> Result<Option<Arc<Leaf>>> {
        let recent = || self.recent.lock();
        if let Some((_, leaf)) = recent().iter().find(|(number, _)| *number == segment) {
            return Ok(leaf.clone());
        }
        let leaf = self.leaves.leaf(segment)?.map(|(_, leaf)| Arc::new(leaf));
        let mut recent = recent();
        if recent.len() >= LEAVES_KEPT {
            recent.remove(0);
        }
        recent.push((segment, leaf.clone()));
        Ok(leaf)
    }

    /// Fills `buf` with the snapshot's bytes from `offset`.
    fn read_snapshot(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for segment in offset / SEGMENT_BYTES as u64..end.div_ceil(SEGMENT_BYTES as u64) {
            let Some(leaf) = self.leaf(segment)? else { continue };
            let start = segment * SEGMENT_BYTES as u64;
            let place = |at: usize, bytes: u32| start + at as u64..start + at as u64 + u64::from(bytes);
            let chunks = leaf.chunks().map(|(at, id, bytes)| (place(at, bytes), id));
            let (places, ids): (Vec<Range<u64>>, Vec<ChunkId>) =
                chunks.filter(|(place, _)| place.start < end && place.end > offset).unzip();
            self.source.chunks(&ids, &mut |position, chunk| {
                let place = &places[position];
                let part = place.start.max(offset)..place.end.min(end);
                let chunk = chunk?;
                let bytes = &chunk.bytes()[(part.start - place.start) as usize..(part.end - place.start) as usize];
                buf[(part.start - offset) as usize..(part.end - offset) as usize].copy_from_slice(bytes);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl DiskSource for MergedDisk<'_> {
    fn name(&self) -> &str {
        self.overlay.own().name()
    }

    fn size_bytes(&self) -> u64 {
        self.overlay.own().size_bytes()
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let mut at = offset;
        while at < self.size_bytes() {
            let own = self.overlay.next_changed(at)?.unwrap_or(self.size_bytes()..self.size_bytes());
            let below = at..own.start;
            let leaf = if below.is_empty() { None } else { self.leaves.next_leaf(at / SEGMENT_BYTES as u64)? };
            let of_leaf = leaf.map(|segment| segment * SEGMENT_BYTES as u64..(segment + 1) * SEGMENT_BYTES as u64);
            let of_own = if own.is_empty() { None } else { self.overlay.own().next_data(own.start.max(at))? };
            let found = clip(of_leaf, &below).or_else(|| clip(of_own, &own));
            if found.is_some() {
                return Ok(found);
            }
            at = own.end;
        }
        Ok(None)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let own = self.overlay.next_own(at..end)?.unwrap_or(end..end);
            let (below, own) = (at..own.start.max(at), own.start.max(at)..own.end.min(end));
            self.read_snapshot(part(buf, offset, &below), below.start)?;
            self.overlay.own().read_exact_at(part(buf, offset, &own), own.start)?;
            at = own.end;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.overlay.own().finish()
    }
}

/// The part of a range within bounds, if any.
fn clip(range: Option<Range<u64>>, bounds: &Range<u64>) -> Option<Range<u64>> {
    let range = range?;
    Some(range.start.max(bounds.start)..range.end.min(bounds.end)).filter(|range| !range.is_empty())
}

/// The bytes of this range in `buf`, which begins at `offset`.
fn part<'a>(buf: &'a mut [u8], offset: u64, range: &Range<u64>) -> &'a mut [u8] {
    &mut buf[(range.start - offset) as usize..(range.end - offset) as usize]
}
