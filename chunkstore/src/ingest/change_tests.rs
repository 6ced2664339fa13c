//! Ingest of changes gives the root of a full ingest, whatever changed, and reads what changed.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::format::limits::SEGMENT_BYTES;
use crate::store::InitOptions;
use crate::testing::{MemDisk, disk, night, noise, open, options, put, read_back, small_params};

/// Ranges in order.
struct Ranges(Vec<Range<u64>>);

impl ChangedRanges for Ranges {
    fn next_changed(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok(self.0.iter().find(|range| range.end > offset).cloned())
    }
}

/// A disk that counts what is read of it.
struct Counting {
    disk: MemDisk,
    read_bytes: Arc<AtomicU64>,
}

impl DiskSource for Counting {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.disk.read_exact_at(buf, offset)
    }

    fn finish(&self) -> Result<()> {
        self.disk.finish()
    }
}

/// Ingests changes of the first night of web01; returns the snapshot and how much was read.
fn put_changes(store: &Arc<Store>, name: SnapshotName, bytes: &[u8], changed: Vec<Range<u64>>) -> (Snapshot, u64) {
    let read_bytes = Arc::default();
    let disk = MemDisk { bytes: bytes.to_vec(), tells_holes: true };
    let disk = Counting { disk, read_bytes: Arc::clone(&read_bytes) };
    let options = options(name, Base::Snapshot(night("web01", 1)));
    let snapshot = ingest_changes(store, &disk, &Ranges(changed), &options, &Progress::default()).unwrap();
    (snapshot, read_bytes.load(Ordering::Relaxed))
}

fn init(dir: &std::path::Path, zero_run_min_bytes: u32) {
    let params = ChunkParams { zero_run_min_bytes, ..small_params() };
    let options = InitOptions { params, reserve: false };
    Store::init(dir, &options, [7; 16], "2026-11-20T00:00:00Z".parse().unwrap()).unwrap();
}

/// Five segments: data, half data, zeros, data with short and long zeros, and a short one.
fn image(tail_bytes: usize) -> Vec<u8> {
    let mut image = noise(SEGMENT_BYTES + SEGMENT_BYTES / 2, 1);
    image.resize(3 * SEGMENT_BYTES, 0);
    for blocks in 1..40 {
        image.extend(noise(blocks * 1000 / 4096 * 4096 + 4096, blocks as u64));
        image.extend(vec![0; blocks % 7 * 4096]);
    }
    image.resize(4 * SEGMENT_BYTES, 0);
    image.extend(noise(tail_bytes, 5));
    image
}

/// What is written to a disk.
#[derive(Clone, Copy, Debug)]
enum Write {
    Noise(u64),
    Zeros,
    Same,
}

type Writes = Vec<(prop::sample::Index, usize, Write, bool)>;

fn writes() -> impl Strategy<Value = Writes> {
    let write = prop_oneof![(0..5u64).prop_map(Write::Noise), Just(Write::Zeros), Just(Write::Same)];
    let len = prop_oneof![Just(4096usize), 1..10_000usize, 1..300_000usize, Just(2 * SEGMENT_BYTES), 1..9_000_000usize];
    prop::collection::vec((any::<prop::sample::Index>(), len, write, any::<bool>()), 0..6)
}

fn written(mut image: Vec<u8>, writes: &Writes, size: usize) -> (Vec<u8>, Vec<Range<u64>>) {
    image.resize(size, 0);
    let mut changed = Vec::new();
    for (at, len, write, aligned) in writes {
        let at = if *aligned { at.index(size) / 4096 * 4096 } else { at.index(size) };
        let range = at..(at + len).min(size);
        match write {
            Write::Noise(seed) => image[range.clone()].copy_from_slice(&noise(range.len(), seed + 20)),
            Write::Zeros => image[range.clone()].fill(0),
            Write::Same => {}
        }
        changed.push(range.start as u64..range.end as u64);
    }
    changed.sort_by_key(|range| range.start);
    let mut apart: Vec<Range<u64>> = Vec::new();
    for range in changed {
        match apart.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    (image, apart)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn changes_give_the_root_of_the_whole(
        writes in writes(),
        tail_bytes in prop_oneof![Just(0usize), 1..200_000usize],
        resized in prop_oneof![4 => Just(None), 1 => (1..30_000_000usize).prop_map(Some), 1 => (1..7usize).prop_map(|s| Some(s * SEGMENT_BYTES))],
        zero_run_blocks in 1..8u32,
    ) {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), zero_run_blocks * 4096);
        let store = open(dir.path());
        let parent = image(tail_bytes);
        put(&store, night("web01", 1), &parent);
        let (child, changed) = written(parent.clone(), &writes, resized.unwrap_or(parent.len()));
        let snapshot = put_changes(&store, night("changes", 1), &child, changed).0;
        prop_assert!(read_back(&*store, snapshot.entry()).unwrap() == child);
        let whole = options(night("whole", 1), Base::None);
        let whole = ingest(&store, disk(&child), &whole, &Progress::default()).unwrap();
        prop_assert_eq!(snapshot.entry().root, whole.entry().root);
        let counts = |snapshot: &Snapshot| {
            let report = snapshot.state.ingest.clone().unwrap();
            (report.data_bytes, report.zero_bytes, report.chunks)
        };
        prop_assert_eq!(counts(&snapshot), counts(&whole));
    }
}

