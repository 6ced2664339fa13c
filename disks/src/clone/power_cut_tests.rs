//! Power cuts at every change that a clone makes on the disk, the store's own among them: what was acknowledged is
//! there and right, nothing else is half there, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chunkstore::maintenance::gc::{self, GcReport};
use chunkstore::storage::LocalDir;
use chunkstore::testing::{Rng, noise};
use chunkstore::{Progress, Result};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::BLOCK_BYTES;
use super::clone_disk::CloneDisk;
use super::files::HostFiles;
use super::metadata::{self, CloneMetadata};
use super::power_cut::{Disk, Left, Possible};
use super::recording::{Op, RecordedStorage, Recording};
use super::test_store::{TestStore, base, init, runtime};

const BLOCKS: u64 = 12;
const SIZE: usize = (BLOCKS * BLOCK_BYTES) as usize + 1234;
const STEPS: u64 = 14;
/// States of the short form.
const STATES: usize = 3000;
/// States that are made of each moment, at most: many are equal.
const CUTS: u64 = 3;
/// In so many states the clone is used on.
const GOES_ON_EVERY: usize = 8;
/// When what is committed there is committed.
const GOES_ON_SECONDS: i64 = 100_000;

/// What is expected of what a power cut leaves.
#[derive(Clone)]
struct Expected {
    /// What is going on.
    doing: String,
    /// The clone is as one of these.
    disks: Vec<Possible>,
    may_be_absent: bool,
    /// By their names: the content, and whether a commit was acknowledged.
    snapshots: BTreeMap<String, (Arc<Vec<u8>>, bool)>,
}

/// A clone that is used, and what it must be.
struct Workload {
    site: TestStore,
    recording: Recording,
    disk: Option<CloneDisk>,
    now: Vec<u8>,
    /// What the snapshot has that the clone is of.
    base: Arc<Vec<u8>>,
    first: Arc<Vec<u8>>,
    expected: Expected,
    marks: Vec<Expected>,
    seconds: i64,
}

impl Workload {
    fn new(seed: u64, runtime: &Arc<Runtime>) -> Self {
        let dir = scratch();
        let mut image = noise(SIZE, seed);
        image[3 * 4096 + 100..7 * 4096 + 50].fill(0);
        init(dir.path(), &image);
        let recording = Recording::of(dir.path());
        let storage = RecordedStorage { recording: recording.clone(), dir: LocalDir::new(dir.path()) };
        let files = Arc::new(recording.clone());
        let site = TestStore::open_store(dir, Arc::clone(runtime), Some(Arc::new(storage)), files).unwrap();
        let first = Arc::new(image.clone());
        let snapshots = BTreeMap::from([(base().to_string(), (Arc::clone(&first), true))]);
        let expected = Expected { doing: String::new(), disks: Vec::new(), may_be_absent: true, snapshots };
        let base = Arc::clone(&first);
        Self { site, recording, disk: None, now: image, base, first, expected, marks: Vec::new(), seconds: 0 }
    }

    /// From the next change on, this is expected.
    fn mark(&mut self, doing: &str) {
        doing.clone_into(&mut self.expected.doing);
        self.recording.push(Op::Mark(self.marks.len()));
        self.marks.push(self.expected.clone());
    }

    /// All that was written is permanent.
    fn settle(&mut self, doing: &str) {
        self.expected.disks = vec![Possible::only(&self.now)];
        self.mark(doing);
    }

    fn open(&mut self) {
        self.disk = Some(self.site.open());
        assert_nothing_is_left(&self.site, "open");
    }

    fn disk(&self) -> &CloneDisk {
        self.disk.as_ref().unwrap()
    }

    /// Closing syncs.
    fn close(&mut self) {
        self.disk = None;
        self.settle("closed");
    }

    fn create(&mut self) {
        self.now = Vec::clone(&self.first);
        self.base = Arc::clone(&self.first);
        self.expected.disks = vec![Possible::only(&self.now)];
        self.mark("create");
        self.site.create("c").unwrap();
        self.expected.may_be_absent = false;
        self.mark("created");
        self.open();
    }

