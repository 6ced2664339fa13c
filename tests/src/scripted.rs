//! A small store on a storage in memory, what a script does to it, and what must be there afterwards. The index lies in
//! a real directory, in memory too where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::catalog::retention::{self, Decision, Retention};
use chunkstore::catalog::{Catalog, ImageName, Snapshot, SnapshotName, SnapshotTime};
use chunkstore::format::ChunkParams;
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::{self, ChunkSource, Node};
use chunkstore::ingest::{Base, IngestInto, IngestOptions, find_parent, ingest};
use chunkstore::maintenance::gc;
use chunkstore::maintenance::verify;
use chunkstore::source::{MemDisk, Source};
use chunkstore::storage::{MemStorage, Storage};
use chunkstore::store::{Config, DirectWriteSession, OpenOptions, Store};
use chunkstore::{Error, Progress, Result};
use replicate::rpc::client::{Client, Link};
use replicate::rpc::server::{ServeOptions, Server, serve_stream};
use replicate::rpc::transport::Peer;
use replicate::rpc::wire::Hello;
use replicate::transfer::{Direction, Ends, TransferOptions, Wanted, transfer};
use tempfile::TempDir;

use crate::images::Rng;

/// Packs are sealed at this size, so that an image of some hundred kilobytes has several.
const PACK_BYTES: u64 = 64 << 10;
/// Pages in which nights differ.
const PAGE_BYTES: usize = 4 << 10;
/// Nights that each image of the far site has.
const FAR_NIGHTS: u32 = 3;

/// The bytes of an image.
pub type Image = Arc<Vec<u8>>;
/// Snapshots by name.
pub type Images = BTreeMap<SnapshotName, Image>;

/// The name of an image's snapshot of a day of January 2026, or of the days after.
pub fn night(image: &str, day: u32) -> SnapshotName {
    let first: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let time = first + jiff::SignedDuration::from_hours(24 * i64::from(day));
    SnapshotName::new(image.parse().unwrap(), SnapshotTime::new(time).unwrap())
}

/// The content of an image on a day. Most of it is as on the day before. Every third image reaches into a second
/// segment.
pub fn content(name: &SnapshotName) -> Image {
    let image: String = name.image.to_string();
    let number = image.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31) ^ u64::from(byte));
    let day = day_of(name);
    let mut rng = Rng::new(number);
    let mut bytes = rng.noise(60_000 + rng.clone().below(60_000) as usize);
    for _ in 0..day {
        let page = rng.below((bytes.len() / PAGE_BYTES) as u64) as usize * PAGE_BYTES;
        bytes[page..page + PAGE_BYTES / 2].copy_from_slice(&rng.noise(PAGE_BYTES / 2));
        if rng.below(3) == 0 {
            let more = rng.below(20_000) as usize;
            bytes.extend(rng.noise(more));
        }
    }
    if number.is_multiple_of(3) {
        let tail = bytes.split_off(bytes.len() / 2);
        bytes.resize(SEGMENT_BYTES, 0);
        bytes.extend(tail);
    }
    Arc::new(bytes)
}

/// Ingests what an image holds on a day, onto its newest snapshot. Every second night is written directly to packs.
pub fn ingest_night(store: &Arc<Store>, name: &SnapshotName) -> Result<Snapshot> {
    ingest_as(store, name, &content(name))
}

fn ingest_as(store: &Arc<Store>, name: &SnapshotName, image: &[u8]) -> Result<Snapshot> {
    let now = name.time.timestamp();
    let (labels, name) = (BTreeMap::new(), name.clone());
    let options = IngestOptions { name, labels, group: None, base: Base::Newest, threads: 1, now };
    let source = Source::Disk(Box::new(MemDisk::new(image.to_vec())));
    if day_of(&options.name).is_multiple_of(2) {
        return ingest(store, source, &options, &Progress::default());
    }
    let parent = find_parent(store.catalog(), &options)?.map(|parent| parent.name());
    let session = store.session(parent.as_ref())?;
    let into = IngestInto {
        sink: &DirectWriteSession::new(&session),
        source: &**store,
        params: store.config().format.chunk_params(),
        codec: store.codec().clone(),
        store_id: &store.config().format.store_id,
        trusts_parent: session.trusts_parent(),
        parent: session.parent().cloned(),
    };
    into.ingest(source, &options, &Progress::default())
}

