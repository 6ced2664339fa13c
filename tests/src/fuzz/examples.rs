//! Valid inputs of each target, made by the library's own encoders where there are any; always the same bytes. What
//! they show is small: a fuzzer needs one of each kind, not much of any.

mod clones;
mod commands;
mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::sync::Arc;

use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::catalog::retention::Retention;
use chunkstore::catalog::{Entry, Lease, Snapshot, State};
use chunkstore::format::manifest::{self, Inner, Leaf, Node};
use chunkstore::format::{ChunkId, ChunkParams, Codec, EntryId, Kind, NodeId, PackId, Record, RecordCodec, RecordId};
use chunkstore::pack::{Class, DIR, PackHeader, PackWriter, path};
use chunkstore::storage::{MemStorage, Storage};
use chunkstore::store::Config;
use chunkstore::store::damaged::{BadRecord, Damaged, FILE};
use serde::Serialize;
use tempfile::TempDir;

use super::Example;
use crate::images::Rng;

pub(super) use clones::{clone_map, clone_record, clone_socket, lock_holder, mountinfo};
pub(super) use commands::{mount_status, options, reports};
pub(super) use peers::{frames, messages, peer_names, pem, quotas, remotes, tokens, wire_records};

const ENTRY: &str = concat!(
    r#"{"image":"web01","time":"20261120T020000Z","#,
    r#""root":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","virtual_bytes":8589934592,"#,
    r#""labels":{"app":"mysql","os":"debian12"},"group":"web","origin":"00112233445566778899aabbccddeeff","#,
    r#""created":"2026-11-20T02:00:07Z","attachments":{"domain.xml":"<domain/>\n"}}"#,
);
/// As a newer version may write it: with its own spacing, numbers and fields.
const NEWER_ENTRY: &str = concat!(
    r#"{ "weight": 1.0e3, "image": "a", "time": "19700101T000000Z", "root": null, "virtual_bytes": 0, "#,
    r#""origin": "", "created": "2026-11-20T03:00:07.25+01:00", "later": {"deep": [[1, -2, {"x": null}]]}}"#,
);
const STATE: &str = concat!(
    r#"{"holds":["clone a","operator"],"partial":true,"received_from":"site-b","ingest":{"parent":null,"data_bytes":5,"#,
    r#""elapsed_s":0.25,"throughput_bytes_per_s":20.0},"later":18446744073709551615}"#,
);

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("all keys are strings")
}

/// Pages that compress a little, as a disk's do.
fn plain(seed: u64) -> Vec<u8> {
    let mut bytes = b"one line of a log file that is much like the next\n".repeat(20);
    bytes.extend(Rng::new(seed).noise(100));
    bytes
}

fn chunk(bytes: &[u8], codec: Codec, payload: Vec<u8>, base: Option<RecordId>) -> Record {
    Record::new(Kind::Chunk, ChunkId::of(bytes).into(), bytes.len(), codec, payload, base)
}

fn raw_chunk() -> Record {
    chunk(b"hello", Codec::Raw, b"hello".to_vec(), None)
}

fn zstd_chunk() -> Record {
    RecordCodec::new(1).encode(Kind::Chunk, ChunkId::of(&plain(1)).into(), &plain(1), None).with_sketch(7)
}

/// A chunk much like that of [`zstd_chunk`].
fn delta_chunk() -> Record {
    let base = (ChunkId::of(&plain(1)).into(), &plain(1)[..]);
    RecordCodec::new(1).encode(Kind::Chunk, ChunkId::of(&plain(2)).into(), &plain(2), Some(base))
}

fn leaf() -> Node {
    let chunk = |n: u8, bytes| manifest::Entry::Chunk { id: ChunkId::of(&[n]), bytes };
    let entries = vec![manifest::Entry::Zero { bytes: 8192 }, chunk(1, 70_000), chunk(2, 16_384), chunk(1, 70_000)];
    Node::Leaf(Leaf::new(entries).expect("a canonical leaf"))
}

fn inner() -> Node {
    let children = [0, 9, 255].map(|slot| (slot, NodeId::of(&[slot]))).to_vec();
    Node::Inner(Inner::new(2, children).expect("a canonical node"))
}

fn node_record(node: &Node) -> Record {
    let encoding = node.encode();
    Record::new(Kind::Node, NodeId::of(&encoding).into(), encoding.len(), Codec::Raw, encoding, None)
}

fn entry_record() -> Record {
    let encoding = ENTRY.as_bytes().to_vec();
    Record::new(Kind::Entry, EntryId::of(&encoding).into(), encoding.len(), Codec::Raw, encoding, None)
}

pub(super) fn record_header() -> Vec<Example> {
    let header = |record: Record| record.header.encode().to_vec();
    vec![("raw", header(raw_chunk())), ("delta", header(delta_chunk())), ("entry", header(entry_record()))]
}

