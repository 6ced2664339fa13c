//! Shared parts of the tests of clones: a file that loses unsynced data, and a store whose publisher can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use chunkstore::catalog::{Snapshot, SnapshotName, SnapshotTime};
use chunkstore::ingest::{Base, IngestOptions, ingest, ingest_changes};
use chunkstore::source::{MemDisk, Source};
use chunkstore::storage::Storage;
use chunkstore::store::{InitOptions, OpenOptions, Store};
use chunkstore::testing::Rng;
use chunkstore::{Error, Progress, Result};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::clone_disk::CloneDisk;
use super::commit::{CommitOptions, Committed};
use super::files::{Files, HostFiles, LayerFile};
use super::frozen_disk::FrozenDisk;
use super::publisher::Publisher;
use super::{CloneInfo, Clones};
use crate::chunk_cache::ChunkCache;
use crate::names::LocalNames;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A file in memory that knows what a power cut may leave of it.
#[derive(Clone, Default)]
pub(super) struct TornFile(Arc<Mutex<Torn>>);

#[derive(Clone, Default)]
struct Torn {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that may be the old or the new ones.
    unsynced: BTreeSet<usize>,
    /// Fails the next calls.
    failing: Failing,
}

/// What of a file fails.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Failing {
    #[default]
    Nothing,
    Write(io::ErrorKind),
    Reserve(io::ErrorKind),
    Sync(io::ErrorKind),
}

impl TornFile {
    /// What is there after a power cut: every sector that was not synced is the old or the new one.
    pub(super) fn power_cut(&self, seed: u64) -> Self {
        let torn = self.torn();
        let (mut left, mut rng) = (torn.now.clone(), Rng::new(seed));
        for sector in &torn.unsynced {
            if rng.below(2) == 0 {
                let range = (sector * SECTOR).min(left.len())..((sector + 1) * SECTOR).min(left.len());
                let old = (range.clone()).map(|at| torn.synced.get(at).copied().unwrap_or(0)).collect::<Vec<_>>();
                left[range].copy_from_slice(&old);
            }
        }
        let left = Torn { now: left.clone(), synced: left, ..Torn::default() };
        Self(Arc::new(Mutex::new(left)))
    }

    pub(super) fn fail(&self, failing: Failing) {
        self.torn().failing = failing;
    }

    fn torn(&self) -> MutexGuard<'_, Torn> {
        self.0.lock().unwrap()
    }
}

impl Torn {
    fn put(&mut self, bytes: &[u8], offset: u64) {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[start..end].copy_from_slice(bytes);
        self.unsynced.extend(start / SECTOR..end.div_ceil(SECTOR));
    }
}

impl LayerFile for TornFile {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let torn = self.torn();
        for (at, byte) in (offset as usize..).zip(buf) {
            *byte = torn.now.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut torn = self.torn();
        if let Failing::Write(kind) = torn.failing {
            // What fails may have been done in part.
            torn.put(&bytes[..bytes.len() / 2], offset);
            return Err(kind.into());
        }
        torn.put(bytes, offset);
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let mut torn = self.torn();
        let end = range.end.min(torn.now.len() as u64);
        if range.start < end {
            torn.put(&vec![0; (end - range.start) as usize], range.start);
        }
        Ok(())
    }

    fn reserve(&self, _: Range<u64>) -> io::Result<()> {
        match self.torn().failing {
            Failing::Reserve(kind) => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        let end = self.torn().now.len() as u64;
        self.punch(len_bytes..end.max(len_bytes))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.torn().now.len() as u64;
        Ok((offset < end).then_some(offset..end))
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        Ok(self.torn().now.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut torn = self.torn();
        if let Failing::Sync(kind) = torn.failing {
            return Err(kind.into());
        }
        torn.synced = torn.now.clone();
        torn.unsynced.clear();
        Ok(())
    }
}

/// Where a publisher fails, as if the process had been killed there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Point {
    #[default]
    Nowhere,
    BeforeHold,
    AfterHold,
    BeforeIngest,
    AfterIngest,
    BeforeRelease,
    AfterRelease,
}

/// Publishes into a store of this process.
pub(super) struct StorePublisher {
    store: Arc<Store>,
    fails_at: Mutex<Point>,
    /// Called while an ingest is about to read.
    pub(super) during: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl StorePublisher {
    pub(super) fn fail_at(&self, point: Point) {
        *self.fails_at.lock().unwrap() = point;
    }

    fn pass(&self, point: Point) -> Result<()> {
        if *self.fails_at.lock().unwrap() == point { Err(Error::unreachable(format!("{point:?}"))) } else { Ok(()) }
    }
}

impl Publisher for StorePublisher {
    fn hold(&self, snapshot: &SnapshotName, reason: &str) -> Result<Snapshot> {
        let held = self.store.catalog().read(snapshot)?;
        if held.state.holds.contains(reason) {
            return Ok(held);
        }
        self.pass(Point::BeforeHold)?;
        self.store.update_state(snapshot, |state| state.hold(reason).map(drop))?;
        self.pass(Point::AfterHold)?;
        Ok(held)
    }

    fn release(&self, snapshot: &SnapshotName, reason: &str) -> Result<()> {
        self.pass(Point::BeforeRelease)?;
        match self.store.update_state(snapshot, |state| Ok(state.release(reason))) {
            Ok(_) | Err(Error::NotFound { .. }) => self.pass(Point::AfterRelease),
            Err(error) => Err(error),
        }
    }

