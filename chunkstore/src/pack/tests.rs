//! Packs: golden bytes, round trips, and every kind of damage to header, table and footer.

use std::sync::Arc;

use super::*;
use crate::format::record::put_u32;
use crate::format::{ChunkId, ChunkParams, Record, RecordId};
use crate::storage::{MemStorage, Storage};

const ID: PackId = PackId { number: 3, tag: 0x0a0b_0c0d };

fn header() -> PackHeader {
    PackHeader { store_id: [7; 16], id: ID, class: Class::Data, params: ChunkParams::default() }
}

fn record(content: &[u8]) -> Record {
    let id: RecordId = ChunkId::of(content).into();
    Record::new(Kind::Chunk, id, content.len(), Codec::Raw, content.to_vec(), None)
}

fn sealed(contents: &[&[u8]]) -> (Arc<MemStorage>, SealedPack) {
    let storage = Arc::new(MemStorage::new());
    storage.create_dir(DIR).unwrap();
    let mut writer = PackWriter::create(Arc::clone(&storage) as Arc<dyn Storage>, header()).unwrap();
    contents.iter().for_each(|content| writer.append(&record(content)).unwrap());
    let pack = writer.seal().unwrap();
    (storage, pack)
}

fn bytes_of(storage: &MemStorage) -> Vec<u8> {
    let file = storage.open(&path(ID)).unwrap();
    let mut bytes = vec![0; file.len_bytes().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_is_sealed_can_be_read() {
    let contents: &[&[u8]] = &[b"one", b"", b"three"];
    let (storage, pack) = sealed(contents);
    let reader = PackReader::open(&*storage, ID).unwrap();
    assert_eq!(reader.header().unwrap(), header());
    assert_eq!(reader.table().unwrap(), pack.entries);
    for (entry, content) in pack.entries.iter().zip(contents) {
        let found = reader.record(u64::from(entry.offset), entry.stored_bytes).unwrap();
        assert_eq!((found.payload.as_slice(), found.header), (*content, record(content).header));
    }
    assert!(storage.power_cut().open(&path(ID)).is_ok(), "a sealed pack survives a power cut");
}

#[test]
fn records_may_have_gaps_between_them_and_may_not_overlap() {
    let storage = Arc::new(MemStorage::new());
    storage.create_dir(DIR).unwrap();
    let mut writer = PackWriter::create(Arc::clone(&storage) as Arc<dyn Storage>, header()).unwrap();
    writer.skip(10);
    writer.append(&record(b"one")).unwrap();
    let written = record(b"two");
    write_records(&*storage, ID, writer.end() as u32, std::slice::from_ref(&written)).unwrap();
    writer.add_written(&written.header);
    writer.skip(5);
    let pack = writer.seal().unwrap();
    let reader = PackReader::open(&*storage, ID).unwrap();
    assert_eq!(reader.table().unwrap(), pack.entries);
    for (entry, content) in pack.entries.iter().zip([b"one", b"two"]) {
        assert_eq!(reader.record(u64::from(entry.offset), entry.stored_bytes).unwrap().payload, content);
    }
    // With a table that tells of one record earlier, or of the last one longer than there is room before the table.
    let bytes = bytes_of(&storage);
    let table_at = bytes.len() - FOOTER_BYTES - 2 * TABLE_ENTRY_BYTES;
    let second = table_at + TABLE_ENTRY_BYTES;
    for (at, value) in [(second + 64, pack.entries[1].offset - 1), (second + 68, 3 + 6)] {
        let mut lying = bytes.clone();
        put_u32(&mut lying, at, value);
        let (front, footer) = lying.split_at_mut(bytes.len() - FOOTER_BYTES);
        put_u32(footer, 28, crc32c::crc32c(&front[table_at..]));
        let crc = crc32c::crc32c(&footer[..60]);
        put_u32(footer, 60, crc);
        storage.overwrite(&path(ID), &lying).unwrap();
        assert!(PackReader::open(&*storage, ID).unwrap().table().is_err(), "{value} at {at}");
    }
}

/// The worked example of FORMAT.md.
#[test]
fn golden_pack() {
    let (storage, _) = sealed(&[b"hello"]);
    let text: String = bytes_of(&storage).iter().map(|byte| format!("{byte:02x}")).collect();
    let document = include_str!("../../FORMAT.md");
    let example = document.split("```pack\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let hex_column = |line: &str| line.split("  ").nth(1).unwrap_or_default().replace(' ', "");
    assert_eq!(example.lines().map(hex_column).collect::<String>(), text);
}

#[test]
fn every_flipped_bit_is_noticed_and_whole_records_are_found() {
    let (storage, pack) = sealed(&[b"one", b"two"]);
    let bytes = bytes_of(&storage);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        storage.overwrite(&path(ID), &flipped).unwrap();
        let reader = PackReader::open(&*storage, ID).unwrap();
        let scanned = reader.scan().unwrap();
        let whole = matches!(scanned.outcome, ScanOutcome::Whole);
        let read: Vec<_> = scanned.entries.iter().map(|e| reader.record(u64::from(e.offset), e.stored_bytes)).collect();
        let sound = read.iter().flatten().count();
        assert!(!whole || sound < 2, "bit {bit} went unnoticed");
        assert!(sound >= 1, "bit {bit} took both records along");
        for record in read.into_iter().flatten() {
            assert_eq!(RecordId::from(ChunkId::of(&record.payload)), record.header.id);
        }
    }
    drop(pack);
}

#[test]
fn every_truncation_is_noticed() {
    let (storage, pack) = sealed(&[b"one", b"two"]);
    let bytes = bytes_of(&storage);
    for len in 0..bytes.len() {
        storage.overwrite(&path(ID), &bytes[..len]).unwrap();
        let scanned = PackReader::open(&*storage, ID).unwrap().scan().unwrap();
        assert!(matches!(scanned.outcome, ScanOutcome::Damaged(_)), "{len}");
        let whole = pack.entries.iter().filter(|e| u64::from(e.offset) + e.record_bytes() <= len as u64).count();
        assert_eq!(scanned.entries.len(), whole);
    }
}

#[test]
fn a_pack_under_another_name_is_noticed() {
    let (storage, _) = sealed(&[b"one"]);
    let other = PackId { number: 4, tag: 5 };
    storage.rename(&path(ID), &path(other)).unwrap();
    let reader = PackReader::open(&*storage, other).unwrap();
    assert!(reader.is_another_pack());
    assert!(reader.header().unwrap_err().to_string().contains("holds pack 00000003-0a0b0c0d"));
}

#[test]
fn a_failed_sync_voids_the_pack() {
    let storage = Arc::new(MemStorage::new());
    storage.create_dir(DIR).unwrap();
    for call in 1..=6 {
        let mut calls_before = storage.calls();
        storage.fail_at(calls_before + call, std::io::ErrorKind::StorageFull);
        let result = PackWriter::create(Arc::clone(&storage) as Arc<dyn Storage>, header()).and_then(|mut writer| {
            writer.append(&record(b"one"))?;
            writer.seal()
        });
        calls_before = storage.calls();
        assert!(result.is_err(), "call {call}");
        let cut = storage.power_cut();
        assert!(cut.open(&path(ID)).is_err(), "call {call}");
        storage.heal();
        let _ = (storage.remove(&part_path(ID)), storage.remove(&path(ID)), calls_before);
    }
}
