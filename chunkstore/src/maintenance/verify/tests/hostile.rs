//! Packs that are intact and contain what no ingest writes.

use super::*;
use crate::catalog::{Entry, State};
use crate::format::manifest::{Entry as Line, Leaf, Node};
use crate::format::{ChunkId, Codec, EntryId, Kind, NodeId, Record, RecordCodec};
use crate::store::WriteSession;
use crate::testing::{init, open};

fn store_with(records: &[Record]) -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let session = WriteSession::apart(&store);
    records.iter().for_each(|record| session.copy(record).unwrap());
    session.flush().unwrap();
    drop(session);
    (dir, store)
}

fn raw(kind: Kind, id: RecordId, bytes: &[u8]) -> Record {
    Record::new(kind, id, bytes.len(), Codec::Raw, bytes.to_vec(), None)
}

fn chunk(bytes: &[u8]) -> Record {
    raw(Kind::Chunk, ChunkId::of(bytes).into(), bytes)
}

fn delta(bytes: &[u8], base: &[u8], base_id: RecordId) -> Record {
    let (codec, payload) = RecordCodec::new(1).payload(bytes, Some(base));
    assert_eq!(codec, Codec::Delta);
    Record::new(Kind::Chunk, ChunkId::of(bytes).into(), bytes.len(), codec, payload, Some(base_id))
}

#[test]
fn records_that_are_not_what_they_say_are_named() {
    let (a, b, c) = (noise(20_000, 1), noise(20_000, 2), noise(20_000, 3));
    let id = |bytes: &[u8]| RecordId::from(ChunkId::of(bytes));
    let near = |bytes: &[u8]| [&bytes[..15_000], &[7; 3000]].concat();
    let cases: Vec<(&str, Vec<Record>, &str)> = vec![
        ("another's bytes", vec![raw(Kind::Chunk, id(&a), &b)], "do not match its id"),
        ("a node's bytes as a chunk", vec![raw(Kind::Chunk, NodeId::of(&a).into(), &a)], "do not match its id"),
        ("no node", vec![raw(Kind::Node, NodeId::of(&a).into(), &a)], "node"),
        ("no entry", vec![raw(Kind::Entry, EntryId::of(b"{}").into(), b"{}")], "entry"),
        ("a base that is not there", vec![delta(&near(&a), &a, id(&a))], "base"),
        (
            "a base that is a delta itself",
            vec![chunk(&a), delta(&near(&a), &a, id(&a)), delta(&near(&near(&a)), &near(&a), id(&near(&a)))],
            "base",
        ),
        ("another base", vec![chunk(&a), chunk(&b), delta(&near(&a), &a, id(&b))], "offset"),
        ("a base of other bytes", vec![raw(Kind::Chunk, id(&a), &c), delta(&near(&a), &a, id(&a))], "base"),
        ("too long", vec![Record::new(Kind::Chunk, id(&a), 999, Codec::Raw, a.clone(), None)], "999"),
        ("no frame", vec![Record::new(Kind::Chunk, id(&a), a.len(), Codec::Zstd, a.clone(), None)], "zstd"),
    ];
    for (case, records, says) in cases {
        let (_dir, store) = store_with(&records);
        let report = check(&store).unwrap();
        assert!(text(&report).contains(says), "{case}: {report:?}");
        assert_eq!(report.records, records.len() as u64, "{case}");
        let again = check(&store).unwrap();
        assert_eq!(again.problems, report.problems, "{case}");
    }
}

#[test]
fn manifests_that_do_not_fit_are_named() {
    let bytes = noise(5000, 1);
    let leaf = Node::Leaf(Leaf::new(vec![Line::Chunk { id: ChunkId::of(&bytes), bytes: 5000 }]).unwrap());
    let id = NodeId::of(&leaf.encode());
    let missing = NodeId::of(b"nowhere");
    for (root, virtual_bytes) in [(id, 1 << 40), (missing, 5000), (missing, 1 << 60)] {
        let (_dir, store) = store_with(&[chunk(&bytes), raw(Kind::Node, id.into(), &leaf.encode())]);
        let entry = Entry { root: Some(root), virtual_bytes, ..crate::catalog::tests::entry("web01@20261120T020000Z") };
        let name = entry.name();
        store.catalog().publish(&Snapshot::create(entry, State::default()).unwrap()).unwrap();
        for report in [check(&store).unwrap(), verify(&store, &[name], 1, &Progress::default()).unwrap()] {
            let [range] = report.damage.as_slice() else { panic!("{report:?}") };
            assert_eq!((range.offset_bytes, range.bytes, range.id.clone()), (0, virtual_bytes, root.to_string()));
        }
    }
}

#[test]
fn an_ingest_that_was_cut_short_is_no_lost_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let snapshot = put(&store, night("vm", 0), &noise(100_000, 1));
    // As after a kill between sealing the last pack and publishing.
    std::fs::remove_file(dir.path().join(format!("catalog/vm/{}.snap", snapshot.name().time))).unwrap();
    drop(store.catalog().announce(&snapshot).unwrap());
    drop(store);
    let store = open(dir.path());
    assert_eq!(check(&store).unwrap().problems, Vec::<String>::new());
    let again = put(&store, night("vm", 0), &noise(100_000, 1));
    assert_eq!(again.entry_id(), snapshot.entry_id());
    assert_eq!(store.catalog().tombstones().unwrap(), []);
}

#[test]
fn a_request_to_stop_is_heard() {
    let (_dir, store) = store_with(&[chunk(&noise(9000, 1))]);
    let progress = Progress::default();
    progress.stop();
    assert!(matches!(verify(&store, &[], 2, &progress), Err(Error::Interrupted)));
}
