//! Snapshots that a few nodes make huge: each node is the child of another in all its slots, so a walk over all
//! positions never ends. And nodes that form no tree: each is the child of one that is not higher.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::catalog::{Entry, IngestReport, Snapshot, SnapshotName, State};
use crate::error::{Error, Result};
use crate::format::limits::{FANOUT, IMAGE_BYTES_MAX};
use crate::format::manifest::{Entry as Line, Inner, Leaf, Node};
use crate::format::{ChunkId, Codec, Kind, NodeId, Record};
use crate::maintenance::gc;
use crate::maintenance::stats::stats;
use crate::maintenance::verify::{VerifyReport, verify};
use crate::progress::Progress;
use crate::store::Store;
use crate::store::partial;
use crate::testing::{init, night, noise, open, put};

const CHUNK_BYTES: usize = 1 << 20;
/// Time limit for work that does not grow with the number of positions.
const PATIENCE: Duration = Duration::from_mins(2);

/// Fails if `work` does not end.
fn within_patience<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || tell.send(work()));
        match told.recv_timeout(PATIENCE) {
            Ok(done) => done,
            // The scope would wait for the thread.
            Err(error) => {
                eprintln!("it goes through all places of a vast snapshot: {error}");
                std::process::abort();
            }
        }
    })
}

fn node(node: &Node) -> (NodeId, Record) {
    let encoding = node.encode();
    let id = NodeId::of(&encoding);
    (id, Record::new(Kind::Node, id.into(), encoding.len(), Codec::Raw, encoding, None))
}

/// The records of an image of 2^60 bytes: a chunk, a leaf that has it four times, and an inner node of each height. The
/// root comes last.
fn vast() -> (NodeId, Vec<Record>) {
    let bytes = noise(CHUNK_BYTES, 7);
    let chunk = ChunkId::of(&bytes);
    let mut records = vec![Record::new(Kind::Chunk, chunk.into(), CHUNK_BYTES, Codec::Raw, bytes, None)];
    let line = Line::Chunk { id: chunk, bytes: CHUNK_BYTES as u32 };
    let (mut below, record) = node(&Node::Leaf(Leaf::new(vec![line; 4]).unwrap()));
    records.push(record);
    for height in 1..=5 {
        let slots = if height == 5 { 64 } else { FANOUT };
        let children = (0..slots).map(|slot| (slot as u8, below)).collect();
        let (id, record) = node(&Node::Inner(Inner::new(height, children).unwrap()));
        below = id;
        records.push(record);
    }
    (below, records)
}

fn entry(name: SnapshotName, root: NodeId, virtual_bytes: u64) -> Entry {
    Entry {
        image: name.image,
        time: name.time,
        root: Some(root),
        virtual_bytes,
        labels: BTreeMap::new(),
        group: None,
        origin: "elsewhere".into(),
        created: name.time.timestamp(),
        attachments: BTreeMap::new(),
        extra: BTreeMap::new(),
    }
}

/// A snapshot as it comes from elsewhere, without a report of its ingest.
fn received(name: SnapshotName, root: NodeId, virtual_bytes: u64) -> Snapshot {
    Snapshot::create(entry(name, root, virtual_bytes), State::default()).unwrap()
}

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    (dir, store)
}

fn publish(store: &Arc<Store>, records: &[Record], snapshot: Snapshot) -> Result<Snapshot> {
    let session = store.session(None)?;
    session.put_verified(records.to_vec())?;
    session.publish_snapshot(snapshot, None)
}

fn verified(store: &Arc<Store>) -> VerifyReport {
    verify(store, &[], 2, &Progress::default()).unwrap()
}

/// Flips a bit of the only chunk.
fn damage_chunk(dir: &Path) {
    let packs = fs::read_dir(dir.join("packs")).unwrap().map(|entry| entry.unwrap().path());
    let pack = packs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
}

