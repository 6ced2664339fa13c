//! One segment in memory: its chunks, verified, and where they belong.

use std::collections::HashMap;
use std::io::IoSlice;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::manifest::{self, ChunkSource, Leaf, Segment};
use crate::format::{Chunk, ChunkId};

/// A segment's chunks.
pub(super) struct SegmentData {
    range: Range<u64>,
    /// Each distinct chunk once.
    chunks: Vec<Chunk>,
    /// Offset in the image and chunk of each piece, in order.
    pieces: Vec<(u64, usize)>,
}

/// Contiguous bytes.
pub(super) struct Run<'a> {
    /// Where in the image they begin.
    pub(super) offset: u64,
    /// The bytes.
    pub(super) slices: Vec<IoSlice<'a>>,
    /// Their number.
    pub(super) bytes: u64,
}

impl SegmentData {
    /// Fetches all chunks of a segment.
    ///
    /// # Errors
    /// [`Error::Damaged`] if one can't be read, or the manifest does not fit an image of this size.
    pub(super) fn read(source: &dyn ChunkSource, segment: Segment, virtual_bytes: u64) -> Result<Self> {
        let leaf = manifest::read_leaf(source, segment.leaf)?;
        let range = segment.offset()..segment.end().min(virtual_bytes);
        if range.start + leaf.bytes() as u64 > range.end {
            let detail = format!("lists more than the {virtual_bytes} bytes that the image has");
            return Err(Error::damaged(format!("manifest node {}", segment.leaf), detail));
        }
        let (ids, pieces) = distinct(&leaf, range.start);
        let chunks = fetch(source, &ids, segment)?;
        Ok(Self { range, chunks, pieces })
    }

    /// The segment's range in the image.
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Bytes in chunks.
    pub(super) fn data_bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, chunk)| self.chunks[*chunk].bytes().len() as u64).sum()
    }

    /// The chunks in order, adjoining ones together.
    pub(super) fn runs(&self) -> Vec<Run<'_>> {
        let mut runs: Vec<Run<'_>> = Vec::new();
        for (offset, chunk) in &self.pieces {
            let bytes = self.chunks[*chunk].bytes();
            if runs.last().is_none_or(|run| run.offset + run.bytes != *offset) {
                runs.push(Run { offset: *offset, slices: Vec::new(), bytes: 0 });
            }
            let run = runs.last_mut().expect("there is one now");
            run.slices.push(IoSlice::new(bytes));
            run.bytes += bytes.len() as u64;
        }
        runs
    }
}

/// A chunk that a leaf names, with its length.
type Wanted = (ChunkId, u32);

/// A leaf's distinct chunks, and its pieces by position among them.
fn distinct(leaf: &Leaf, start: u64) -> (Vec<Wanted>, Vec<(u64, usize)>) {
    let mut positions = HashMap::new();
    let mut wanted = Vec::new();
    let mut pieces = Vec::new();
    for (at, id, bytes) in leaf.chunks() {
        let position = *positions.entry((id, bytes)).or_insert_with(|| {
            wanted.push((id, bytes));
            wanted.len() - 1
        });
        pieces.push((start + at as u64, position));
    }
    (wanted, pieces)
}

fn fetch(source: &dyn ChunkSource, wanted: &[Wanted], segment: Segment) -> Result<Vec<Chunk>> {
    let ids: Vec<ChunkId> = wanted.iter().map(|wanted| wanted.0).collect();
    let mut chunks: Vec<Option<Chunk>> = vec![None; ids.len()];
    source.chunks(&ids, &mut |position, chunk| {
        let chunk = chunk?;
        let (id, bytes) = wanted[position];
        if chunk.bytes().len() != bytes as usize {
            let detail = format!("says that chunk {id} has {bytes} bytes, but it has {}", chunk.bytes().len());
            return Err(Error::damaged(format!("manifest node {}", segment.leaf), detail));
        }
        chunks[position] = Some(chunk);
        Ok(())
    })?;
    Ok(chunks.into_iter().map(|chunk| chunk.expect("a source hands over every position")).collect())
}