pub(super) fn pack() -> Vec<Example> {
    vec![
        ("data", sealed_pack(Class::Data, &[raw_chunk(), zstd_chunk(), chunk(b"", Codec::Raw, Vec::new(), None)])),
        ("deltas", sealed_pack(Class::DataDelta, &[delta_chunk()])),
        ("meta", sealed_pack(Class::Meta, &[node_record(&leaf()), node_record(&inner()), entry_record()])),
        ("empty", sealed_pack(Class::MetaDelta, &[])),
        ("gaps", pack_with_gaps()),
    ]
}

fn pack_with_gaps() -> Vec<u8> {
    with_pack(Class::Data, |pack| {
        pack.skip(100);
        pack.append(&raw_chunk())?;
        pack.skip(1);
        pack.append(&zstd_chunk())?;
        pack.skip(7);
        Ok(())
    })
}

fn sealed_pack(class: Class, records: &[Record]) -> Vec<u8> {
    with_pack(class, |pack| records.iter().try_for_each(|record| pack.append(record)))
}

fn with_pack(class: Class, fill: impl FnOnce(&mut PackWriter) -> chunkstore::Result<()>) -> Vec<u8> {
    let storage = MemStorage::new();
    storage.create_dir(DIR).expect("memory can always be written");
    let id = PackId { number: 3, tag: 0x0a0b_0c0d };
    let header = PackHeader { store_id: [7; 16], id, class, params: ChunkParams::default() };
    let mut pack = PackWriter::create(Arc::new(storage.clone()), header).expect("memory can always be written");
    fill(&mut pack).expect("memory can always be written");
    pack.seal().expect("memory can always be written");
    content(&storage, &path(id))
}

fn content(storage: &MemStorage, path: &str) -> Vec<u8> {
    let file = storage.open(path).expect("it was written");
    let mut bytes = vec![0; file.len_bytes().expect("memory can always be read") as usize];
    file.read_exact_at(&mut bytes, 0).expect("memory can always be read");
    bytes
}

pub(super) fn payload() -> Vec<Example> {
    vec![
        ("raw", claimed(&raw_chunk(), b"")),
        ("zstd", claimed(&zstd_chunk(), b"")),
        ("delta", claimed(&delta_chunk(), &plain(1))),
    ]
}

/// The form that the target `payload` reads.
fn claimed(record: &Record, base: &[u8]) -> Vec<u8> {
    let mut bytes = vec![record.header.codec as u8];
    bytes.extend(record.header.plain_bytes.to_le_bytes());
    bytes.extend((base.len() as u32).to_le_bytes());
    assert_eq!(bytes.len(), super::records::PAYLOAD_FRONT_BYTES);
    [bytes.as_slice(), base, &record.payload].concat()
}

pub(super) fn manifest_node() -> Vec<Example> {
    vec![("leaf", leaf().encode()), ("inner", inner().encode())]
}

pub(super) fn catalog_file() -> Vec<Example> {
    let file = |entry: &str, state: State| {
        let id = EntryId::of(entry.as_bytes());
        Snapshot::from_entry(id, entry.as_bytes().to_vec(), state).expect("a valid entry").encode()
    };
    let state = serde_json::from_str(STATE).expect("a valid state");
    vec![("plain", file(ENTRY, State::default())), ("newer", file(NEWER_ENTRY, state))]
}

pub(super) fn snapshot_entry() -> Vec<Example> {
    let old = Entry::decode(NEWER_ENTRY.as_bytes()).and_then(|entry| entry.encode()).expect("a valid entry");
    vec![("plain", ENTRY.into()), ("newer", NEWER_ENTRY.into()), ("rewritten", old)]
}

pub(super) fn config() -> Vec<Example> {
    let created = "2026-11-20T00:00:00Z".parse().expect("a time");
    let fresh = Config::new([7; 16], created, ChunkParams::default()).expect("sizes within the limits");
    let mut edited = fresh.clone();
    let later =
        [("later".to_owned(), toml::Value::from(vec![1, 2])), ("a.b \"c\"".to_owned(), toml::Value::from("x\ny"))];
    edited.format.extra = BTreeMap::from(later);
    edited.defaults.time_zone = String::from("Europe/Berlin");
    edited.defaults.threads = NonZeroU32::new(3);
    edited.defaults.retention = Retention { last: Some(1), daily: Some(14), yearly: Some(0), ..Retention::default() };
    vec![("fresh", fresh.render().into()), ("edited", edited.render().into())]
}

pub(super) fn boot_order() -> Vec<Example> {
    let order = BootOrder::new([1 << 30..(1 << 30) + 4096, 0..65536, 1 << 20..(1 << 20) + 1]);
    vec![("order", order.encode()), ("empty", BootOrder::default().encode())]
}

pub(super) fn damaged_list() -> Vec<Example> {
    let storage = MemStorage::new();
    let mut damaged = Damaged::default();
    for (number, base_lost) in [(1, false), (2, true)] {
        let pack = PackId { number, tag: 7 };
        damaged.insert(BadRecord { pack, offset: 64 * number, id: ChunkId::of(b"x").into(), base_lost });
    }
    damaged.save(&storage).expect("memory can always be written");
    vec![("list", content(&storage, FILE))]
}

pub(super) fn lease() -> Vec<Example> {
    let roots = [1, 2].map(|n| NodeId::of(&[n]));
    vec![("two", lease_of(&roots)), ("zeros", lease_of(&[]))]
}