    /// What is being done to the disk may be there from now on.
    fn changing(&mut self, doing: &str) {
        let now = self.now.clone();
        self.expected.disks[0].add(&now);
        self.mark(doing);
    }

    /// Does something to the clone that is open. If it fails, what was being done may be there.
    fn change(&mut self, rng: &mut Rng) -> Result<()> {
        let range = |rng: &mut Rng| {
            let block = rng.below(BLOCKS + 2) as usize * BLOCK_BYTES as usize;
            let at = if rng.below(2) == 0 { block } else { rng.below(SIZE as u64) as usize };
            let bytes = [300, 4096, 3 * 4096, 5000][rng.below(4) as usize];
            at..at + 1 + rng.below(bytes) as usize
        };
        let size = self.now.len();
        match rng.below(17) {
            0..7 => {
                let (range, value) = (range(rng), rng.below(255) as u8 + 1);
                self.now.resize(size.max(range.end), 0);
                self.now[range.clone()].fill(value);
                self.changing("write");
                let bytes = vec![value; range.len()];
                self.site.runtime.block_on(self.disk().write(&bytes, range.start as u64))?;
            }
            7..9 => {
                let range = range(rng);
                let end = range.end.min(size);
                self.now[range.start.min(end)..end].fill(0);
                self.changing("discard a range");
                let range = range.start as u64..range.end as u64;
                self.site.runtime.block_on(self.disk().discard(range))?;
            }
            9..11 => {
                let wanted = rng.below(2 * SIZE as u64) as usize;
                self.now.resize(wanted, 0);
                self.changing("change the size");
                self.site.runtime.block_on(self.disk().set_size(wanted as u64))?;
                if wanted >= size {
                    self.settle("grown");
                } else {
                    self.expected.disks[0].shorten(wanted);
                    self.mark("shortened");
                }
            }
            11..14 => {
                self.site.runtime.block_on(self.disk().sync())?;
                self.settle("synced");
            }
            _ => self.commit()?,
        }
        Ok(())
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.below(20) {
            0..13 => self.change(rng).unwrap(),
            13 => {
                self.close();
                self.open();
            }
            14 => {
                self.close();
                self.now = Vec::clone(&self.base);
                self.expected.disks.push(Possible::only(&self.now));
                self.mark("roll back");
                self.site.clones.rollback("c").unwrap();
                self.settle("rolled back");
                self.open();
            }
            15 => {
                self.close();
                self.expected.may_be_absent = true;
                self.mark("discard");
                self.site.clones.discard("c").unwrap();
                self.expected.disks.clear();
                self.mark("discarded");
                self.create();
            }
            _ => self.be_killed(rng),
        }
    }

    /// The process is killed while it does something, and the next one goes on. Then what is seen can be synced.
    fn be_killed(&mut self, rng: &mut Rng) {
        self.recording.fail_from(self.recording.calls() + 1 + rng.below(25));
        while self.change(rng).is_ok() {}
        self.disk = None;
        self.recording.heal();
        self.open();
        self.now = content(&self.site, self.disk());
        assert_eq!(self.expected.disks[0].unlike(&self.now), None, "after a kill");
        let own = CloneMetadata::read(&self.site.clone_dir()).unwrap().snapshot.to_string();
        self.base = Arc::clone(&self.expected.snapshots[&own].0);
        self.site.runtime.block_on(self.disk().sync()).unwrap();
        self.settle("synced after a kill");
    }

    fn commit(&mut self) -> Result<()> {
        self.seconds += 1;
        let content = Arc::new(self.now.clone());
        let name = commit_name(self.seconds);
        self.expected.snapshots.insert(name.clone(), (Arc::clone(&content), false));
        self.mark("commit");
        let committed = self.site.commit(self.disk(), self.seconds)?;
        assert_eq!(committed.snapshot.name().to_string(), name);
        self.expected.snapshots.insert(name, (Arc::clone(&content), true));
        self.base = content;
        self.settle("committed");
        if self.recording.is_sound() {
            assert_nothing_is_left(&self.site, "commit");
        }
        Ok(())
    }
}

