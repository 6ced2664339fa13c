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