fn lease_of(roots: &[NodeId]) -> Vec<u8> {
    let dir = TempDir::new().expect("a directory for a lease");
    let _held = Lease::take(dir.path(), roots).expect("a lease can be taken there");
    let mut files = fs::read_dir(dir.path().join("leases")).expect("it was just made");
    let file = files.next().expect("the lease is there").expect("it can be listed");
    fs::read(file.path()).expect("it can be read")
}

/// A row of the family `packs` and a value of `records` (FORMAT.md, "Index").
pub(super) fn index_row() -> Vec<Example> {
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    let place = [numbers(&[3, 0, 4096, 700, 70_000]), vec![Kind::Chunk as u8, Codec::Delta as u8]].concat();
    let lengths = [1_u64 << 20, 3 << 20].map(u64::to_le_bytes).concat();
    let pack = [vec![0, 0, 0, 3], numbers(&[0xdead_beef, 17]), lengths, vec![Class::Data as u8], vec![0; 7]].concat();
    vec![("place", place), ("pack", pack)]
}

pub(super) fn file_names() -> Vec<Example> {
    let packs = "0000000c-deadbeef.pack\n0000000d-00000000.part\nffffffff-00000000.pack\nREADME\n";
    let catalog = concat!(
        "20261120T020000Z.snap\n20261120T020000Z.snap.tmp\n20261121T020000Z.0123456789abcdef.removed\n",
        "20261121T020000Z.0123456789abcdef.removed.tmp\nweb01\n",
    );
    let clones = "1.data\n1.map\n+1.data\n01.map\n.web01.new\n.web01.gone\nclone.json\nlock\n";
    vec![("packs", packs.into()), ("catalog", catalog.into()), ("clones", clones.into())]
}

pub(super) fn names() -> Vec<Example> {
    let texts = [
        ("image", "web01.disk_0"),
        ("snapshot", "web01@20261120T020000Z"),
        ("latest", "web01@latest"),
        ("day", "web01@2026-11-20"),
        ("time", "2026-11-20T02:00:00.5+01:00"),
        ("date", "2026-11-20"),
        ("label", "os=debian12=x"),
        ("chunk", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        ("pack", "0000000c-deadbeef"),
        ("format", "qcow2"),
    ];
    texts.map(|(name, text)| (name, text.into())).into()
}

/// DEFLATE's longest repetition of the byte before, three times, where there is none before: a cluster of nothing.
const FAR_BACK: [u8; 7] = [0x1b, 0x05, 0xa3, 0x60, 0x14, 0x00, 0x00];
/// Bytes of a cluster of the images below, the least that the format has.
const CLUSTER_BYTES: usize = 512;

pub(super) fn qcow2_image() -> Vec<Example> {
    let backing = super::qcow2::BACKING;
    let mut far_back = qcow2(3, None);
    far_back[4 * CLUSTER_BYTES..][..FAR_BACK.len()].copy_from_slice(&FAR_BACK);
    vec![
        ("version3", qcow2(3, None)),
        ("version2", qcow2(2, None)),
        ("backed", qcow2(3, Some(backing))),
        ("far_back", far_back),
    ]
}

/// A disk of 40 KiB with a plain, a compressed and a zero cluster, and one that isn't there. The clusters of the file:
/// header, table of first level, table of second level, data, compressed data.
fn qcow2(version: u32, backing: Option<&str>) -> Vec<u8> {
    let mut image = vec![0; 6 * CLUSTER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &CLUSTER_BYTES.ilog2().to_be_bytes());
    put(24, &(40_u64 << 10).to_be_bytes());
    put(36, &2_u32.to_be_bytes());
    put(40, &(CLUSTER_BYTES as u64).to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    if let Some(name) = backing {
        put(104, &0xe279_2aca_u32.to_be_bytes());
        put(108, &3_u32.to_be_bytes());
        put(112, b"raw");
        put(8, &400_u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(400, name.as_bytes());
    }
    let copied = 1_u64 << 63;
    put(CLUSTER_BYTES, &(copied | (2 * CLUSTER_BYTES as u64)).to_be_bytes());
    let zeros = u64::from(version == 3);
    // A compressed cluster's sectors beyond its first are counted from bit 61 on, where clusters have 512 bytes.
    let compressed = (1 << 62) | (1 << 61) | (4 * CLUSTER_BYTES as u64);
    for (slot, place) in [copied | (3 * CLUSTER_BYTES as u64), compressed, zeros].into_iter().enumerate() {
        put(2 * CLUSTER_BYTES + 8 * slot, &place.to_be_bytes());
    }
    put(3 * CLUSTER_BYTES, &[0xd5; CLUSTER_BYTES]);
    put(4 * CLUSTER_BYTES, &deflated(&[0xc5; CLUSTER_BYTES]));
    image
}

/// One stored block of DEFLATE (RFC 1951, 3.2.4).
fn deflated(bytes: &[u8; CLUSTER_BYTES]) -> Vec<u8> {
    let len = CLUSTER_BYTES as u16;
    [&[1_u8][..], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes].concat()
}
