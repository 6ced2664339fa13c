//! Cuts: golden vectors, zero runs, and that a parent never changes them.

use proptest::prelude::*;

use super::*;
use crate::testing::{noise, small_params};

fn lengths(cuts: &[Cut]) -> Vec<usize> {
    cuts.iter().map(|cut| cut.range.len()).collect()
}

#[test]
fn golden_cuts() {
    let cuts = cut(&noise(1 << 20, 1), &ChunkParams::default(), Hint::default());
    assert_eq!(lengths(&cuts), GOLDEN_LENGTHS);
    assert_eq!(cuts[0].id.to_string(), GOLDEN_FIRST_ID);
}

const GOLDEN_LENGTHS: &[usize] =
    &[44_750, 219_962, 100_125, 28_400, 91_429, 28_467, 19_017, 114_735, 88_164, 66_867, 152_283, 94_377];
const GOLDEN_FIRST_ID: &str = "17a7780627d726889a48a1907222404a0ed1f28a14348a807559396514d42edc";

#[test]
fn zero_runs() {
    let block = |data: bool| if data { vec![1; 4096] } else { vec![0; 4096] };
    let image = |blocks: &str| -> Vec<u8> { blocks.bytes().flat_map(|b| block(b == b'd')).collect() };
    let cases: &[(&str, &[Range<usize>])] = &[
        ("", &[]),
        ("000", &[]),
        ("0", &[]),
        ("d", &[0..1]),
        ("d0d", &[0..3]),
        ("d00d", &[0..1, 3..4]),
        ("00d", &[2..3]),
        ("0d", &[0..2]),
        ("d00", &[0..1]),
        ("d0", &[0..2]),
        ("d0d00d0", &[0..3, 5..7]),
    ];
    for (blocks, extents) in cases {
        let expected: Vec<_> = extents.iter().map(|e| e.start * 4096..e.end * 4096).collect();
        assert_eq!(data_extents(&image(blocks), 8192), expected, "{blocks}");
    }
    // A short last block counts with the run before it.
    let mut short = image("d0");
    short.extend_from_slice(&[0; 100]);
    assert_eq!(data_extents(&short, 4196), vec![0..4096]);
    short.push(1);
    assert_eq!(data_extents(&short, 4196), vec![0..short.len()]);
}

/// A segment out of noise and zeros, and another that shares much of it.
fn segments() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let piece = (0..4u64, 1..20usize, any::<bool>());
    let edit = (any::<prop::sample::Index>(), 0..4u64, 1..9000usize);
    (prop::collection::vec(piece, 1..12), prop::collection::vec(edit, 0..6), 0..5000usize, any::<bool>()).prop_map(
        |(pieces, edits, tail, shorter)| {
            let mut parent = Vec::new();
            for (seed, blocks, zeros) in pieces {
                let len = blocks * 4096;
                parent.extend(if zeros { vec![0; len] } else { noise(len, seed) });
            }
            let mut child = parent.clone();
            for (at, seed, len) in edits {
                let at = at.index(child.len());
                let end = (at + len).min(child.len());
                let bytes = if seed == 0 { vec![0; end - at] } else { noise(end - at, seed + 10) };
                child[at..end].copy_from_slice(&bytes);
            }
            if shorter {
                child.truncate(child.len().saturating_sub(tail).max(1));
            } else {
                child.extend(noise(tail, 99));
            }
            (parent, child)
        },
    )
}

/// The leaf of these bytes.
fn leaf(segment: &[u8]) -> Option<Leaf> {
    let cuts = cut(segment, &small_params(), Hint::default());
    (!cuts.is_empty()).then(|| crate::ingest::leaf_of(&cuts))
}

#[test]
fn the_byte_after_a_chunk_has_a_say() {
    let parent = noise(1 << 20, 1);
    let leaf = leaf(&parent);
    let ends: Vec<usize> = leaf.iter().flat_map(Leaf::chunks).map(|(at, _, bytes)| at + bytes as usize).collect();
    let mut moved = 0;
    for end in &ends[..ends.len() - 1] {
        let mut child = parent.clone();
        child[*end] ^= 1;
        let plain = cut(&child, &small_params(), Hint::default());
        let hinted = cut(&child, &small_params(), Hint::new(leaf.as_ref()));
        assert_eq!(lengths(&hinted), lengths(&plain), "{end}");
        moved += usize::from(plain.iter().all(|cut| cut.range.end != *end));
    }
    assert!(moved > ends.len() / 2, "{moved} of {}", ends.len());
}