fn day_of(name: &SnapshotName) -> u64 {
    name.time.timestamp().as_second() as u64 / 86400 - 20454
}

/// All bytes of a snapshot, verified.
pub fn read_back(store: &Store, snapshot: &Snapshot) -> Result<Vec<u8>> {
    let entry = snapshot.entry();
    let mut image = vec![0; entry.virtual_bytes as usize];
    manifest::walk(store, entry.root, entry.virtual_bytes, &mut |segment| {
        let Node::Leaf(leaf) = store.node(segment.leaf)? else { panic!("a leaf is a leaf") };
        for (at, id, _) in leaf.chunks() {
            let chunk = store.chunk(id)?;
            let at = segment.number as usize * SEGMENT_BYTES + at;
            image[at..at + chunk.bytes().len()].copy_from_slice(chunk.bytes());
        }
        Ok(())
    })?;
    Ok(image)
}

/// The directories and the configuration of a store, permanent.
pub fn new_storage() -> MemStorage {
    let memory = MemStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    Catalog::create(Arc::clone(&storage)).unwrap();
    storage.create_dir("packs").unwrap();
    let params =
        ChunkParams { min_bytes: 2 << 10, avg_bytes: 8 << 10, max_bytes: 32 << 10, zero_run_min_bytes: 8 << 10 };
    Config::new([7; 16], "2026-01-01T00:00:00Z".parse().unwrap(), params).unwrap().store(&*storage).unwrap();
    memory
}

/// A directory for an index, in memory if there is such a file system.
pub fn index_dir() -> TempDir {
    let shared = Path::new("/dev/shm");
    let dir = if shared.is_dir() { TempDir::new_in(shared) } else { TempDir::new() }.unwrap();
    fs::create_dir(dir.path().join("leases")).unwrap();
    dir
}

/// The files of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexFiles(Vec<(String, Vec<u8>)>);

impl IndexFiles {
    /// Those of the index in a store's directory, which may be open.
    pub fn of(dir: &Path) -> Self {
        let files = (0..100).find_map(|_| Self::try_of(&dir.join("index")));
        files.expect("the index stays as it is for as long as it takes to copy it")
    }

    /// Nothing, if a file was removed meanwhile.
    fn try_of(dir: &Path) -> Option<Self> {
        let Ok(entries) = fs::read_dir(dir) else { return Some(Self::default()) };
        let mut files = Vec::new();
        for entry in entries {
            let name = entry.ok()?.file_name().into_string().unwrap();
            if name != "LOCK" && !name.starts_with("LOG") {
                let bytes = fs::read(dir.join(&name)).ok()?;
                files.push((name, bytes));
            }
        }
        files.sort_unstable();
        Some(Self(files))
    }

    /// Puts them in place of the index in a store's directory.
    pub fn put(&self, dir: &Path) {
        let dir = dir.join("index");
        let _ = fs::remove_dir_all(&dir);
        if !self.0.is_empty() {
            fs::create_dir(&dir).unwrap();
        }
        self.0.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
    }

    /// A hash of names and bytes.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in &self.0 {
            hasher.update(format!("{name} {}\n", bytes.len()).as_bytes()).update(bytes);
        }
        *hasher.finalize().as_bytes()
    }
}

/// How a store on a storage is opened; `seed` makes the tags of its packs.
pub fn open_options(storage: Arc<dyn Storage>, seed: u64) -> OpenOptions {
    OpenOptions { storage: Some(storage), pack_bytes: PACK_BYTES, seed, ..OpenOptions::default() }
}

/// Opens a store on a storage; waits for threads that still have it open.
pub fn open(dir: &Path, storage: Arc<dyn Storage>, seed: u64) -> Result<Arc<Store>> {
    let options = OpenOptions { wait: Duration::from_secs(20), ..open_options(storage, seed) };
    Store::open(dir, &options).map(Arc::new)
}