#[test]
fn what_is_read_follows_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), 8192);
    let store = open(dir.path());
    let parent = noise(24 * SEGMENT_BYTES, 1);
    put(&store, night("web01", 1), &parent);
    let all = vec![0..parent.len() as u64];
    let cases: [(Vec<Range<u64>>, u64); 4] = [
        (vec![], 0),
        (vec![5_000_000..5_000_001], 1),
        ((0..24).map(|at| at * 4_194_304 + 1_000_000..at * 4_194_304 + 1_004_096).collect(), 24),
        (all, 3200),
    ];
    for (number, (changed, writes)) in cases.into_iter().enumerate() {
        let mut child = parent.clone();
        for range in changed.iter().filter(|range| range.end - range.start < 10_000) {
            child[range.start as usize..range.end as usize].fill(number as u8);
        }
        let (snapshot, read_bytes) = put_changes(&store, night("changes", number as u32), &child, changed);
        // The chunk, the next one's first block, and one more chunk where the cuts move.
        let chunk_bytes = u64::from(small_params().max_bytes);
        assert!(read_bytes <= writes * 2 * chunk_bytes, "{writes} writes, {read_bytes} bytes");
        let report = snapshot.state.ingest.clone().unwrap();
        assert!(report.new_chunks <= writes * 2 && report.stored_bytes < 20_000 + writes * 6000, "{report:?}");
        assert!(read_back(&*store, snapshot.entry()).unwrap() == child);
    }
}

#[test]
fn a_received_parent_is_counted_by_its_leaves() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), 8192);
    let store = open(dir.path());
    let parent = image(10);
    put(&store, night("web01", 1), &parent);
    let counted = store.catalog().update_state(&night("web01", 1), |state| Ok(state.ingest.take())).unwrap().unwrap();
    let report = put_changes(&store, night("web01", 2), &parent, vec![]).0.state.ingest.unwrap();
    assert_eq!((report.data_bytes, report.chunks), (counted.data_bytes, counted.chunks));
    assert_eq!(report.reused_boundaries, report.chunks);
}

#[test]
fn a_parent_with_damage_is_not_taken_for_granted() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), 8192);
    let store = open(dir.path());
    let bytes = image(10);
    let first = put(&store, night("web01", 1), &bytes);
    let root = crate::format::RecordId::from(first.entry().root.unwrap());
    let location = store.locate(&[root]).unwrap()[0].unwrap();
    let pack = store.packs().row(location.pack).unwrap().id;
    let mut damaged = (*store.damaged()).clone();
    damaged.insert(crate::store::damaged::BadRecord { pack, offset: location.offset, id: root, base_lost: false });
    store.set_damaged(damaged).unwrap();
    assert!(read_back(&*store, first.entry()).is_err());
    let (second, read_bytes) = put_changes(&store, night("web01", 2), &bytes, vec![]);
    assert!(read_bytes > 0 && second.entry().root == first.entry().root);
    assert!(read_back(&*store, first.entry()).unwrap() == bytes, "the old night is healed too");
}

#[test]
fn the_base_must_be_named() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), 8192);
    let store = open(dir.path());
    put(&store, night("web01", 1), &[1; 5000]);
    let disk = MemDisk { bytes: vec![1; 5000], tells_holes: true };
    let options = options(night("web01", 2), Base::Newest);
    let refused = ingest_changes(&store, &disk, &Ranges(vec![]), &options, &Progress::default());
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}
