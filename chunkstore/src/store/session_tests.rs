//! Concurrent sessions: claims, shared packs, common losses, and what may be published.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::crash_tests::{new_storage, open_on};
use super::{Clock, OpenOptions, Store, WriteSession, verify_record};
use crate::catalog::{Entry, IngestReport, SnapshotName};
use crate::error::Error;
use crate::format::manifest::{ChunkSource, Entry as Line, Inner, Leaf, Node};
use crate::format::{ChunkId, Codec, EntryId, Kind, NodeId, Record, RecordCodec, RecordId};
use crate::maintenance::gc;
use crate::progress::Progress;
use crate::store::sink::Claim::{Elsewhere, Present, Yours};
use crate::store::sink::Like;
use crate::testing::{init, night, noise, open, open_options, put, read_back};

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    (dir, store)
}

fn chunk(bytes: &[u8]) -> Record {
    Record::new(Kind::Chunk, id(bytes), bytes.len(), Codec::Raw, bytes.to_vec(), None)
}

fn delta(bytes: &[u8], base: &[u8]) -> Record {
    let (codec, payload) = RecordCodec::new(1).payload(bytes, Some(base));
    assert_eq!(codec, Codec::Delta);
    Record::new(Kind::Chunk, id(bytes), bytes.len(), codec, payload, Some(id(base)))
}

fn id(bytes: &[u8]) -> RecordId {
    ChunkId::of(bytes).into()
}

fn node(node: &Node) -> (NodeId, Record) {
    let encoding = node.encode();
    let id = NodeId::of(&encoding);
    (id, Record::new(Kind::Node, id.into(), encoding.len(), Codec::Raw, encoding, None))
}

fn leaf(chunks: &[&[u8]]) -> Node {
    let lines = chunks.iter().map(|bytes| Line::Chunk { id: ChunkId::of(bytes), bytes: bytes.len() as u32 });
    Node::Leaf(Leaf::new(lines.collect()).unwrap())
}

fn entry(name: SnapshotName, root: NodeId, virtual_bytes: u64) -> Entry {
    Entry {
        image: name.image,
        time: name.time,
        root: Some(root),
        virtual_bytes,
        labels: BTreeMap::new(),
        group: None,
        origin: "here".into(),
        created: name.time.timestamp(),
        attachments: BTreeMap::new(),
        extra: BTreeMap::new(),
    }
}

fn publish(session: &WriteSession, entry: Entry) -> crate::error::Result<crate::catalog::Snapshot> {
    session.publish(entry, IngestReport::default())
}

#[test]
fn of_two_sessions_one_does_the_work() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let seconds = Arc::new(AtomicU64::new(0));
    let (start, passed) = (Instant::now(), Arc::clone(&seconds));
    let clock = Clock::new(move || start + Duration::from_secs(passed.load(Ordering::Relaxed)));
    let store = Arc::new(Store::open(dir.path(), &OpenOptions { clock, ..open_options() }).unwrap());
    let (a, b) = (store.session(None).unwrap(), store.session(None).unwrap());
    let ids: Vec<RecordId> = [b"1", b"2", b"3", b"4"].map(|bytes| id(bytes)).to_vec();
    assert_eq!(a.claim(&[ids[0], ids[0], ids[1]]).unwrap(), [Yours, Present, Yours]);
    assert_eq!(b.claim(&ids[..3]).unwrap(), [Elsewhere, Elsewhere, Yours]);
    a.put(vec![chunk(b"1")]).unwrap();
    assert_eq!(b.claim(&ids[..2]).unwrap(), [Present, Elsewhere], "put, though not sealed yet");
    b.flush().unwrap();
    assert_eq!(store.is_full(&ids).unwrap(), [true, false, false, false], "who counts on it can seal it");
    a.release_claims();
    assert_eq!(b.claim(&ids[1..2]).unwrap(), [Yours]);
    // Without progress claims lapse; a record that is put anyway is put once.
    assert_eq!(a.claim(&ids[1..4]).unwrap(), [Elsewhere, Elsewhere, Yours]);
    seconds.store(11, Ordering::Relaxed);
    assert_eq!(a.claim(&ids[1..2]).unwrap(), [Yours]);
    let before = (a.stored_bytes(), b.stored_bytes());
    b.put(vec![chunk(b"2")]).unwrap();
    a.put(vec![chunk(b"2"), chunk(b"1"), chunk(b"1")]).unwrap();
    assert!(a.stored_bytes() == before.0 && b.stored_bytes() > before.1);
    // A session that has the record may put it, claimed or not.
    assert_eq!(b.claim(&ids[3..]).unwrap(), [Elsewhere]);
    b.put(vec![chunk(b"4")]).unwrap();
    assert_eq!(a.claim(&ids[3..]).unwrap(), [Present]);
    drop(b);
    assert_eq!(a.claim(&ids[2..3]).unwrap(), [Yours], "it went with its session");
}