proptest! {
    #[test]
    fn the_parent_never_changes_a_cut((parent, child) in segments()) {
        let params = small_params();
        let plain = cut(&child, &params, Hint::default());
        let parent_cuts = cut(&parent, &params, Hint::default());
        let leaf = (!parent_cuts.is_empty()).then(|| crate::ingest::leaf_of(&parent_cuts));
        let hinted = cut(&child, &params, Hint::new(leaf.as_ref()));
        prop_assert_eq!(hinted.len(), plain.len());
        for (hinted, plain) in hinted.iter().zip(&plain) {
            prop_assert_eq!(&hinted.range, &plain.range);
            prop_assert_eq!(hinted.id, plain.id);
            prop_assert_eq!(ChunkId::of(&child[plain.range.clone()]), plain.id);
        }
    }

    #[test]
    fn cuts_and_zeros_cover_the_segment((segment, _) in segments()) {
        let mut rebuilt = vec![0; segment.len()];
        for cut in cut(&segment, &small_params(), Hint::default()) {
            rebuilt[cut.range.clone()].copy_from_slice(&segment[cut.range]);
        }
        prop_assert_eq!(rebuilt, segment);
    }
}

/// A segment in memory that gives only what is asked for; the rest is wrong.
struct Partly {
    all: Vec<u8>,
    read: Vec<u8>,
}

impl SegmentBytes for Partly {
    fn read(&mut self, range: Range<usize>) -> crate::Result<&[u8]> {
        self.read[range.clone()].copy_from_slice(&self.all[range]);
        Ok(&self.read)
    }
}

/// A whole segment out of noise and zeros.
fn whole_segment() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0..4u64, 1..40usize, any::<bool>());
    prop::collection::vec(piece, 0..40).prop_map(|pieces| {
        let mut segment = Vec::new();
        for (seed, blocks, zeros) in pieces {
            segment.extend(if zeros { vec![0; blocks * 4096] } else { noise(blocks * 4096, seed) });
        }
        segment.resize(SEGMENT_BYTES, 0);
        segment
    })
}

/// What is done to a range of a segment.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Noise(u64),
    Zeros,
    /// Said to have changed, though it has not.
    Nothing,
}

/// Edits where the parent's cuts and zero runs are, or anywhere; of whole blocks or of any length.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Edit, usize)>> {
    let edit = prop_oneof![(0..9u64).prop_map(Edit::Noise), Just(Edit::Zeros), Just(Edit::Nothing)];
    let len = prop_oneof![Just(1usize), 1..9000usize, Just(4096), Just(8192), 1..200_000usize];
    prop::collection::vec((any::<prop::sample::Index>(), 0..3usize, edit, len), 0..8)
}

fn edited(parent: &[u8], edits: &[(prop::sample::Index, usize, Edit, usize)]) -> (Vec<u8>, Vec<Range<usize>>) {
    let cuts = cut(parent, &small_params(), Hint::default());
    let places: Vec<usize> = cuts.iter().flat_map(|cut| [cut.range.start, cut.range.end]).collect();
    let (mut child, mut changed) = (parent.to_vec(), Vec::new());
    for (at, place, edit, len) in edits {
        let at = match place {
            0 if !places.is_empty() => places[at.index(places.len())].min(SEGMENT_BYTES - 1),
            1 => at.index(SEGMENT_BYTES / 4096) * 4096,
            _ => at.index(SEGMENT_BYTES),
        };
        let range = at..(at + len).min(SEGMENT_BYTES);
        match edit {
            Edit::Noise(seed) => child[range.clone()].copy_from_slice(&noise(range.len(), seed + 10)),
            Edit::Zeros => child[range.clone()].fill(0),
            Edit::Nothing => {}
        }
        changed.push(range);
    }
    changed.sort_by_key(|range| range.start);
    (child, merged(changed))
}

fn merged(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end > range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn recut_is_cut(parent in whole_segment(), edits in edits(), zero_run_blocks in 1..8u32) {
        let params = ChunkParams { zero_run_min_bytes: zero_run_blocks * 4096, ..small_params() };
        let parent_cuts = cut(&parent, &params, Hint::default());
        let leaf = (!parent_cuts.is_empty()).then(|| crate::ingest::leaf_of(&parent_cuts));
        let (child, changed) = edited(&parent, &edits);
        let plain = cut(&child, &params, Hint::default());
        let mut partly = Partly { all: child, read: vec![0xaa; SEGMENT_BYTES] };
        let rechunk_ranges = rechunk_ranges(&mut partly, &params, leaf.as_ref(), &changed).unwrap();
        let ends = |cuts: &[Cut]| cuts.iter().map(|cut| (cut.range.clone(), cut.id)).collect::<Vec<_>>();
        prop_assert_eq!(ends(&rechunk_ranges), ends(&plain));
    }
}
