//! Maps against a plain set, damaged in every byte, and torn.

use proptest::prelude::*;

use super::*;
use crate::clone::test_store::TornFile;

fn open(file: &TornFile) -> io::Result<Map> {
    Map::open(Box::new(file.clone()))
}

/// Writes what is dirty.
fn store(map: &Map) {
    let taken = map.take_dirty();
    map.write(&taken).unwrap();
    map.sync().unwrap();
}

fn blocks(map: &Map, end: u64) -> Vec<u64> {
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < end {
        let run = map.run(at, end);
        assert!(run.end > at && run.end <= end);
        if run.is_there {
            blocks.extend(at..run.end);
        }
        at = run.end;
    }
    blocks
}

#[test]
fn the_worked_example_of_the_format() {
    let mut bits = [0; BITMAP_BYTES];
    assert!(set_bits(&mut bits, 3..13));
    let sector = encode(2, &bits);
    assert_eq!(sector[..4], [0xf8, 0x1f, 0, 0]);
    assert_eq!(sector[508..], [0xd0, 0x1c, 0x6e, 0x65]);
    let file = TornFile::default();
    file.write(&sector, 2 * 512).unwrap();
    assert_eq!(blocks(&open(&file).unwrap(), 20_000), (2 * 4064 + 3..2 * 4064 + 13).collect::<Vec<_>>());
}

#[test]
fn every_damaged_byte_is_found_and_a_sector_in_another_place_too() {
    let file = TornFile::default();
    let map = open(&file).unwrap();
    map.set(&(5000..5010));
    store(&map);
    for at in 512..1024 {
        let mut byte = [0];
        file.read(&mut byte, at).unwrap();
        file.write(&[byte[0] ^ 1], at).unwrap();
        assert_eq!(open(&file).err().unwrap().kind(), io::ErrorKind::InvalidData, "byte {at}");
        file.write(&byte, at).unwrap();
    }
    let mut sector = [0; SECTOR_BYTES];
    file.read(&mut sector, 512).unwrap();
    file.write(&sector, 0).unwrap();
    assert!(open(&file).is_err());
}

#[test]
fn a_map_of_nothing_costs_nothing_and_of_a_huge_disk_little() {
    let file = TornFile::default();
    let map = open(&file).unwrap();
    let end = (8 << 40) / 4096;
    assert_eq!(map.run(0, end), Run { is_there: false, end });
    assert!(map.is_empty() && map.take_dirty().is_empty());
    map.set(&(end - 1..end));
    assert_eq!(map.run(0, end), Run { is_there: false, end: end - 1 });
    assert_eq!(map.take_dirty().len(), 1);
}

#[test]
fn sectors_beyond_the_longest_disk_are_damage() {
    let read = |number, bits: &Bits| decode(number, &encode(number, bits)).map_err(|error| error.kind());
    let bits = [1; BITMAP_BYTES];
    assert_eq!(read(SECTORS_MAX - 1, &bits), Ok(Some(Box::new(bits))));
    for beyond in [SECTORS_MAX, u64::MAX / SECTOR_BYTES as u64] {
        assert_eq!(read(beyond, &bits), Err(io::ErrorKind::InvalidData));
        assert_eq!(decode(beyond, &[0; SECTOR_BYTES]).unwrap(), None, "there is nothing");
    }
}

#[test]
fn what_could_not_be_written_is_dirty_again() {
    let file = TornFile::default();
    let map = open(&file).unwrap();
    map.set(&(0..1));
    let taken = map.take_dirty();
    map.set(&(9000..9001));
    map.put_back(&taken);
    assert_eq!(map.take_dirty().len(), 2);
    map.set(&(0..1));
    assert_eq!(map.take_dirty().len(), 0, "it was there");
}

proptest! {
    #[test]
    fn maps_are_sets(ranges in prop::collection::vec((0u64..30_000, 1u64..9_000, any::<bool>()), 1..12)) {
        let file = TornFile::default();
        let (mut map, mut expected) = (open(&file).unwrap(), BTreeSet::new());
        for (start, len, reopen) in ranges {
            map.set(&(start..start + len));
            expected.extend(start..start + len);
            if reopen {
                store(&map);
                map = open(&file).unwrap();
            }
            prop_assert_eq!(blocks(&map, 40_000), expected.iter().copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_torn_write_leaves_every_sector_old_or_new(seed: u64) {
        let file = TornFile::default();
        let map = open(&file).unwrap();
        map.set(&(0..10));
        map.set(&(9_000..9_100));
        store(&map);
        map.set(&(0..30_000));
        let taken = map.take_dirty();
        map.write(&taken).unwrap();
        let found = blocks(&open(&file.power_cut(seed)).unwrap(), 40_000);
        let found: BTreeSet<u64> = found.into_iter().collect();
        for sector in 0..8 {
            let range = sector * SECTOR_BLOCKS..((sector + 1) * SECTOR_BLOCKS).min(30_000);
            let new = range.clone().filter(|block| found.contains(block)).count() as u64;
            let old = range.clone().filter(|block| *block < 10 || (9_000..9_100).contains(block)).count() as u64;
            prop_assert!(new == old || new == range.end.saturating_sub(range.start), "sector {}", sector);
        }
    }
}
