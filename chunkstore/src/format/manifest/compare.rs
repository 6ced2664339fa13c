//! Differences between two snapshots, by walking their manifests: the cost follows the difference.

use std::ops::Range;

use crate::error::Result;
use crate::format::id::{ChunkId, NodeId};
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::chunk_source::ChunkSource;
use crate::format::manifest::{self, Entry as Line};

/// A tree to compare: its root, if it is not all zeros, and the size of its image in bytes.
pub type Tree = (Option<NodeId>, u64);

/// Hands the byte ranges in which `b` differs from `a` to `visit`, in order, adjoining ones merged, and returns the sum
/// of their lengths. A range is as fine as the chunks and zero runs in it. Where one image ends earlier, the rest of
/// the other differs.
pub fn compare(
    source: &dyn ChunkSource,
    a: Tree,
    b: Tree,
    visit: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<u64> {
    let common_bytes = a.1.min(b.1);
    let mut merger = Merger { visit, pending: 0..0, bytes: 0 };
    manifest::diff(source, a, b, &mut |segment, a, b| {
        let start = segment.saturating_mul(SEGMENT_BYTES as u64);
        let (a, b) = (pieces(source, a)?, pieces(source, b)?);
        differing(&a, &b, &mut |range| {
            let in_both = |at: usize| (start + at as u64).min(common_bytes);
            merger.add(in_both(range.start)..in_both(range.end))
        })
    })?;
    merger.add(common_bytes..a.1.max(b.1))?;
    merger.finish()
}

/// A stretch of a segment: where it begins and ends, and what it holds; `None` is zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: usize,
    end: usize,
    chunk: Option<ChunkId>,
}

/// A whole segment as pieces without gaps; a missing leaf is zeros.
fn pieces(source: &dyn ChunkSource, leaf: Option<NodeId>) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut end = 0;
    if let Some(leaf) = leaf {
        for (start, line) in manifest::read_leaf(source, leaf)?.placed() {
            end = start + line.bytes() as usize;
            let chunk = match *line {
                Line::Chunk { id, .. } => Some(id),
                Line::Zero { .. } => None,
            };
            pieces.push(Piece { start, end, chunk });
        }
    }
    pieces.push(Piece { start: end, end: SEGMENT_BYTES, chunk: None });
    Ok(pieces)
}

/// Visits the stretches in which two segments differ, in order.
fn differing(a: &[Piece], b: &[Piece], visit: &mut dyn FnMut(Range<usize>) -> Result<()>) -> Result<()> {
    let (mut in_a, mut in_b, mut at) = (0, 0, 0);
    while at < SEGMENT_BYTES {
        let (left, right) = (a[in_a], b[in_b]);
        let end = left.end.min(right.end);
        let same = if left.chunk.is_some() { left == right } else { right.chunk.is_none() };
        if !same && at < end {
            visit(at..end)?;
        }
        at = end;
        in_a += usize::from(left.end == end);
        in_b += usize::from(right.end == end);
    }
    Ok(())
}

/// Merges adjoining ranges before they are visited.
struct Merger<'a> {
    visit: &'a mut dyn FnMut(Range<u64>) -> Result<()>,
    pending: Range<u64>,
    bytes: u64,
}