#[test]
fn a_pack_that_is_lost_takes_all_along_that_count_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = new_storage();
    let store = open_on(dir.path(), &storage).unwrap();
    let sessions: Vec<WriteSession> = (0..4).map(|_| store.session(None).unwrap()).collect();
    let [a, b, c, idle] = &sessions[..] else { unreachable!() };
    a.put(vec![chunk(b"1")]).unwrap();
    assert_eq!(b.claim(&[id(b"1")]).unwrap(), [Present]);
    c.put(vec![node(&leaf(&[b"1"])).1]).unwrap();
    // The pack of nodes, which only `c` needs, is sealed by another session.
    c.flush().unwrap();
    storage.fail_at(storage.calls() + 1, ErrorKind::StorageFull);
    assert!(matches!(a.flush(), Err(Error::OutOfSpace { .. })));
    assert!(matches!(b.claim(&[id(b"2")]), Err(Error::OutOfSpace { .. })));
    assert!(matches!(b.put(Vec::new()), Err(Error::OutOfSpace { .. })));
    for session in [c, idle, &store.session(None).unwrap()] {
        session.flush().unwrap();
    }
    assert_eq!(idle.claim(&[id(b"1")]).unwrap(), [Yours], "its record is void");
    // The same when a record can't be appended.
    assert_eq!(c.claim(&[id(b"3")]).unwrap(), [Yours]);
    c.put(vec![chunk(b"3")]).unwrap();
    storage.fail_at(storage.calls() + 1, ErrorKind::Other);
    let Err(Error::Io { source, .. }) = idle.put(vec![chunk(b"1")]) else { panic!() };
    let Err(Error::Io { source: again, .. }) = c.flush() else { panic!() };
    assert_eq!(again.to_string(), source.to_string());
    let last = store.session(None).unwrap();
    assert_eq!(last.claim(&[id(b"1"), id(b"3")]).unwrap(), [Yours, Yours]);
    last.put(vec![chunk(b"1"), chunk(b"3")]).unwrap();
    last.flush().unwrap();
    let parts = crate::storage::Storage::list(&storage, "packs").unwrap().files;
    assert!(!parts.concat().contains(".part"), "{parts:?}");
}

