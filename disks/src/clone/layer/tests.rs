//! Power cuts and failures of layers: what was synced is right, the rest is old or new.

use proptest::prelude::*;

use super::*;
use crate::clone::test_store::{Failing, TornFile};

const BLOCKS: u64 = 24;
const SIZE: usize = (BLOCKS * BLOCK_BYTES) as usize;

struct Files {
    data: TornFile,
    map: TornFile,
}

impl Files {
    fn new() -> Self {
        Self { data: TornFile::default(), map: TornFile::default() }
    }

    fn open(&self) -> Layer {
        let files = [Box::new(self.data.clone()) as Box<dyn LayerFile>, Box::new(self.map.clone())];
        Layer::of_files("layer".into(), 1, files).unwrap()
    }

    fn power_cut(&self, seed: u64) -> Self {
        Self { data: self.data.power_cut(seed), map: self.map.power_cut(seed.rotate_left(17) ^ 5) }
    }
}

/// What is seen where the layer has no block.
fn below() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8).collect()
}

fn seen(layer: &Layer) -> Vec<u8> {
    let mut bytes = below();
    for block in 0..BLOCKS {
        if layer.has(block) {
            let at = (block * BLOCK_BYTES) as usize;
            layer.read(&mut bytes[at..at + BLOCK_BYTES as usize], at as u64).unwrap();
        }
    }
    bytes
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        first: u64,
        blocks: u64,
        value: u8,
    },
    /// Of a block that is there, some bytes.
    Change {
        at: usize,
        bytes: usize,
        value: u8,
    },
    Discard {
        first: u64,
        blocks: u64,
    },
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let blocks = || (0..BLOCKS, 1..5u64);
    prop_oneof![
        3 => (blocks(), any::<u8>()).prop_map(|((first, blocks), value)| Step::Write { first, blocks, value }),
        3 => (0..SIZE, 1..3000usize, any::<u8>()).prop_map(|(at, bytes, value)| Step::Change { at, bytes, value }),
        1 => blocks().prop_map(|(first, blocks)| Step::Discard { first, blocks }),
        2 => Just(Step::Sync),
    ]
}

/// Does a step; returns the bytes that it changed, and to what.
fn apply(layer: &Layer, step: &Step) -> Option<(Range<usize>, u8)> {
    let range = |first: u64, blocks: u64| first * BLOCK_BYTES..(first + blocks).min(BLOCKS) * BLOCK_BYTES;
    let (range, value) = match *step {
        Step::Write { first, blocks, value } => {
            let range = range(first, blocks);
            layer.write(&vec![value; (range.end - range.start) as usize], range.start).unwrap();
            (range, value)
        }
        Step::Change { at, bytes, value } => {
            let at = at as u64;
            let end = (at + bytes as u64).min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            if !layer.has(at / BLOCK_BYTES) {
                return None;
            }
            layer.write(&vec![value; (end - at) as usize], at).unwrap();
            (at..end, value)
        }
        Step::Discard { first, blocks } => {
            let range = range(first, blocks);
            layer.discard(range.clone(), &[blocks_of(&range)]).unwrap();
            (range, 0)
        }
        Step::Sync => {
            layer.sync().unwrap();
            return None;
        }
    };
    Some((range.start as usize..range.end as usize, value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn after_a_power_cut_what_was_synced_is_right_and_the_rest_old_or_new(
        steps in prop::collection::vec(step(), 1..40),
        seeds in prop::array::uniform8(any::<u64>()),
    ) {
        let files = Files::new();
        let layer = files.open();
        let mut now = below();
        // Of each byte, what it may be.
        let mut possible: Vec<Vec<u8>> = now.iter().map(|byte| vec![*byte]).collect();
        for step in &steps {
            if let Some((range, value)) = apply(&layer, step) {
                now[range.clone()].fill(value);
                possible[range].iter_mut().for_each(|possible| possible.push(value));
            }
            if matches!(step, Step::Sync) {
                possible = now.iter().map(|byte| vec![*byte]).collect();
            }
            prop_assert!(seen(&layer) == now);
        }
        for seed in seeds {
            let left = seen(&files.power_cut(seed).open());
            let wrong = left.iter().zip(&possible).position(|(found, possible)| !possible.contains(found));
            prop_assert_eq!(wrong, None);
        }
    }
}

fn block(value: u8) -> Vec<u8> {
    vec![value; BLOCK_BYTES as usize]
}

#[test]
fn bits_of_data_that_is_written_during_a_sync_wait_for_the_next() {
    let files = Files::new();
    let layer = files.open();
    layer.write(&block(1), 0).unwrap();
    let taken = layer.map.take_dirty();
    layer.write(&block(2), BLOCK_BYTES).unwrap();
    layer.map.write(&taken).unwrap();
    layer.map.sync().unwrap();
    assert!(!files.power_cut(1).open().has(1));
}

#[test]
fn after_a_failed_sync_nothing_pretends() {
    for breaks_data in [true, false] {
        for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
            let files = Files::new();
            let layer = files.open();
            layer.write(&block(1), 0).unwrap();
            let file = if breaks_data { &files.data } else { &files.map };
            file.fail(Failing::Sync(kind));
            assert!(matches!(layer.sync(), Err(Error::Io { .. })));
            file.fail(Failing::Nothing);
            assert!(matches!(layer.sync(), Err(Error::Io { .. })));
            assert!(matches!(layer.write(&block(1), 0), Err(Error::Io { .. })));
            assert!(layer.discard(0..BLOCK_BYTES, &[]).is_err() && layer.cut(0).is_err());
            assert_eq!(seen(&layer)[..4096], block(1)[..], "it still can be read");
        }
    }
}

#[test]
fn a_full_disk_fails_the_write_and_nothing_else() {
    let full = io::ErrorKind::StorageFull;
    let files = Files::new();
    let layer = files.open();
    layer.write(&block(1), 0).unwrap();
    layer.sync().unwrap();
    files.data.fail(Failing::Write(full));
    assert!(matches!(layer.write(&block(2), BLOCK_BYTES), Err(Error::OutOfSpace { .. })));
    assert!(!layer.has(1), "a block that was written in part does not show");
    layer.sync().unwrap();
    files.data.fail(Failing::Nothing);
    layer.write(&block(3), BLOCK_BYTES).unwrap();
    layer.sync().unwrap();
    // Room for the map is taken before anything is written.
    files.map.fail(Failing::Reserve(full));
    assert!(matches!(layer.write(&block(4), (4 << 30) * 4), Err(Error::OutOfSpace { .. })));
    // Where room can't be taken before, the sync says it, and the next one makes good for it.
    layer.write(&block(5), 2 * BLOCK_BYTES).unwrap();
    files.map.fail(Failing::Write(full));
    assert!(matches!(layer.sync(), Err(Error::OutOfSpace { .. })));
    files.map.fail(Failing::Nothing);
    layer.sync().unwrap();
    let left = seen(&files.power_cut(1).open());
    for (at, value) in [(0, 1), (1, 3), (2, 5)] {
        assert_eq!(left[at * 4096..(at + 1) * 4096], block(value)[..]);
    }
}
