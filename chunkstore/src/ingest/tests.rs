//! The same bytes give the same root by every way; what a parent is for; interruptions.

use proptest::prelude::*;

use super::*;
use crate::format::ChunkId;
use crate::testing::{MemDisk, disk, init, night, noise, open, options, put, read_back};

/// An image of a few segments: noise, zeros and repeats, with an odd length.
fn image(seed: u64) -> Vec<u8> {
    let mut image = noise(5 << 20, seed);
    image.extend(vec![0; 6 << 20]);
    image.extend(noise(300_000, seed));
    image.extend(vec![0; 100_000]);
    image.extend(noise(77_777, seed + 1));
    image
}

#[test]
fn two_nights_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let first = image(1);
    let mut second = first.clone();
    second[1_000_000..1_004_096].copy_from_slice(&noise(4096, 50));
    second[7 << 20] = 1;
    let snapshots = [put(&store, night("web01", 1), &first), put(&store, night("web01", 2), &second)];
    let report = snapshots[1].state.ingest.clone().unwrap();
    assert!(report.delta_chunks >= 1 && report.new_chunks <= 4, "{report:?}");
    assert!(report.stored_bytes < 20_000, "{report:?}");
    assert_eq!(report.data_bytes + report.zero_bytes, second.len() as u64);
    for (snapshot, bytes) in snapshots.iter().zip([&first, &second]) {
        assert!(read_back(&*store, snapshot.entry()).unwrap() == *bytes);
    }
    drop(store);
    let store = open(dir.path());
    assert!(read_back(&*store, snapshots[1].entry()).unwrap() == second);
}

#[test]
fn an_unchanged_image_adds_only_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    put(&store, night("web01", 1), &image(1));
    let report = put(&store, night("web01", 2), &image(1)).state.ingest.unwrap();
    assert_eq!((report.new_chunks, report.reused_boundaries), (0, report.chunks));
    assert!(report.stored_bytes < 4096, "{}", report.stored_bytes);
    let on_disk: u64 = ["packs", "catalog/web01"]
        .iter()
        .flat_map(|name| std::fs::read_dir(dir.path().join(name)).unwrap())
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let reported = store.catalog().list(None).unwrap().into_iter();
    let reported: u64 = reported.map(|listed| listed.snapshot.unwrap().state.ingest.unwrap().stored_bytes).sum();
    assert_eq!(reported, on_disk);
}

#[test]
fn a_template_serves_as_base() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    put(&store, night("template", 1), &image(1));
    let mut changed = image(1);
    changed[0] ^= 1;
    let options = options(night("web01", 2), Base::Snapshot(night("template", 1)));
    let snapshot = ingest(&store, disk(&changed), &options, &Progress::default()).unwrap();
    let report = snapshot.state.ingest.unwrap();
    assert_eq!((report.new_chunks, report.delta_chunks), (1, 1));
    assert_eq!(report.parent.unwrap(), night("template", 1).to_string());
}

#[test]
fn empty_and_zero_images_have_no_root() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    for (day, len) in [0, 1, 4096, 9 << 20].into_iter().enumerate() {
        let snapshot = put(&store, night("zeros", day as u32), &vec![0; len]);
        assert_eq!((snapshot.entry().root, snapshot.entry().virtual_bytes), (None, len as u64));
    }
}

#[test]
fn a_duplicate_is_refused_and_the_first_stays() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let first = put(&store, night("web01", 1), &image(1));
    let again = ingest(&store, disk(&image(2)), &options(night("web01", 1), Base::Newest), &Progress::default());
    assert!(matches!(again, Err(Error::Refused { .. })), "{again:?}");
    assert_eq!(store.catalog().read(&night("web01", 1)).unwrap(), first);
}

#[test]
fn interrupted_leaves_no_snapshot_and_the_next_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let progress = Arc::new(Progress::default());
    let disk = MemDisk { bytes: image(1), tells_holes: false };
    let source = Source::Disk(Box::new(StopsAtRead { disk, progress: Arc::clone(&progress) }));
    let result = ingest(&store, source, &options(night("web01", 1), Base::Newest), &progress);
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert!(store.catalog().images().unwrap().is_empty());
    let snapshot = put(&store, night("web01", 1), &image(1));
    assert!(read_back(&*store, snapshot.entry()).unwrap() == image(1));
}

/// Somebody presses Ctrl-C while the first segments are read.
struct StopsAtRead {
    disk: MemDisk,
    progress: Arc<Progress>,
}