/// A site with images that can be pushed: `far0` and `far1`.
pub struct Far {
    _dir: TempDir,
    store: Arc<Store>,
    server: Arc<Server>,
    runtime: tokio::runtime::Runtime,
}

impl Default for Far {
    fn default() -> Self {
        let dir = index_dir();
        let store = open(dir.path(), Arc::new(new_storage()), 99).unwrap();
        for name in ["far0", "far1"].into_iter().flat_map(far_nights) {
            ingest_night(&store, &name).unwrap();
        }
        let server = Server::new(Arc::clone(&store), ServeOptions::default(), [1; 32]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { _dir: dir, store, server, runtime }
    }
}

impl Far {
    /// Pushes the nights of an image into a store, by several connections to its owner.
    fn push(&self, image: &str, streams: usize, into: &Arc<Store>) -> Result<()> {
        let wanted = Wanted::Image(image.parse().unwrap());
        self.transfer(Direction::Push, wanted, (&self.store, into), streams)
    }

    /// Pulls a snapshot into a store.
    fn pull(&self, name: &SnapshotName, into: &Arc<Store>) -> Result<()> {
        let wanted = Wanted::Snapshots(vec![name.to_string().parse().unwrap()]);
        self.transfer(Direction::Pull, wanted, (into, &self.store), 1)
    }

    fn transfer(
        &self,
        direction: Direction,
        wanted: Wanted,
        (near, far): (&Arc<Store>, &Arc<Store>),
        streams: usize,
    ) -> Result<()> {
        let other = if direction == Direction::Push { far } else { near };
        let server = Server::new(Arc::clone(other), ServeOptions::default(), [2; 32]);
        let owner_of = |store| if Arc::ptr_eq(store, other) { &server } else { &self.server };
        let transferred = self.runtime.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..streams {
                clients.push(connect(owner_of(far)).await?);
            }
            let ends = Ends { near: connect(owner_of(near)).await?, catalog: near.catalog().clone(), far: clients };
            transfer(&ends, &TransferOptions { direction, wanted, dry_run: false }, &Arc::default()).await
        });
        // The tasks that serve the connections have a share in the store until they notice that they are closed.
        let deadline = Instant::now() + Duration::from_secs(20);
        while Arc::strong_count(&server) > 1 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        match transferred?.snapshots_failed.as_slice() {
            [] => Ok(()),
            failed => Err(Error::damaged(format!("snapshots {}", failed.join(", ")), "they could not be transferred")),
        }
    }
}

async fn connect(server: &Arc<Server>) -> Result<Client> {
    let (here, there) = tokio::io::duplex(64 << 10);
    let peer = Peer::Local { uid: rustix::process::getuid().as_raw(), pid: None };
    tokio::spawn(serve_stream(Arc::clone(server), Box::new(there), peer));
    Client::start(Box::new(here), &Hello::default(), &Link::default()).await
}

/// The nights that the far site has of an image.
fn far_nights(image: &str) -> impl Iterator<Item = SnapshotName> {
    (0..FAR_NIGHTS).map(move |day| night(image, day))
}