impl Merger<'_> {
    fn add(&mut self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.bytes += range.end - range.start;
        if self.pending.end == range.start && !self.pending.is_empty() {
            self.pending.end = range.end;
            return Ok(());
        }
        self.hand_over(range)
    }

    fn hand_over(&mut self, next: Range<u64>) -> Result<()> {
        let before = std::mem::replace(&mut self.pending, next);
        if before.is_empty() { Ok(()) } else { (self.visit)(before) }
    }

    fn finish(mut self) -> Result<u64> {
        self.hand_over(0..0)?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::{Base, ingest};
    use crate::progress::Progress;
    use crate::source::{DiskSource, Source};
    use crate::testing::{init, night, noise, open, options, put};

    /// The ranges in which two images differ, found by comparing a snapshot of each.
    fn compared(a: &[u8], b: &[u8]) -> Vec<Range<u64>> {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        let store = open(dir.path());
        let (a, b) = (put(&store, night("a", 0), a), put(&store, night("a", 1), b));
        let mut ranges = Vec::new();
        let sum = compare(&*store, a.entry().tree(), b.entry().tree(), &mut |range| {
            ranges.push(range);
            Ok(())
        });
        assert_eq!(sum.unwrap(), ranges.iter().map(|range| range.end - range.start).sum::<u64>());
        assert!(ranges.is_sorted_by(|a, b| a.end < b.start), "merged and in order: {ranges:?}");
        ranges
    }

    fn covers(ranges: &[Range<u64>], at: u64) -> bool {
        ranges.iter().any(|range| range.contains(&at))
    }

    #[test]
    fn ranges_cover_all_that_differs_and_little_else() {
        let a = noise(9 << 20, 1);
        let mut b = a.clone();
        for at in [0, 100_000, (4 << 20) - 1, 4 << 20, (9 << 20) - 1] {
            b[at] ^= 1;
        }
        b[6 << 20..7 << 20].fill(0);
        let ranges = compared(&a, &b);
        for at in (0..a.len()).filter(|at| a[*at] != b[*at]) {
            assert!(covers(&ranges, at as u64), "{at}");
        }
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(bytes < (1 << 20) + 7 * (64 << 10), "{bytes}");
        assert_eq!(compared(&a, &a), []);
    }

    #[test]
    fn where_one_ends_the_rest_of_the_other_differs() {
        let image = noise(5 << 20, 1);
        let cases: [(&[u8], &[u8], &[Range<u64>]); 5] = [
            (&image, &image[..4 << 20], &[4 << 20..5 << 20]),
            (&image[..4 << 20], &image, &[4 << 20..5 << 20]),
            (&[0; 10_000], &[0; 20_000], &[10_000..20_000]),
            (&[], &[], &[]),
            (&[], &[1; 5000], &[0..5000]),
        ];
        for (a, b, expected) in cases {
            assert_eq!(compared(a, b), expected);
        }
    }

    /// A disk of holes with some data.
    struct Sparse {
        size_bytes: u64,
        data: Vec<(u64, Vec<u8>)>,
    }

    impl DiskSource for Sparse {
        fn name(&self) -> &'static str {
            "sparse"
        }

        fn size_bytes(&self) -> u64 {
            self.size_bytes
        }

        fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
            let ranges = self.data.iter().map(|(start, bytes)| *start..*start + bytes.len() as u64);
            Ok(ranges.map(|range| range.start.max(offset)..range.end).find(|range| !range.is_empty()))
        }

        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            for (at, byte) in buf.iter_mut().enumerate() {
                let at = offset + at as u64;
                let part = self.data.iter().find(|(start, bytes)| at >= *start && at < *start + bytes.len() as u64);
                *byte = part.map_or(0, |(start, bytes)| bytes[(at - start) as usize]);
            }
            Ok(())
        }

        fn finish(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn trees_of_any_height_compare_and_holes_cost_nothing() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        let store = open(dir.path());
        let (small, tall) = (1 << 20, 8 << 40);
        let (start, far) = ((0, noise(4096, 1)), (5 << 40, noise(4096, 2)));
        let cases = [
            (small, vec![start.clone()]),
            (tall, vec![start.clone()]),
            (tall, vec![start, far]),
            (tall, Vec::new()),
            (small, Vec::new()),
        ];
        let mut entries = Vec::new();
        for (day, (size_bytes, data)) in (0..).zip(cases) {
            let source = Source::Disk(Box::new(Sparse { size_bytes, data }));
            let options = options(night("a", day), Base::Newest);
            entries.push(ingest(&store, source, &options, &Progress::default()).unwrap().entry().clone());
        }
        let differ = |a: usize, b: usize| {
            let mut ranges = Vec::new();
            let mut visit = |range| {
                ranges.push(range);
                Ok(())
            };
            compare(&*store, entries[a].tree(), entries[b].tree(), &mut visit).unwrap();
            ranges
        };
        let (far, rest) = (5 << 40..(5 << 40) + 4096, small..tall);
        assert_eq!(differ(0, 1), [rest.clone()]);
        assert_eq!(differ(1, 0), [rest.clone()]);
        assert_eq!(differ(1, 2), [far.clone()]);
        assert_eq!(differ(2, 3), [0..4096, far]);
        assert_eq!(differ(2, 0), [rest.clone()]);
        assert_eq!(differ(3, 4), [rest.clone()]);
        assert_eq!(differ(0, 3), [0..4096, rest]);
        assert_eq!(differ(3, 3), []);
    }
}
