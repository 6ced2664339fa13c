//! Binary formats of the store: records, packs, payloads, manifest nodes.

use std::sync::Arc;

use chunkstore::Error;
use chunkstore::format::limits::{PLAIN_BYTES_MAX, SEGMENT_BYTES, STORED_BYTES_MAX};
use chunkstore::format::manifest::Node;
use chunkstore::format::{ChunkId, Codec, HEADER_BYTES, Header, Kind, NodeId, PackId, Record, RecordCodec, RecordId};
use chunkstore::pack::{Class, DIR, PackReader, PackWriter, ScanOutcome, TableEntry, path};
use chunkstore::storage::{MemStorage, Storage};

use super::{Verdict, as_given_and_resealed, reseal};

/// A record's header.
pub fn record_header(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::record_header, |bytes| {
        let decoded = Header::decode(bytes);
        if let Ok(header) = &decoded {
            assert!(header.plain_bytes as usize <= PLAIN_BYTES_MAX && header.stored_bytes as usize <= STORED_BYTES_MAX);
            assert_eq!(header.base.is_some(), header.codec == Codec::Delta);
            assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(header));
            let _ = header.payload_matches(&bytes[HEADER_BYTES..]);
        }
        Verdict::of(&decoded)
    })
}

/// A row of the index.
pub fn index_row(bytes: &[u8]) -> Verdict {
    Verdict::when(chunkstore::fuzzing::index_row(bytes))
}

/// A sealed pack: header, records, table and footer.
pub fn pack(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(bytes, reseal::pack, decode_pack)
}

fn decode_pack(bytes: &[u8]) -> Verdict {
    let storage = with_pack(pack_id(bytes), bytes);
    let reader = PackReader::open(&storage, pack_id(bytes)).expect("the file is there");
    let _ = (reader.header(), reader.is_another_pack());
    let scanned = match reader.scan() {
        Ok(scanned) => scanned,
        Err(Error::Refused { what }) => {
            assert!(what.contains("newer"), "{what}");
            return Verdict::Refused;
        }
        Err(error) => panic!("memory can always be read: {error}"),
    };
    match scanned.outcome {
        ScanOutcome::Whole => {
            check_whole_pack(&reader, &scanned.entries);
            Verdict::Accepted
        }
        ScanOutcome::Damaged(_) => {
            assert!(reader.header().is_err() || reader.table().is_err());
            scanned.entries.iter().for_each(|entry| check_found_record(&reader, entry));
            Verdict::Refused
        }
    }
}

/// The name that the file gives itself, so that a fuzzer gets past the comparison.
fn pack_id(bytes: &[u8]) -> PackId {
    let number = |at: usize| bytes.get(at..at + 4).map_or(0, |n| u32::from_le_bytes(n.try_into().expect("four bytes")));
    PackId { number: number(24), tag: number(28) }
}

fn with_pack(id: PackId, bytes: &[u8]) -> MemStorage {
    let storage = empty_storage();
    storage.create(&path(id)).and_then(|mut file| file.append(bytes)).expect("memory can always be written");
    storage
}

fn empty_storage() -> MemStorage {
    let storage = MemStorage::new();
    storage.create_dir(DIR).expect("memory can always be written");
    storage
}

/// A record that a search found was read whole, so it must be readable again.
fn check_found_record(reader: &PackReader, entry: &TableEntry) {
    let record = reader.record(u64::from(entry.offset), entry.stored_bytes).expect("the search found it whole");
    assert!(agrees(&record.header, entry));
    decode_record(&record);
}

