//! gc frees unneeded records, and never removes a record that a snapshot needs.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::catalog::{IngestReport, Lease, SnapshotName};
use crate::format::manifest::{ChunkSource, Node};
use crate::format::{ChunkId, Codec, Kind, Record, RecordCodec};
use crate::ingest::{Base, IngestInto};
use crate::maintenance::verify::verify;
use crate::pack;
use crate::storage::whole::read_whole;
use crate::store::crash_tests::{new_storage, open_on};
use crate::store::{Claim, DirectWriteSession, WriteSession};
use crate::testing::{disk, init, night, noise, open, open_options, options, put, read_back};

fn gc(store: &Arc<Store>, dry_run: bool) -> GcReport {
    collect(store, dry_run, 2, &Progress::default()).unwrap()
}

fn pack_bytes_on_disk(dir: &Path) -> u64 {
    std::fs::read_dir(dir.join("packs")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_was_removed_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let keep = noise(3 << 20, 1);
    let kept = put(&store, night("keep", 1), &keep);
    put(&store, night("drop", 1), &noise(6 << 20, 2));
    assert_eq!(gc(&store, false).freed_bytes, 0, "nothing is dead yet");
    store.catalog().remove(&night("drop", 1)).unwrap();
    let before = pack_bytes_on_disk(dir.path());
    let dry = gc(&store, true);
    assert!(dry.freed_bytes > 6 << 20, "{dry:?}");
    assert_eq!(pack_bytes_on_disk(dir.path()), before, "a dry run changes nothing");
    let done = gc(&store, false);
    assert_eq!(before - pack_bytes_on_disk(dir.path()), done.freed_bytes);
    assert!(done.freed_bytes > 6 << 20 && store.catalog().tombstones().unwrap().is_empty(), "{done:?}");
    assert!(read_back(&*store, kept.entry()).unwrap() == keep);
    assert_eq!(gc(&store, false).freed_bytes, 0, "a second run finds nothing");
}

#[test]
fn a_pack_whose_records_were_counted_by_a_search_is_left_alone() {
    let (dir, storage) = (tempfile::tempdir().unwrap(), new_storage());
    let store = open_on(dir.path(), &storage).unwrap();
    let first = noise(100_000, 1);
    put(&store, night("web01", 1), &first);
    // The deltas of the second night follow a gap that contains a whole record: a search finds it, the table does not
    // list it.
    let session = store.session(Some(&night("web01", 1))).unwrap();
    let never = Record::new(Kind::Chunk, ChunkId::of(b"never").into(), 5, Codec::Raw, b"never".to_vec(), None);
    let room = session.reserve(Class::DataDelta, never.bytes() as u32).unwrap();
    pack::write_records(&storage, room.pack, room.offset, &[never]).unwrap();
    let into = IngestInto {
        sink: &DirectWriteSession::new(&session),
        source: &*store,
        params: store.config().format.chunk_params(),
        codec: store.codec().clone(),
        store_id: "here",
        trusts_parent: session.trusts_parent(),
        parent: session.parent().cloned(),
    };
    let mut second = first.clone();
    (0..10).for_each(|page| second[page * 10_000 + 50..][..50].fill(7));
    let named = options(night("web01", 2), Base::Newest);
    into.ingest(disk(&second), &named, &Progress::default()).unwrap();
    drop(session);
    // The third night needs a few of them, and of the first night little but their bases.
    let mut image = noise(100_000, 2);
    image[30_000..60_000].copy_from_slice(&second[30_000..60_000]);
    let third = put(&store, night("web01", 3), &image);
    for day in [1, 2] {
        store.catalog().remove(&night("web01", day)).unwrap();
    }
    drop(store);
    let path = pack::path(room.pack);
    let whole = read_whole(&storage, &path, 1 << 20).unwrap().unwrap();
    let mut harmed = whole.clone();
    *harmed.last_mut().unwrap() ^= 1;
    storage.overwrite(&path, &harmed).unwrap();
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open_on(dir.path(), &storage).unwrap();
    storage.overwrite(&path, &whole).unwrap();
    let report = gc(&store, false);
    assert!(report.kept_damaged.iter().any(|kept| kept.contains(&room.pack.to_string())), "{report:?}");
    assert!(read_back(&*store, third.entry()).unwrap() == image);
    drop(store);
    let store = open_on(dir.path(), &storage).unwrap();
    assert!(gc(&store, false).freed_bytes > 0, "now it is counted by its table");
    assert!(read_back(&*store, third.entry()).unwrap() == image);
    assert!(verify(&store, &[], 1, &Progress::default()).unwrap().is_sound());
}

#[test]
fn the_log_of_the_index_ends_with_a_collection() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    for day in 0..4 {
        put(&store, night("web01", day), &noise(1 << 20, u64::from(day)));
        gc(&store, false);
    }
    let files = std::fs::read_dir(dir.path().join("index")).unwrap().map(|file| file.unwrap().file_name());
    let logs = files.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "log")).count();
    // The last but one may still be in use.
    assert!(logs <= 2, "{logs} logs");
}