impl crate::source::DiskSource for StopsAtRead {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn next_data(&self, offset: u64) -> Result<Option<std::ops::Range<u64>>> {
        self.disk.next_data(offset)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.progress.stop();
        self.disk.read_exact_at(buf, offset)
    }

    fn finish(&self) -> Result<()> {
        self.disk.finish()
    }
}

/// A few edits: where, what (0: zeros), how long.
fn edits() -> impl Strategy<Value = Vec<(usize, u64, usize)>> {
    prop::collection::vec((0..11_000_000usize, 0..4u64, 1..200_000usize), 0..6)
}

fn edited(mut image: Vec<u8>, edits: &[(usize, u64, usize)]) -> Vec<u8> {
    for (at, seed, len) in edits {
        let (at, end) = (*at.min(&image.len()), (at + len).min(image.len()));
        let bytes = if *seed == 0 { vec![0; end - at] } else { noise(end - at, *seed) };
        image[at..end].copy_from_slice(&bytes);
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_same_bytes_give_the_same_root(edits in edits(), cut in 0..3_000_000usize) {
        let (parent, mut child) = (image(1), edited(image(1), &edits));
        child.truncate(child.len() - cut);
        let ways: [(Base, usize, bool); 4] = [
            (Base::None, 1, true),
            (Base::None, 3, false),
            (Base::Newest, 2, true),
            (Base::Snapshot(night("other", 1)), 2, false),
        ];
        let mut roots = Vec::new();
        for (base, threads, tells_holes) in ways {
            let dir = tempfile::tempdir().unwrap();
            init(dir.path());
            let store = open(dir.path());
            put(&store, night("web01", 1), &parent);
            put(&store, night("other", 1), &edited(parent.clone(), &[(0, 9, 50_000)]));
            let options = IngestOptions { threads, ..options(night("web01", 2), base) };
            let source = Source::Disk(Box::new(MemDisk { bytes: child.clone(), tells_holes }));
            let snapshot = ingest(&store, source, &options, &Progress::default()).unwrap();
            prop_assert!(read_back(&*store, snapshot.entry()).unwrap() == child);
            roots.push(snapshot.entry().root);
            let stream = Source::Stream { name: "stream".into(), reader: Box::new(std::io::Cursor::new(child.clone())) };
            let options = IngestOptions { name: night("web01", 3), ..options };
            roots.push(ingest(&store, stream, &options, &Progress::default()).unwrap().entry().root);
        }
        prop_assert!(roots.windows(2).all(|pair| pair[0] == pair[1]), "{roots:?}");
    }
}

#[test]
fn a_chunk_known_to_be_damaged_is_stored_again_whole() {
    use crate::store::damaged::BadRecord;
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let bytes = noise(1 << 20, 3);
    let snapshot = put(&store, night("web01", 1), &bytes);
    let crate::format::manifest::Node::Leaf(leaf) =
        crate::format::manifest::ChunkSource::node(&*store, snapshot.entry().root.unwrap()).unwrap()
    else {
        panic!("one segment is one leaf")
    };
    let id: ChunkId = leaf.chunks().next().unwrap().1;
    let location = store.locate(&[id.into()]).unwrap()[0].unwrap();
    let pack = store.packs().row(location.pack).unwrap().id;
    let mut damaged = (*store.damaged()).clone();
    damaged.insert(BadRecord { pack, offset: location.offset, id: id.into(), base_lost: false });
    store.set_damaged(damaged).unwrap();
    assert!(read_back(&*store, snapshot.entry()).is_err());
    let report = put(&store, night("web01", 2), &bytes).state.ingest.unwrap();
    assert_eq!((report.new_chunks, report.delta_chunks), (1, 0));
    assert!(read_back(&*store, snapshot.entry()).unwrap() == bytes, "the old night is healed too");
}

#[test]
fn a_file_that_moved_is_stored_as_deltas() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let file = noise(800_000, 4);
    put(&store, night("web01", 1), &[vec![0; 4096], file.clone()].concat());
    // Elsewhere, and with a byte changed in most chunks, so that they are not found themselves.
    let mut moved = file;
    (100..moved.len()).step_by(8192).for_each(|at| moved[at] ^= 1);
    let image = [vec![0; 3 << 20], moved].concat();
    let snapshot = put(&store, night("web01", 2), &image);
    let report = snapshot.state.ingest.clone().unwrap();
    assert!(report.delta_chunks * 10 > report.new_chunks * 3, "{report:?}");
    assert!(read_back(&*store, snapshot.entry()).unwrap() == image);
}