/// A table may lie about records; each that is read says what it is. If none lies, a copy of the pack has the same
/// table.
fn check_whole_pack(reader: &PackReader, entries: &[TableEntry]) {
    let header = reader.header().expect("it was read for the scan");
    let read = |entry: &TableEntry| reader.record(u64::from(entry.offset), entry.stored_bytes).ok();
    let honest = |entry: &TableEntry| {
        read(entry).filter(|record| agrees(&record.header, entry) && entry.class() == header.class)
    };
    entries.iter().filter_map(read).for_each(|record| decode_record(&record));
    let Some(records) = entries.iter().map(honest).collect::<Option<Vec<_>>>() else { return };
    let storage = empty_storage();
    let mut copy = PackWriter::create(Arc::new(storage.clone()), header).expect("memory can always be written");
    for (record, entry) in records.iter().zip(entries) {
        copy.skip(u64::from(entry.offset) - copy.end());
        copy.append(record).expect("memory can always be written");
    }
    copy.seal().expect("memory can always be written");
    let copy = PackReader::open(&storage, header.id).expect("it was sealed");
    assert_eq!(copy.header().expect("it was just written"), header);
    assert_eq!(copy.table().expect("it was just written"), entries);
}

fn agrees(header: &Header, entry: &TableEntry) -> bool {
    let Header { kind, codec, id, base, plain_bytes, stored_bytes, sketch, .. } = *header;
    *entry == TableEntry { id, base, offset: entry.offset, stored_bytes, plain_bytes, kind, codec, sketch }
        && entry.class() == Class::of(kind, codec)
}

fn decode_record(record: &Record) {
    if let Ok(plain) = CODEC.decode(&record.header, &record.payload, None) {
        assert_eq!(plain.len(), record.header.plain_bytes as usize);
    }
}

/// The fixed front of [`payload`]'s input: codec, plain length, length of the base.
pub(super) const PAYLOAD_FRONT_BYTES: usize = 1 + 4 + 4;

/// A payload with the lengths that a header claims for it, and a base.
pub fn payload(bytes: &[u8]) -> Verdict {
    let Some((front, rest)) = bytes.split_first_chunk::<PAYLOAD_FRONT_BYTES>() else { return Verdict::Refused };
    let Some(codec) = Codec::from_number(front[0]) else { return Verdict::Refused };
    let number = |at: usize| u32::from_le_bytes(front[at..at + 4].try_into().expect("four bytes")) as usize;
    let (base, payload) = rest.split_at(number(5).min(rest.len()));
    let header = Header { plain_bytes: number(1) as u32, ..header_of(codec) };
    let decoded = CODEC.decode(&header, payload, Some(base));
    let mut buffer = Vec::new();
    let borrowed = CODEC.decode_into(&header, payload, Some(base), &mut buffer).map(<[u8]>::to_vec);
    assert_eq!(borrowed, decoded);
    if let Ok(plain) = &decoded {
        assert!(plain.len() == number(1) && plain.len() <= PLAIN_BYTES_MAX);
        check_encoding(plain, base);
    }
    Verdict::of(&decoded)
}

const CODEC: RecordCodec = RecordCodec::new(1);

/// A header that says nothing else but how its payload is encoded.
fn header_of(codec: Codec) -> Header {
    Record::new(Kind::Chunk, RecordId::from_bytes([0; 32]), 0, codec, Vec::new(), None).header
}

fn check_encoding(plain: &[u8], base: &[u8]) {
    let record = CODEC.encode(Kind::Chunk, ChunkId::of(plain).into(), plain, Some((ChunkId::of(base).into(), base)));
    assert!(record.payload.len() <= plain.len());
    assert_eq!(CODEC.decode(&record.header, &record.payload, Some(base)).as_deref(), Ok(plain));
}

/// A manifest node: there is one encoding of it.
pub fn manifest_node(bytes: &[u8]) -> Verdict {
    let decoded = Node::decode(bytes);
    assert_eq!(Node::verify(NodeId::of(bytes), bytes).is_ok(), decoded.is_ok());
    assert!(Node::verify(NodeId::from_bytes([0; 32]), bytes).is_err());
    if let Ok(node) = &decoded {
        assert_eq!(node.encode(), bytes);
        check_node(node);
    }
    Verdict::of(&decoded)
}

fn check_node(node: &Node) {
    match node {
        Node::Leaf(leaf) => {
            assert!(leaf.bytes() <= SEGMENT_BYTES);
            assert!(leaf.placed().all(|(at, entry)| leaf.entry_at(at).is_some_and(|(_, found)| found == entry)));
        }
        Node::Inner(inner) => {
            assert!(inner.children().iter().all(|(slot, id)| inner.child(*slot) == Some(*id)));
        }
    }
}