#[test]
fn small_packs_are_put_together() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let bytes = noise(1 << 20, 1);
    let nights: Vec<_> = (0..10).map(|day| put(&store, night("web01", day), &bytes)).collect();
    let packs = store.packs().rows().len();
    gc(&store, false);
    assert!(store.packs().rows().len() <= 3 && packs >= 10, "{packs} -> {}", store.packs().rows().len());
    for snapshot in nights {
        assert!(read_back(&*store, snapshot.entry()).unwrap() == bytes);
    }
}

#[test]
fn the_base_of_a_kept_delta_stays() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let first = noise(2 << 20, 1);
    let mut second = first.clone();
    (0..second.len()).step_by(8192).for_each(|at| second[at] ^= 1);
    put(&store, night("web01", 1), &first);
    let kept = put(&store, night("web01", 2), &second);
    assert!(kept.state.ingest.as_ref().unwrap().delta_chunks > 10);
    store.catalog().remove(&night("web01", 1)).unwrap();
    gc(&store, false);
    assert!(read_back(&*store, kept.entry()).unwrap() == second);
}

#[test]
fn interrupted_anywhere_it_leaves_no_delta_without_its_base() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let both = noise(3 << 20, 1);
    let mut changed = both.clone();
    (0..changed.len()).step_by(8192).for_each(|at| changed[at] ^= 1);
    put(&store, night("web01", 1), &both[..1 << 20]);
    put(&store, night("web01", 2), &both);
    put(&store, night("web01", 3), &changed);
    put(&store, night("kept", 1), &changed[..1 << 20]);
    (1..=3).for_each(|day| store.catalog().remove(&night("web01", day)).unwrap());
    let mut report = GcReport::default();
    let collecting = store.begin_collection(&store.maintain());
    let survey = Survey::make(&store, &collecting, 2, &Progress::default(), &mut report).unwrap();
    let plan = condemn(&store, survey, &collecting, &mut report);
    assert!(!plan.remove_later.is_empty() && !plan.rewrite.is_empty());
    let stopped = Progress::default();
    stopped.stop();
    assert!(matches!(plan.carry_out(&store, &stopped, &mut report), Err(Error::Interrupted)));
    store.collection_lock.spare();
    drop(collecting);
    let found = crate::maintenance::verify::verify(&store, &[], 2, &Progress::default()).unwrap();
    assert!(found.is_sound(), "{found:?}");
    let before = pack_bytes_on_disk(dir.path());
    gc(&store, false);
    assert!(pack_bytes_on_disk(dir.path()) + (1 << 20) < before);
    assert_eq!(gc(&store, false).freed_bytes, 0);
}

#[test]
fn nothing_is_collected_while_a_snapshot_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    put(&store, night("web01", 1), &noise(1 << 20, 1));
    put(&store, night("web02", 1), &noise(1 << 20, 2));
    store.catalog().remove(&night("web02", 1)).unwrap();
    let entry = dir.path().join("catalog/web01/20260102T000000Z.snap");
    let whole = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, &whole[..whole.len() - 1]).unwrap();
    let before = pack_bytes_on_disk(dir.path());
    assert!(matches!(collect(&store, false, 2, &Progress::default()), Err(Error::Damaged { .. })));
    assert_eq!(pack_bytes_on_disk(dir.path()), before);
    std::fs::write(&entry, whole).unwrap();
    assert!(gc(&store, false).freed_bytes > 1 << 20);
}