#[test]
fn only_what_is_there_as_a_whole_is_published() {
    let (_dir, store) = store();
    let bytes = noise(5000, 1);
    let (leaf_id, leaf_record) = node(&leaf(&[&bytes]));
    let inner = Node::Inner(Inner::new(1, vec![(0, leaf_id), (1, leaf_id)]).unwrap());
    let (inner_id, inner_record) = node(&inner);
    let longer = Node::Leaf(Leaf::new(vec![Line::Chunk { id: ChunkId::of(&bytes), bytes: 6000 }]).unwrap());
    let (longer_id, longer_record) = node(&longer);
    let (odd_id, odd_record) = node(&Node::Leaf(
        Leaf::new(vec![Line::Chunk { id: ChunkId::from_bytes(*leaf_id.as_bytes()), bytes: 5000 }]).unwrap(),
    ));
    let large = 5 << 20;
    let cases: Vec<(&str, Vec<Record>, NodeId, u64, String)> = vec![
        ("no root", vec![], leaf_id, 5000, leaf_id.to_string()),
        ("no chunk", vec![leaf_record.clone()], leaf_id, 5000, id(&bytes).to_string()),
        ("no leaf", vec![inner_record.clone()], inner_id, large, leaf_id.to_string()),
        ("a chunk that is shorter", vec![chunk(&bytes), longer_record], longer_id, 6000, id(&bytes).to_string()),
        ("a node as a chunk", vec![leaf_record.clone(), odd_record], odd_id, 5000, leaf_id.to_string()),
        ("an image that is shorter", vec![chunk(&bytes), leaf_record.clone()], leaf_id, 4999, leaf_id.to_string()),
        ("a lower tree", vec![chunk(&bytes), leaf_record.clone()], leaf_id, large, leaf_id.to_string()),
        ("a taller tree", vec![inner_record], inner_id, 5000, inner_id.to_string()),
    ];
    let name = night("web01", 1);
    for (case, records, root, virtual_bytes, names) in cases {
        let (_dir, store) = self::store();
        let session = store.session(None).unwrap();
        session.put(records).unwrap();
        match publish(&session, entry(name.clone(), root, virtual_bytes)) {
            Err(error @ Error::Damaged { .. }) => assert!(error.to_string().contains(&names), "{case}: {error}"),
            other => panic!("{case}: {other:?}"),
        }
        assert_eq!(store.catalog().images().unwrap(), [], "{case}");
        let found = crate::maintenance::verify::verify(&store, &[], 1, &Progress::default()).unwrap();
        assert!(found.is_sound(), "{case}: {found:?}");
    }
    // Records that another session put and has not sealed count.
    let (other, session) = (store.session(None).unwrap(), store.session(None).unwrap());
    other.put(vec![chunk(&bytes)]).unwrap();
    session.put(vec![leaf_record]).unwrap();
    let snapshot = publish(&session, entry(name, leaf_id, 5000)).unwrap();
    assert_eq!(read_back(&*store, snapshot.entry()).unwrap(), bytes);
}

#[test]
fn a_delta_needs_its_base_sealed_and_full() {
    let (_dir, store) = store();
    let base = noise(20_000, 1);
    let near = [&base[..15_000], &[7; 3000]].concat();
    let session = store.session(None).unwrap();
    let refused = |record: Record, base: &[u8]| match session.put(vec![chunk(b"x"), record]) {
        Err(Error::Refused { what }) => assert!(what.contains(&id(base).to_string()), "{what}"),
        other => panic!("{other:?}"),
    };
    refused(delta(&near, &base), &base);
    session.put(vec![chunk(&base)]).unwrap();
    session.flush().unwrap();
    session.put(vec![delta(&near, &base)]).unwrap();
    session.flush().unwrap();
    let nearer = [&near[..], b"more"].concat();
    refused(delta(&nearer, &near), &near);
    assert_eq!(session.claim(&[id(b"x"), id(&nearer)]).unwrap(), [Yours, Yours], "nothing was put");
    let bases = session.bases(&[Like::Record(id(&near)), Like::Record(id(b"x")), Like::Record(id(&base))]).unwrap();
    let ids: Vec<_> = bases.into_iter().map(|found| found.map(|found| (found.id, **found.bytes == base[..]))).collect();
    assert_eq!(ids, [Some((id(&base), true)), None, Some((id(&base), true))]);
}