fn commit_name(seconds: i64) -> String {
    format!("web01@{}", super::test_store::commit_options(seconds).time)
}

/// In memory, where there is such a place: thousands of stores are made.
pub(super) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Fails unless soon the clone's directory has what its metadata names, and no more.
pub(super) fn assert_nothing_is_left(site: &TestStore, place: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    let named = site.clones.numbers("c").into_iter().flat_map(|n| [format!("{n}.data"), format!("{n}.map")]);
    let named: BTreeSet<String> = named.chain([metadata::FILE, "lock", "socket"].map(String::from)).collect();
    while names_in(&site.clone_dir()) != named {
        assert!(Instant::now() < until, "{place}: {:?} instead of {named:?}", names_in(&site.clone_dir()));
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn names_in(dir: &std::path::Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(super) fn content(site: &TestStore, disk: &CloneDisk) -> Vec<u8> {
    try_content(site, disk).unwrap()
}

pub(super) fn try_content(site: &TestStore, disk: &CloneDisk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; disk.size_bytes() as usize];
    site.runtime.block_on(disk.read(&mut bytes, 0)).map(|()| bytes)
}

/// A store that a power cut left, and from what it was made. Opening one takes longer than all else.
struct Remains {
    store: u64,
    site: TestStore,
}

impl Remains {
    /// Puts what is left of clones into a store, that of `last` if it is the same.
    fn make(mut left: Left, last: Option<Self>, runtime: &Arc<Runtime>, place: &str) -> Self {
        let clones = left.take_below("clones");
        let store = left.fingerprint();
        let remains = last.filter(|last| last.store == store).unwrap_or_else(|| {
            let dir = scratch();
            left.write_to(dir.path());
            fs::create_dir(dir.path().join("leases")).unwrap();
            let site = TestStore::open_store(dir, Arc::clone(runtime), None, Arc::new(HostFiles));
            Self { store, site: site.unwrap_or_else(|error| panic!("{place}: {error}")) }
        });
        let dir = remains.site.dir();
        if dir.join("clones").exists() {
            fs::remove_dir_all(dir.join("clones")).unwrap();
        }
        clones.write_to(dir);
        remains
    }
}

/// Opens what a power cut left, and fails if it is not as expected. Returns the store, if it is as it was.
fn check(remains: Remains, expected: &Expected, goes_on: bool, place: &str) -> Option<Remains> {
    let site = &remains.site;
    check_snapshots(site, expected, place);
    match &site.clones.list().unwrap()[..] {
        [] => assert!(expected.may_be_absent, "{place}: the clone is lost"),
        [name] if name == "c" && !expected.disks.is_empty() => check_clone(site, expected, goes_on, place),
        others => panic!("{place}: {others:?}"),
    }
    if !goes_on {
        return Some(remains);
    }
    site.create("d").unwrap_or_else(|error| panic!("{place}: {error}"));
    if site.clones.list().unwrap() == ["c", "d"] {
        site.clones.discard("c").unwrap_or_else(|error| panic!("{place}: {error}"));
    }
    site.clones.discard("d").unwrap();
    assert_eq!(site.held(), [""; 0], "{place}: all is released");
    assert_eq!(names_in(&site.dir().join("clones")), BTreeSet::from(["lock".to_owned()]), "{place}");
    collect(site, place);
    let again = collect(site, place);
    let garbage = (again.freed_bytes, again.removed_packs, again.missing_records);
    assert_eq!(garbage, (0, 0, 0), "{place}: gc left garbage: {again:?}");
    check_snapshots(site, expected, place);
    None
}

/// Fails unless all snapshots that were acknowledged are there, and whatever is there is right.
fn check_snapshots(site: &TestStore, expected: &Expected, place: &str) {
    let mut missing: BTreeSet<&String> =
        expected.snapshots.iter().filter(|(_, (_, is_acknowledged))| *is_acknowledged).map(|(name, _)| name).collect();
    for listed in site.store().catalog().list(None).unwrap() {
        let name = listed.name.to_string();
        if name == commit_name(GOES_ON_SECONDS) {
            continue;
        }
        let (expected, _) = expected.snapshots.get(&name).unwrap_or_else(|| panic!("{place}: {name} was never made"));
        let snapshot = listed.snapshot.unwrap_or_else(|error| panic!("{place}: {name}: {error}"));
        assert!(site.content(&snapshot) == **expected, "{place}: {name} has other bytes");
        missing.remove(&name);
    }
    assert!(missing.is_empty(), "{place}: lost {missing:?}");
}

fn collect(site: &TestStore, place: &str) -> GcReport {
    gc::collect(site.store(), false, 1, &Progress::default()).unwrap_or_else(|error| panic!("{place}: gc: {error}"))
}

fn check_clone(site: &TestStore, expected: &Expected, goes_on: bool, place: &str) {
    let disk = site.try_open("c").unwrap_or_else(|error| panic!("{place}: {error}"));
    let mut found = content(site, &disk);
    let unlike: Vec<_> = expected.disks.iter().map_while(|possible| possible.unlike(&found)).collect();
    assert!(unlike.len() < expected.disks.len(), "{place}: {unlike:?}");
    assert_nothing_is_left(site, place);
    let own = CloneMetadata::read(&site.clone_dir()).unwrap().snapshot.to_string();
    assert!(site.held().contains(&own), "{place}: nobody holds {own}");
    if goes_on {
        site.runtime.block_on(disk.write(b"afterwards", 4000)).unwrap();
        found.resize(found.len().max(4010), 0);
        found[4000..4010].copy_from_slice(b"afterwards");
        let committed = site.commit(&disk, GOES_ON_SECONDS).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(site.content(&committed.snapshot) == found && content(site, &disk) == found, "{place}: goes on");
        assert_eq!(site.held(), [committed.snapshot.name().to_string()], "{place}");
    }
}

#[test]
fn whatever_a_power_cut_leaves_of_a_clone_is_what_was_acknowledged_and_nothing_half() {
    let seconds = std::env::var("VMSTORE_TORTURE_SECONDS").map_or(0, |text| text.parse().unwrap());
    let seed = std::env::var("VMSTORE_TEST_SEED").map_or_else(|_| any_seed(seconds), |text| text.parse().unwrap());
    println!("power cuts of clones: VMSTORE_TEST_SEED={seed}, {seconds} s");
    let (started, runtime) = (Instant::now(), runtime());
    let (mut states, mut commits, mut workloads) = (0, 0, 0);
    while states < STATES || started.elapsed() < Duration::from_secs(seconds) {
        workloads += 1;
        let mut rng = Rng::new(seed.wrapping_add(workloads));
        let mut workload = Workload::new(rng.number(), &runtime);
        workload.create();
        (0..STEPS).for_each(|_| workload.step(&mut rng));
        commits += workload.seconds;
        states += cut_everywhere(&workload, &mut rng, &runtime, &format!("workload {workloads}"));
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!(
        "power cuts of clones: {states} states of {workloads} workloads with {commits} commits tried, 0 failed, \
         {elapsed:.1} s, VMSTORE_TEST_SEED={seed}"
    );
}

/// The short form always begins from the same one.
fn any_seed(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    if seconds > 0 { now.as_nanos() as u64 } else { 1 }
}

/// Cuts the power at every change of a workload; returns how many states that made.
fn cut_everywhere(workload: &Workload, rng: &mut Rng, runtime: &Arc<Runtime>, place: &str) -> usize {
    let (mut disk, mut expected, mut tried, mut last) = (Disk::default(), None, BTreeSet::new(), None);
    for (at, op) in workload.recording.ops().iter().enumerate() {
        disk.apply(op);
        if let Op::Mark(mark) = op {
            expected = Some(*mark);
        }
        let Some(mark) = expected else { continue };
        let expected = &workload.marks[mark];
        for cut in 0..CUTS {
            let left = disk.cut(rng);
            if tried.insert((mark, left.fingerprint())) {
                let place = format!("{place}, change {at}, cut {cut}, {}", expected.doing);
                let remains = Remains::make(left, last.take(), runtime, &place);
                last = check(remains, expected, tried.len().is_multiple_of(GOES_ON_EVERY), &place);
            }
        }
    }
    tried.len()
}