#[test]
fn what_is_leased_stays() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let bytes = noise(1 << 20, 1);
    put(&store, night("web01", 1), &bytes);
    let (held, snapshot) = Lease::of(dir.path(), store.catalog(), &night("web01", 1)).unwrap();
    store.catalog().remove(&night("web01", 1)).unwrap();
    gc(&store, false);
    assert!(read_back(&*store, snapshot.entry()).unwrap() == bytes);
    assert!(matches!(Lease::of(dir.path(), store.catalog(), &night("web01", 1)), Err(Error::NotFound { .. })));
    // A lease on records that the store never had protects nothing and stops nothing.
    let strange = Lease::take(dir.path(), &[NodeId::of(b"nowhere")]).unwrap();
    drop(held);
    assert!(gc(&store, false).freed_bytes > 1 << 20);
    drop(strange);
    let garbled = dir.path().join("leases/1.lease");
    std::fs::write(&garbled, "?").unwrap();
    let holder = std::fs::File::open(&garbled).unwrap();
    holder.lock().unwrap();
    let refused = collect(&store, false, 2, &Progress::default());
    assert!(matches!(&refused, Err(Error::Refused { what }) if what.contains("1.lease")), "{refused:?}");
}

/// A session's actions while gc decides.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    /// It publishes before the decision, and ends.
    Published,
    /// It publishes after the decision.
    Alive,
    /// It ends without publishing, and another session finds its records afterwards.
    Ended,
}

#[test]
fn what_sessions_find_is_kept_until_it_is_condemned() {
    for meanwhile in [Meanwhile::Published, Meanwhile::Alive, Meanwhile::Ended] {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        let store = open(dir.path());
        let (found, unfound) = (noise(300_000, 1), noise(300_000, 2));
        let root = put(&store, night("dead", 1), &found).entry().root.unwrap();
        let dead = put(&store, night("dead", 2), &unfound);
        (1..=2).for_each(|day| store.catalog().remove(&night("dead", day)).unwrap());
        let mut report = GcReport::default();
        let collecting = store.begin_collection(&store.maintain());
        let survey = Survey::make(&store, &collecting, 2, &Progress::default(), &mut report).unwrap();
        let mut again = dead.entry().clone();
        (again.root, again.image) = (Some(root), "again".parse().unwrap());
        again.virtual_bytes = found.len() as u64;
        let session = store.session(None).unwrap();
        let ids = records_below(&store, root);
        assert!(session.claim(&ids).unwrap().iter().all(|claim| *claim == Claim::Present));
        let publish = |session: &WriteSession| session.publish(again.clone(), IngestReport::default());
        let alive = match meanwhile {
            Meanwhile::Published => publish(&session).map(|_| None).unwrap(),
            Meanwhile::Alive => Some(session),
            Meanwhile::Ended => {
                drop(session);
                None
            }
        };
        let plan = condemn(&store, survey, &collecting, &mut report);
        let late = store.session(None).unwrap();
        let claim_dead = || late.claim(&[dead.entry().root.unwrap().into()]).unwrap();
        assert_eq!(claim_dead(), [Claim::Yours], "{meanwhile:?}: what is condemned can't be found");
        plan.carry_out(&store, &Progress::default(), &mut report).unwrap();
        store.collection_lock.spare();
        drop(collecting);
        if matches!(meanwhile, Meanwhile::Ended) {
            assert!(late.claim(&ids).unwrap().iter().all(|claim| *claim == Claim::Present));
        }
        // The records it found have been moved: another collection must know their new location.
        gc(&store, false);
        match meanwhile {
            Meanwhile::Published => {}
            Meanwhile::Alive => drop(publish(&alive.unwrap()).unwrap()),
            Meanwhile::Ended => drop(publish(&late).unwrap()),
        }
        drop(late);
        gc(&store, false);
        let snapshot = store.catalog().read(&again.name()).unwrap();
        assert!(read_back(&*store, snapshot.entry()).unwrap() == found, "{meanwhile:?}");
    }
}