/// One thing that is done to a store.
#[derive(Clone, Debug)]
pub enum Act {
    /// Ingests a night.
    Ingest(SnapshotName),
    /// Ingests several at once, while gc runs.
    Crowd(Vec<SnapshotName>),
    /// Receives all nights of an image by a push with so many connections.
    Push(&'static str, usize),
    /// Publishes the last night of an image of the far site in part, and pulls the rest.
    Hydrate(&'static str),
    /// Publishes it in part, and receives the rest by a push of all nights.
    PushOverPart(&'static str),
    /// Removes a snapshot.
    Remove(SnapshotName),
    /// Removes all snapshots of an image but the newest.
    Prune(&'static str),
    /// Restores a snapshot, and fails if it differs.
    Read(SnapshotName),
    /// Collects.
    Collect,
    /// Verifies everything.
    Verify,
    /// Closes the store, rebuilds its index, and opens it.
    Reindex,
    /// Closes the store and opens it.
    Reopen,
    /// Holds a snapshot.
    Hold(SnapshotName),
    /// Releases it.
    Release(SnapshotName),
    /// Records a boot order of a snapshot.
    BootOrder(SnapshotName),
}

/// The changes of an act.
#[derive(Clone, Debug)]
pub enum Effect {
    /// There is a snapshot more.
    Adds(SnapshotName),
    /// There is one less.
    Removes(SnapshotName),
    /// It is held, or not.
    Holds(SnapshotName, bool),
}

impl Act {
    /// Its effects on a store with these snapshots.
    pub fn effects(&self, there: &Images) -> Vec<Effect> {
        match self {
            Self::Ingest(name) => vec![Effect::Adds(name.clone())],
            Self::Crowd(names) => names.iter().cloned().map(Effect::Adds).collect(),
            Self::Push(image, _) | Self::PushOverPart(image) => far_nights(image).map(Effect::Adds).collect(),
            Self::Hydrate(image) => far_nights(image).last().map(Effect::Adds).into_iter().collect(),
            Self::Remove(name) => vec![Effect::Removes(name.clone())],
            Self::Prune(image) => {
                let image: ImageName = image.parse().unwrap();
                let times: Vec<_> = there.keys().filter(|name| name.image == image).map(|name| name.time).collect();
                pruned(&image, &times).map(Effect::Removes).collect()
            }
            Self::Hold(name) => vec![Effect::Holds(name.clone(), true)],
            Self::Release(name) => vec![Effect::Holds(name.clone(), false)],
            Self::Read(_) | Self::Collect | Self::Verify | Self::Reindex | Self::Reopen | Self::BootOrder(_) => {
                Vec::new()
            }
        }
    }
}

fn pruned(image: &ImageName, times: &[SnapshotTime]) -> impl Iterator<Item = SnapshotName> {
    let retention = Retention { last: Some(1), ..Retention::default() };
    let decided = retention::plan(times, retention, &jiff::tz::TimeZone::UTC);
    let removed = decided.into_iter().filter(|(_, decision)| *decision == Decision::Remove);
    removed.map(|(time, _)| SnapshotName::new(image.clone(), time))
}

/// A store that is worked on.
pub struct Worked {
    dir: TempDir,
    storage: Arc<dyn Storage>,
    seed: u64,
    store: Option<Arc<Store>>,
}

impl Worked {
    /// Opens a store on a storage, with its index in `dir`.
    pub fn open(dir: TempDir, storage: Arc<dyn Storage>, seed: u64) -> Result<Self> {
        let store = open(dir.path(), Arc::clone(&storage), seed)?;
        Ok(Self { dir, storage, seed, store: Some(store) })
    }

    /// The open store.
    ///
    /// # Errors
    /// If it had to be closed and could not be opened again, what opening it now gives.
    pub fn store(&mut self) -> Result<Arc<Store>> {
        if self.store.is_none() {
            self.seed += 1;
            self.store = Some(open(self.dir.path(), Arc::clone(&self.storage), self.seed)?);
        }
        Ok(Arc::clone(self.store.as_ref().expect("it was opened just now")))
    }

    /// The directory of the index.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Closes the store; returns the directory of its index.
    pub fn close(self) -> TempDir {
        drop(self.store);
        self.dir
    }

    /// Does something; its changes are durable when this returns.
    pub fn run(&mut self, act: &Act, far: &Far) -> Result<()> {
        if matches!(act, Act::Reindex | Act::Reopen) {
            self.store = None;
        }
        if let Act::Reindex = act {
            let options = OpenOptions { wait: Duration::from_secs(20), ..open_options(Arc::clone(&self.storage), 0) };
            Store::reindex(self.dir.path(), &options)?;
        }
        let store = self.store()?;
        let progress = Progress::default();
        match act {
            Act::Ingest(name) => drop(ingest_night(&store, name)?),
            Act::Crowd(names) => crowd(&store, names)?,
            Act::Push(image, streams) => far.push(image, *streams, &store)?,
            Act::Hydrate(image) => {
                let snapshot = far.store.catalog().read(&night(image, FAR_NIGHTS - 1))?;
                store.session(None)?.publish_partial(&snapshot)?;
                far.pull(&snapshot.name(), &store)?;
            }
            Act::PushOverPart(image) => {
                let snapshot = far.store.catalog().read(&night(image, FAR_NIGHTS - 1))?;
                store.session(None)?.publish_partial(&snapshot)?;
                far.push(image, 1, &store)?;
            }
            Act::Remove(name) => store.catalog().remove(name)?,
            Act::Prune(image) => {
                let image: ImageName = image.parse()?;
                let times = store.catalog().times(&image)?;
                pruned(&image, &times).try_for_each(|name| store.catalog().remove(&name))?;
            }
            Act::Read(name) => {
                let bytes = read_back(&store, &store.catalog().read(name)?)?;
                assert!(bytes == *content(name), "{name} differs");
            }
            Act::Collect => drop(gc::collect(&store, false, 1, &progress)?),
            Act::Verify => drop(verify::verify(&store, &[], 1, &progress)?),
            Act::Hold(name) => store.update_state(name, |state| {
                state.holds.insert("test".into());
                Ok(())
            })?,
            Act::Release(name) => store.update_state(name, |state| {
                state.holds.clear();
                Ok(())
            })?,
            Act::BootOrder(name) => store.write_boot_order(name, &BootOrder::new([0..4096, 8192..9000]))?,
            Act::Reindex | Act::Reopen => {}
        }
        Ok(())
    }
}

fn crowd(store: &Arc<Store>, names: &[SnapshotName]) -> Result<()> {
    thread::scope(|scope| {
        let ingests: Vec<_> = names.iter().map(|name| scope.spawn(|| ingest_night(store, name))).collect();
        let collected = gc::collect(store, false, 1, &Progress::default());
        let ingested = ingests.into_iter().try_for_each(|ingest| ingest.join().expect("no panic").map(drop));
        collected.and(ingested)
    })
}

/// The content that a store must have.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Snapshots that are there.
    pub must: Images,
    /// Snapshots that are there whole, in part if they say so, or not at all.
    pub may: Images,
    /// Whether they are held, of those of which that is certain.
    pub held: BTreeMap<SnapshotName, bool>,
    /// Packs that are gone may be told as missing, once: the index is an older copy.
    pub index_is_old: bool,
    /// `verify` may name damage. Snapshots are whole.
    pub is_damaged: bool,
}

impl Expected {
    /// Records the effects of an acknowledged act.
    pub fn settle(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Adds(name) => drop(self.must.entry(name.clone()).or_insert_with(|| content(name))),
                Effect::Removes(name) => {
                    self.must.remove(name);
                    self.held.remove(name);
                }
                Effect::Holds(name, held) => drop(self.held.insert(name.clone(), *held)),
            }
        }
    }

    /// Records the possible effects of an act that was not acknowledged.
    pub fn unsettle(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Adds(name) if self.must.contains_key(name) => {}
                Effect::Adds(name) => drop(self.may.insert(name.clone(), content(name))),
                Effect::Removes(name) => {
                    self.may.extend(self.must.remove_entry(name));
                    self.held.remove(name);
                }
                Effect::Holds(name, _) => drop(self.held.remove(name)),
            }
        }
    }

    /// Opens the store and fails, naming `context`, unless all is there, verifies, is collected to the last, and
    /// life goes on. `order` decides what comes first.
    pub fn check(&self, dir: &Path, storage: &MemStorage, order: u64, context: &dyn Fn() -> String) {
        let fail = |error: Error| -> ! { panic!("{}: {error}", context()) };
        let open = |seed| open(dir, Arc::new(storage.clone()), seed).unwrap_or_else(|error| fail(error));
        let mut store = open(1_000_000 + order);
        self.check_snapshots(&store, context);
        if order.is_multiple_of(2) {
            self.check_life_goes_on(&store, context);
        }
        if !order.is_multiple_of(3) {
            let problems = self.verify(&store, context);
            if !problems.is_empty() {
                drop(store);
                store = open(2_000_000 + order);
                let problems = self.verify(&store, context);
                assert!(problems.is_empty(), "{}: still after a verify: {problems:?}", context());
            }
        }
        gc::collect(&store, false, 1, &Progress::default()).unwrap_or_else(|error| fail(error));
        let again = gc::collect(&store, false, 1, &Progress::default()).unwrap_or_else(|error| fail(error));
        let garbage = (again.freed_bytes, again.removed_packs, again.missing_records);
        assert_eq!(garbage, (0, 0, 0), "{}: gc left garbage: {again:?}", context());
        assert_eq!(listed(storage, ".part") + listed(storage, ".tmp"), 0, "{}", context());
        self.check_snapshots(&store, context);
        if !order.is_multiple_of(2) {
            self.check_life_goes_on(&store, context);
        }
    }

    fn check_snapshots(&self, store: &Store, context: &dyn Fn() -> String) {
        let listed = store.catalog().list(None).unwrap_or_else(|error| panic!("{}: {error}", context()));
        let found: BTreeMap<_, _> = listed.into_iter().map(|listed| (listed.name, listed.snapshot)).collect();
        if let Some(lost) = self.must.keys().find(|name| !found.contains_key(name)) {
            panic!("{}: {lost} is lost", context());
        }
        for (name, snapshot) in found {
            let snapshot = snapshot.unwrap_or_else(|error| panic!("{}: {name}: {error}", context()));
            let image = self.must.get(&name).or_else(|| self.may.get(&name));
            let Some(image) = image else { panic!("{}: {name} should not be there", context()) };
            if snapshot.state.partial {
                assert!(self.may.contains_key(&name), "{}: {name} is there only in part", context());
                continue;
            }
            let bytes = read_back(store, &snapshot).unwrap_or_else(|error| panic!("{}: {name}: {error}", context()));
            assert!(bytes == **image, "{}: {name} differs", context());
            if let Some(held) = self.held.get(&name) {
                assert_eq!(snapshot.state.is_held(), *held, "{}: {name}", context());
            }
        }
    }

    /// Problems that are no surprise; fails at others.
    fn verify(&self, store: &Arc<Store>, context: &dyn Fn() -> String) -> Vec<String> {
        let report = verify::verify(store, &[], 1, &Progress::default());
        let report = report.unwrap_or_else(|error| panic!("{}: {error}", context()));
        assert!(report.damage.is_empty(), "{}: {report:?}", context());
        if self.is_damaged {
            return Vec::new();
        }
        let is_expected = |problem: &&String| self.index_is_old && problem.ends_with("is missing");
        let surprise = report.problems.iter().find(|problem| !is_expected(problem));
        assert_eq!(surprise, None, "{}", context());
        report.problems
    }

    /// Ingests what the power cut may have prevented under another name, and something new.
    fn check_life_goes_on(&self, store: &Arc<Store>, context: &dyn Fn() -> String) {
        let prevented = self.may.values().next().or_else(|| self.must.values().next()).cloned();
        for (name, image) in [(night("later", 0), prevented), (night("later", 1), Some(content(&night("later", 1))))] {
            let Some(image) = image else { continue };
            let snapshot =
                ingest_as(store, &name, &image).unwrap_or_else(|error| panic!("{}: life goes on: {error}", context()));
            let bytes = read_back(store, &snapshot).unwrap_or_else(|error| panic!("{}: {name}: {error}", context()));
            assert!(bytes == *image, "{}: {name} differs", context());
        }
        for day in [0, 1] {
            match store.catalog().remove(&night("later", day)) {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{}: {error}", context()),
            }
        }
    }
}

/// How many files of a storage end with `suffix`.
fn listed(storage: &MemStorage, suffix: &str) -> usize {
    let of =
        |dir: &str| storage.list(dir).map_or(0, |found| found.files.iter().filter(|f| f.ends_with(suffix)).count());
    let images = storage.list("catalog").map_or_else(|_| Vec::new(), |found| found.dirs);
    of("") + of("packs") + images.iter().map(|image| of(&format!("catalog/{image}"))).sum::<usize>()
}