    fn ingest(&self, disk: FrozenDisk, options: &IngestOptions, progress: &Progress) -> Result<Snapshot> {
        self.pass(Point::BeforeIngest)?;
        if let Some(during) = &mut *self.during.lock().unwrap() {
            during();
        }
        let snapshot = ingest_changes(&self.store, &disk, &disk, options, progress)?;
        self.pass(Point::AfterIngest)?;
        Ok(snapshot)
    }
}

/// Ingests an image.
pub(super) fn put(store: &Arc<Store>, name: &SnapshotName, image: &[u8]) {
    let (name, now) = (name.clone(), name.time.timestamp());
    let options = IngestOptions { name, labels: BTreeMap::new(), group: None, base: Base::None, threads: 1, now };
    ingest(store, Source::Disk(Box::new(MemDisk::new(image.to_vec()))), &options, &Progress::default()).unwrap();
}

impl Clones {
    /// The layers of a clone.
    pub(super) fn numbers(&self, name: &str) -> Vec<u32> {
        super::metadata::CloneMetadata::read(&self.dir.join(name)).unwrap().numbers()
    }
}

/// The name of the first snapshot.
pub(super) fn base() -> SnapshotName {
    "web01@20261120T020000Z".parse().unwrap()
}

/// Makes a store whose one snapshot is `image`.
pub(super) fn init(dir: &Path, image: &[u8]) {
    let init = InitOptions { reserve: false, ..InitOptions::default() };
    Store::init(dir, &init, [7; 16], "2026-11-20T00:00:00Z".parse().unwrap()).unwrap();
    let store = Arc::new(Store::open(dir, &OpenOptions::default()).unwrap());
    put(&store, &base(), image);
}

/// What runs in the background of tests.
pub(super) fn runtime() -> Arc<Runtime> {
    Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

/// A store with one snapshot, and its clones.
pub(super) struct TestStore {
    pub(super) clones: Clones,
    pub(super) publisher: Arc<StorePublisher>,
    pub(super) base: SnapshotName,
    pub(super) runtime: Arc<Runtime>,
    store: Arc<Store>,
    dir: TempDir,
}

impl TestStore {
    /// In which `image` is the one snapshot.
    pub(super) fn new(image: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), image);
        Self::open_store(dir, runtime(), None, Arc::new(HostFiles)).unwrap()
    }

    /// Of the store in `dir`, whose first snapshot is [`base`].
    pub(super) fn open_store(
        dir: TempDir,
        runtime: Arc<Runtime>,
        storage: Option<Arc<dyn Storage>>,
        files: Arc<dyn Files>,
    ) -> Result<Self> {
        let store = Arc::new(Store::open(dir.path(), &OpenOptions { storage, ..OpenOptions::default() })?);
        let publisher =
            StorePublisher { store: Arc::clone(&store), fails_at: Mutex::default(), during: Mutex::default() };
        let publisher = Arc::new(publisher);
        let clones = Clones { files, ..Clones::new(dir.path()).with_publisher(Arc::clone(&publisher) as _) };
        Ok(Self { clones, publisher, base: base(), runtime, store, dir })
    }

    /// With a clone `c` of the snapshot.
    pub(super) fn with_clone(image: &[u8]) -> Self {
        let site = Self::new(image);
        site.create("c").unwrap();
        site
    }

    pub(super) fn create(&self, name: &str) -> Result<CloneInfo> {
        self.clones.create(name, &self.base, self.base.time.timestamp())
    }

    pub(super) fn cache(&self) -> Arc<ChunkCache> {
        ChunkCache::new(Arc::clone(&self.store) as _, self.runtime.handle().clone())
    }

    pub(super) fn names(&self) -> LocalNames {
        LocalNames::new(self.dir.path(), self.store.catalog().clone())
    }

    pub(super) fn open(&self) -> CloneDisk {
        self.try_open("c").unwrap()
    }

    pub(super) fn try_open(&self, name: &str) -> Result<CloneDisk> {
        self.clones.open(name, &self.cache(), &self.names())
    }

    pub(super) fn clone_dir(&self) -> PathBuf {
        self.dir.path().join("clones/c")
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The snapshots that are held for the clone `c`.
    pub(super) fn held(&self) -> Vec<String> {
        let listed = self.store.catalog().list(None).unwrap();
        let is_held = |snapshot: &Snapshot| snapshot.state.holds.contains("clone:c");
        listed.iter().filter(|it| is_held(it.snapshot.as_ref().unwrap())).map(|it| it.name.to_string()).collect()
    }

    /// All that a snapshot holds.
    pub(super) fn content(&self, snapshot: &Snapshot) -> Vec<u8> {
        let disk = crate::snapshot::SnapshotDisk::new(&self.cache(), snapshot);
        let mut bytes = vec![0; disk.size_bytes() as usize];
        self.runtime.block_on(disk.read(&mut bytes, 0)).unwrap();
        bytes
    }

    pub(super) fn commit(&self, disk: &CloneDisk, second: i64) -> Result<Committed> {
        disk.commit(&*self.publisher, &commit_options(second), &Progress::default())
    }
}

/// Of a second after the first snapshot.
pub(super) fn commit_options(second: i64) -> CommitOptions {
    let base: jiff::Timestamp = "2026-11-20T03:00:00Z".parse().unwrap();
    let now = base + jiff::SignedDuration::from_secs(second);
    CommitOptions { image: None, time: SnapshotTime::new(now).unwrap(), labels: BTreeMap::new(), now }
}