#[test]
fn what_is_put_again_while_its_dead_record_goes_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let live = put(&store, night("live", 1), &noise(100_000, 1));
    let base_id = records_below(&store, live.entry().root.unwrap())[0];
    let base = store.chunk(ChunkId::from_bytes(*base_id.as_bytes())).unwrap().into_bytes();
    let mut bytes = base.clone();
    bytes[100] ^= 1;
    let id = RecordId::from(ChunkId::of(&bytes));
    let full = Record::new(Kind::Chunk, id, bytes.len(), Codec::Raw, bytes.clone(), None);
    let session = store.session(None).unwrap();
    session.put(vec![full]).unwrap();
    session.flush().unwrap();
    drop(session);
    let mut report = GcReport::default();
    let collecting = store.begin_collection(&store.maintain());
    let survey = Survey::make(&store, &collecting, 2, &Progress::default(), &mut report).unwrap();
    let plan = condemn(&store, survey, &collecting, &mut report);
    let session = store.session(None).unwrap();
    assert_eq!(session.claim(&[id]).unwrap(), [Claim::Yours]);
    // Otherwise a full record would be preferred to a delta.
    let (codec, payload) = RecordCodec::new(1).payload(&bytes, Some(&base));
    assert_eq!(codec, Codec::Delta);
    session.put(vec![Record::new(Kind::Chunk, id, bytes.len(), codec, payload, Some(base_id))]).unwrap();
    session.flush().unwrap();
    plan.carry_out(&store, &Progress::default(), &mut report).unwrap();
    store.collection_lock.spare();
    drop(collecting);
    assert_eq!(report.removed_packs, 1);
    assert_eq!(session.claim(&[id]).unwrap(), [Claim::Present]);
    assert_eq!(store.chunk(ChunkId::of(&bytes)).unwrap().bytes(), bytes);
}

fn records_below(store: &Store, root: NodeId) -> Vec<RecordId> {
    let Node::Leaf(leaf) = store.node(root).unwrap() else { panic!("one segment is one leaf") };
    leaf.chunks().map(|(_, id, _)| id.into()).chain([root.into()]).collect()
}

/// One step of an operator's life.
#[derive(Clone, Debug)]
enum Step {
    Ingest { image: u8, at: usize, len: usize, seed: u64 },
    Remove { nth: prop::sample::Index },
    Gc,
    Reopen,
    LoseIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ingest = (0..3u8, 0..840_000usize, 0..200_000usize, 0..5u64);
    let step = prop_oneof![
        5 => ingest.prop_map(|(image, at, len, seed)| Step::Ingest { image, at, len, seed }),
        3 => any::<prop::sample::Index>().prop_map(|nth| Step::Remove { nth }),
        2 => Just(Step::Gc),
        1 => Just(Step::Reopen),
        1 => Just(Step::LoseIndex),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_remaining_snapshot_comes_back(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path());
        let mut store = open(dir.path());
        let mut images: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let mut snapshots: BTreeMap<SnapshotName, Vec<u8>> = BTreeMap::new();
        for (day, step) in steps.into_iter().enumerate() {
            match step {
                Step::Ingest { image, at, len, seed } => {
                    let bytes = images.entry(image).or_insert_with(|| noise(1 << 20, 77));
                    let change = if seed == 0 { vec![0; len] } else { noise(len, seed) };
                    bytes[at..at + len].copy_from_slice(&change);
                    let name = night(&format!("vm{image}"), day as u32);
                    put(&store, name.clone(), bytes);
                    snapshots.insert(name, bytes.clone());
                }
                Step::Remove { nth } if !snapshots.is_empty() => {
                    let name = snapshots.keys().nth(nth.index(snapshots.len())).unwrap().clone();
                    store.catalog().remove(&name).unwrap();
                    snapshots.remove(&name);
                }
                Step::Remove { .. } => {}
                Step::Gc => drop(gc(&store, false)),
                Step::Reopen | Step::LoseIndex => {
                    drop(store);
                    if matches!(step, Step::LoseIndex) {
                        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
                    }
                    store = Arc::new(Store::open(dir.path(), &open_options()).unwrap());
                }
            }
        }
        for (name, bytes) in &snapshots {
            let snapshot = store.catalog().read(name).unwrap();
            prop_assert!(read_back(&*store, snapshot.entry()).unwrap() == *bytes, "{name}");
        }
        gc(&store, false);
        for (name, bytes) in &snapshots {
            prop_assert!(read_back(&*store, store.catalog().read(name).unwrap().entry()).unwrap() == *bytes);
        }
        if snapshots.is_empty() {
            prop_assert_eq!(pack_bytes_on_disk(dir.path()), 0);
        }
    }
}