#[test]
fn of_many_that_publish_one_name_one_wins() {
    let (_dir, store) = store();
    let barrier = Barrier::new(4);
    let won = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|number: u64| {
                let (store, barrier) = (&store, &barrier);
                scope.spawn(move || {
                    // Two of them publish the same entry.
                    let bytes = noise(5000, number / 2);
                    let session = store.session(None).unwrap();
                    let (root, record) = node(&leaf(&[&bytes]));
                    barrier.wait();
                    session.put(vec![chunk(&bytes), record]).unwrap();
                    match publish(&session, entry(night("web01", 1), root, 5000)) {
                        Ok(snapshot) => assert_eq!(read_back(&**store, snapshot.entry()).unwrap(), bytes),
                        Err(Error::Refused { .. }) => return 0,
                        Err(error) => panic!("{error}"),
                    }
                    1
                })
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).sum::<i32>()
    });
    assert_eq!(won, 1);
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    let winner = store.catalog().read(&night("web01", 1)).unwrap();
    assert!(store.catalog().tombstones().unwrap().iter().all(|tombstone| !tombstone.is_of(&winner)));
    let found = crate::maintenance::verify::verify(&store, &[], 1, &Progress::default()).unwrap();
    assert!(found.is_sound(), "{found:?}");
}

#[test]
fn ingests_of_the_same_image_at_once_store_it_once() {
    let (_dir, store) = store();
    let image = noise(9 << 20, 1);
    let reports = std::thread::scope(|scope| {
        let ingests: Vec<_> = (0..3)
            .map(|number| {
                let (store, image) = (&store, &image);
                scope.spawn(move || put(store, night(&format!("vm{number}"), 1), image).state.ingest.unwrap())
            })
            .collect();
        ingests.into_iter().map(|ingest| ingest.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(reports.iter().map(|report| report.new_chunks).sum::<u64>(), reports[0].chunks);
    let stored: u64 = store.packs().rows().iter().map(|row| row.bytes).sum();
    let files: u64 =
        store.catalog().list(None).unwrap().iter().map(|l| l.snapshot.as_ref().unwrap().encode().len() as u64).sum();
    assert_eq!(reports.iter().map(|report| report.stored_bytes).sum::<u64>(), stored + files);
    assert!(stored < (image.len() + image.len() / 16) as u64, "{stored}");
}

#[test]
fn what_a_session_leaves_is_found_again() {
    let (dir, store) = store();
    let session = store.session(None).unwrap();
    session.put(vec![chunk(b"1")]).unwrap();
    drop(session);
    assert_eq!(store.session(None).unwrap().claim(&[id(b"1")]).unwrap(), [Present]);
    store.flush_open_packs().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.session(None).unwrap().claim(&[id(b"1")]).unwrap(), [Present]);
    store.session(None).unwrap().put(vec![chunk(b"2")]).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.session(None).unwrap().claim(&[id(b"2")]).unwrap(), [Yours], "it was not sealed");
}

#[test]
fn a_parent_must_be_there() {
    let (_dir, store) = store();
    assert!(matches!(store.session(Some(&night("web01", 1))), Err(Error::NotFound { .. })));
    let snapshot = put(&store, night("web01", 1), &noise(100_000, 1));
    let session = store.session(Some(&night("web01", 1))).unwrap();
    assert!(session.trusts_parent() && session.parent() == Some(&snapshot));
    store.catalog().remove(&night("web01", 1)).unwrap();
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert!(read_back(&*store, snapshot.entry()).is_ok(), "it is leased");
    drop(session);
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert!(read_back(&*store, snapshot.entry()).is_err());
}

#[test]
fn records_are_given_as_they_are_stored() {
    let (_dir, store) = store();
    let first = noise(300_000, 1);
    let mut second = first.clone();
    second[150_000] ^= 1;
    put(&store, night("web01", 1), &first);
    let root = put(&store, night("web01", 2), &second).entry().root.unwrap();
    let Node::Leaf(leaf) = store.node(root).unwrap() else { panic!("one segment is one leaf") };
    let mut ids: Vec<RecordId> = leaf.chunks().map(|(_, id, _)| id.into()).collect();
    ids.extend([root.into(), id(b"absent")]);
    let mut given = vec![None; ids.len()];
    store
        .records(&ids, &mut |at, record| {
            assert!(given[at].replace(record.ok()).is_none(), "{at} twice");
            Ok(())
        })
        .unwrap();
    let absent = given.pop().unwrap();
    assert!(matches!(absent, Some(None)));
    let records: Vec<Record> = given.into_iter().map(|record| record.unwrap().unwrap()).collect();
    let is_full = store.is_full(&ids).unwrap();
    for ((record, id), is_full) in records.iter().zip(&ids).zip(is_full) {
        assert!(record.header.id == *id && record.header.payload_matches(&record.payload));
        assert_eq!(record.header.codec != Codec::Delta, is_full);
        verify_record(&store, record).unwrap();
    }
    assert!(records.iter().any(|record| record.header.codec == Codec::Delta));
    // They make the same snapshot elsewhere, bases first; a manipulated record is refused.
    let (_dir, other) = self::store();
    let session = other.session(None).unwrap();
    let delta = records.iter().find(|record| record.header.base.is_some()).unwrap();
    assert!(matches!(verify_record(&other, delta), Err(Error::Damaged { .. })), "without its base");
    let full: Vec<Record> = records.iter().filter(|record| record.header.base.is_none()).cloned().collect();
    for at in [0, full.len() - 1] {
        let mut tampered = full[at].clone();
        tampered.payload[9] ^= 1;
        assert!(matches!(session.put_verified(vec![tampered]), Err(Error::Damaged { .. })));
    }
    session.put_verified(full).unwrap();
}

#[test]
fn what_is_not_what_it_says_is_not_verified() {
    let (_dir, store) = store();
    let raw = |kind, id: RecordId, bytes: &[u8]| Record::new(kind, id, bytes.len(), Codec::Raw, bytes.to_vec(), None);
    let (a, b) = (noise(100, 1), noise(100, 2));
    let cases = [
        raw(Kind::Chunk, id(&a), &b),
        raw(Kind::Chunk, NodeId::of(&a).into(), &a),
        raw(Kind::Node, NodeId::of(&a).into(), &a),
        raw(Kind::Entry, EntryId::of(b"{}").into(), b"{}"),
        Record::new(Kind::Chunk, id(&a), 999, Codec::Raw, a.clone(), None),
        Record::new(Kind::Chunk, id(&a), a.len(), Codec::Zstd, a.clone(), None),
        Record::new(Kind::Chunk, id(&a), a.len(), Codec::Delta, a.clone(), Some(id(&b))),
    ];
    for (case, record) in cases.into_iter().enumerate() {
        assert!(matches!(verify_record(&store, &record), Err(Error::Damaged { .. })), "case {case}");
    }
    let mut huge = raw(Kind::Chunk, id(&a), &a);
    huge.header.plain_bytes = u32::MAX;
    huge.header.codec = Codec::Zstd;
    assert!(matches!(verify_record(&store, &huge), Err(Error::Damaged { .. })));
    verify_record(&store, &chunk(&a)).unwrap();
}

#[test]
fn a_reader_finds_what_gc_moves_under_it() {
    let (dir, store) = store();
    let mut image = noise(1 << 20, 1);
    for day in 0..8 {
        // Some new chunks, and some that are deltas.
        let at = day as usize * 100_000;
        image[at..at + 50_000].copy_from_slice(&noise(50_000, 2 + u64::from(day)));
        image[at + 70_000] ^= 1;
        put(&store, night("web01", day), &image);
    }
    (0..7).for_each(|day| store.catalog().remove(&night("web01", day)).unwrap());
    let root = store.catalog().read(&night("web01", 7)).unwrap().entry().root.unwrap();
    let Node::Leaf(leaf) = store.node(root).unwrap() else { panic!("one segment is one leaf") };
    let ids: Vec<ChunkId> = leaf.chunks().map(|(_, id, _)| id).collect();
    let mut handed = 0;
    store
        .chunks(&ids, &mut |_, chunk| {
            chunk.unwrap();
            handed += 1;
            if handed == 1 {
                let before = packs_in(dir.path());
                gc::collect(&store, false, 1, &Progress::default()).unwrap();
                let kept = packs_in(dir.path()).iter().filter(|pack| before.contains(pack)).count();
                assert!(kept * 4 < before.len(), "{kept} packs of {}", before.len());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(handed, ids.len());
}

fn packs_in(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir.join("packs")).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_place_whose_pack_is_gone_is_looked_up_again() {
    let (_dir, store) = store();
    let snapshots: Vec<_> = (0..5).map(|day| put(&store, night("web01", day), &noise(50_000, day.into()))).collect();
    let roots: Vec<RecordId> = snapshots.iter().map(|snapshot| snapshot.entry().root.unwrap().into()).collect();
    let stale = store.locate(&roots).unwrap();
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    let mut times = 0;
    let look_up = |ids: &[RecordId]| {
        times += 1;
        if times == 1 { Ok(stale.clone()) } else { store.index().locate(ids) }
    };
    let look_up = std::cell::RefCell::new(look_up);
    let locations = store.sound_places(&roots, |ids| look_up.borrow_mut()(ids)).unwrap();
    assert!(locations != stale && locations == store.locate(&roots).unwrap() && locations.iter().all(Option::is_some));
}

#[test]
fn the_base_of_a_delta_that_nobody_published_stays_with_it() {
    let (_dir, store) = store();
    let bytes = noise(5000, 1);
    let (root, record) = node(&leaf(&[&bytes]));
    let session = store.session(None).unwrap();
    session.put(vec![chunk(&bytes), record]).unwrap();
    publish(&session, entry(night("web01", 1), root, 5000)).unwrap();
    let changed = [&bytes[..4000], &[7; 500]].concat();
    session.put(vec![delta(&changed, &bytes)]).unwrap();
    drop(session);
    store.catalog().remove(&night("web01", 1)).unwrap();
    // Its pack is open, so gc can't read it.
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert_eq!(store.session(None).unwrap().claim(&[id(&changed)]).unwrap(), [Present]);
    store.flush_open_packs().unwrap();
    let found = crate::maintenance::verify::verify(&store, &[], 1, &Progress::default()).unwrap();
    assert!(found.is_sound(), "{found:?}");
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert_eq!(store.packs().rows(), [], "nothing needs them now");
}

#[test]
fn who_counts_on_all_that_is_pending_counts_on_the_bases() {
    let (_dir, store) = store();
    let bytes = noise(5000, 1);
    let session = store.session(None).unwrap();
    session.put(vec![chunk(&bytes)]).unwrap();
    session.flush().unwrap();
    session.put(vec![delta(&[&bytes[..4000], &[7; 500]].concat(), &bytes)]).unwrap();
    let other = store.session(None).unwrap();
    store.count_on_pending(&other.handle).unwrap();
    assert!(other.handle.bases.has(&store.locate(&[id(&bytes)]).unwrap()[0].unwrap()));
}

#[test]
fn the_base_of_a_delta_stays_with_it_when_gc_moves_it_before_the_delta_is_in_a_pack() {
    let (_dir, store) = store();
    let bytes = noise(5000, 1);
    let session = store.session(None).unwrap();
    session.put(vec![chunk(&bytes), chunk(&noise(9000, 2))]).unwrap();
    session.flush().unwrap();
    drop(session);
    let session = store.session(None).unwrap();
    let delta = delta(&[&bytes[..4000], &[7; 500]].concat(), &bytes);
    session.pin_bases(std::iter::once(&delta.header)).unwrap();
    let location = |id| store.locate(&[id]).unwrap()[0].unwrap();
    let before = location(id(&bytes));
    // Most of the base's pack is garbage.
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert_ne!(location(id(&bytes)).pack, before.pack);
    session.open_packs.append(&session.handle, &delta).unwrap();
    drop(session);
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    store.flush_open_packs().unwrap();
    let found = crate::maintenance::verify::verify(&store, &[], 1, &Progress::default()).unwrap();
    assert!(found.is_sound(), "{found:?}");
}