#[test]
fn a_vast_snapshot_costs_what_its_few_nodes_cost() {
    let (dir, store) = store();
    let (root, records) = vast();
    within_patience(|| {
        // The sum of their sizes overflows.
        for day in 0..17 {
            publish(&store, &records, received(night("vast", day), root, IMAGE_BYTES_MAX)).unwrap();
        }
        assert!(verified(&store).is_sound());
        gc::collect(&store, false, 2, &Progress::default()).unwrap();
        let stats = stats(&store, 2, &Progress::default()).unwrap();
        assert_eq!((stats.snapshots, stats.chunks), (17, 1));
        assert_eq!((stats.virtual_bytes, stats.logical_bytes), (u64::MAX, u64::MAX));
        let night_after = put(&store, night("vast", 17), &noise(300_000, 1));
        assert_eq!(night_after.state.ingest.unwrap().data_bytes, 300_000);
        assert!(verified(&store).is_sound());
        damage_chunk(dir.path());
        let report = verified(&store);
        assert!(!report.is_sound() && report.damage_left_out > 1 << 40, "{}", report.damage_left_out);
        assert_eq!((report.damage[1].offset_bytes, report.damage[1].bytes), (1 << 20, 1 << 20));
    });
}

#[test]
fn what_is_here_of_a_vast_partial_snapshot_is_counted() {
    let (_dir, store) = store();
    let (root, records) = vast();
    let snapshot = received(night("vast", 0), root, IMAGE_BYTES_MAX);
    within_patience(|| {
        let session = store.session(None).unwrap();
        session.publish_partial(&snapshot).unwrap();
        session.put_verified(records[1..].to_vec()).unwrap();
        session.flush().unwrap();
        let presence = partial::presence(&store, snapshot.entry()).unwrap();
        assert_eq!((presence.present_bytes, presence.needed_bytes), (0, IMAGE_BYTES_MAX));
        session.put_verified(records[..1].to_vec()).unwrap();
        session.flush().unwrap();
        assert_eq!(partial::presence(&store, snapshot.entry()).unwrap().percent(), 100);
        assert!(verified(&store).is_sound());
        stats(&store, 2, &Progress::default()).unwrap();
    });
}

#[test]
fn a_node_in_its_place_does_not_excuse_it_beyond_the_image() {
    let (_dir, store) = store();
    let (_, records) = vast();
    let id = |height: usize| NodeId::from_bytes(*records[1 + height].header.id.as_bytes());
    let gib: u64 = 1 << 30;
    // Three subtrees of a GiB: the image ends within the second, directly after the second, after the third.
    let (root, top) = node(&Node::Inner(Inner::new(2, (0..3).map(|slot| (slot, id(1))).collect()).unwrap()));
    let records = [&records[..], &[top]].concat();
    for (day, (bytes, is_taken)) in
        (0..).zip([(2 * gib - 1, false), (2 * gib, false), (3 * gib - 1, false), (3 * gib, true)])
    {
        let published = publish(&store, &records, received(night("vast", day), root, bytes));
        match published {
            Ok(_) => assert!(is_taken, "{bytes}"),
            Err(Error::Damaged { detail, .. }) => {
                assert!(!is_taken && detail.contains("image's end"), "{bytes}: {detail}");
            }
            Err(error) => panic!("{bytes}: {error}"),
        }
    }
    assert!(verified(&store).is_sound());
}

#[test]
fn nodes_that_are_no_tree_end_nobody() {
    let (_dir, store) = store();
    let leaf = vast().1.swap_remove(1);
    let mut below = NodeId::from_bytes(*leaf.header.id.as_bytes());
    let mut records = vec![leaf];
    for number in 0..50_000_u32 {
        let (id, record) = node(&Node::Inner(Inner::new(1 + (number % 5) as u8, vec![(0, below)]).unwrap()));
        below = id;
        records.push(record);
    }
    let snapshot = received(night("chain", 0), below, IMAGE_BYTES_MAX);
    let refused = publish(&store, &records, snapshot.clone()).unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    // A remote store may claim to have such a one.
    let session = store.session(None).unwrap();
    session.put_verified(records).unwrap();
    session.publish_partial(&snapshot).unwrap();
    gc::collect(&store, false, 2, &Progress::default()).unwrap();
    stats(&store, 2, &Progress::default()).unwrap();
    partial::presence(&store, snapshot.entry()).unwrap();
    verified(&store);
}

#[test]
fn a_report_is_an_ingests_own() {
    let (_dir, store) = store();
    let (root, records) = vast();
    let session = store.session(None).unwrap();
    session.put_verified(records).unwrap();
    let report = IngestReport { data_bytes: u64::MAX, chunks: u64::MAX, ..IngestReport::default() };
    session.publish(entry(night("vast", 0), root, IMAGE_BYTES_MAX), report).unwrap();
    stats(&store, 2, &Progress::default()).unwrap();
    put(&store, night("vast", 1), &noise(300_000, 1));
}
