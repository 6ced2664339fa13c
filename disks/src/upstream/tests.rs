//! Two stores with owners in this process, and a link between them that can be cut.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chunkstore::Progress;
use chunkstore::catalog::{Snapshot, SnapshotName, SnapshotTime};
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::{self, ChunkSource, Leaf};
use chunkstore::format::{ChunkParams, Codec, HEADER_BYTES, Kind, Record, RecordId};
use chunkstore::ingest::{Base, IngestOptions, ingest};
use chunkstore::maintenance::verify::{VerifyReport, verify};
use chunkstore::metrics::Metrics;
use chunkstore::source::{MemDisk, Source};
use chunkstore::store::{InitOptions, OpenOptions, Store};
use chunkstore::testing::noise;
use replicate::rpc::client::{Client, Link};
use replicate::rpc::server::{ServeOptions, Server, serve_stream};
use replicate::rpc::transport::Peer;
use replicate::rpc::wire::Hello;
use replicate::transfer::{Direction, Ends, TransferOptions, Wanted, transfer};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::*;
use crate::chunk_cache::{ChunkCache, ChunkCacheOptions};
use crate::snapshot::SnapshotDisk;

/// The first night, and the next, in which some pages are others.
fn nights() -> [Vec<u8>; 2] {
    let mut first = noise(9 << 20, 1);
    first[5_000_000..6_000_000].fill(0);
    let mut second = first.clone();
    for at in (0..9 << 20).step_by(1 << 20) {
        second[at + 777..at + 4000].copy_from_slice(&noise(4000 - 777, at as u64 + 7));
    }
    [first, second]
}

fn night(image: &str, day: i64) -> SnapshotName {
    let first: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let time = first + jiff::SignedDuration::from_hours(24 * day);
    SnapshotName::new(image.parse().unwrap(), SnapshotTime::new(time).unwrap())
}

/// A store and its owner.
struct RecordLocation {
    dir: TempDir,
    store: Arc<Store>,
    server: Arc<Server>,
    /// Whether it can be reached.
    is_there: Arc<AtomicBool>,
    /// Connections so far, and those there are.
    connections: Arc<AtomicU64>,
    serving: Arc<std::sync::Mutex<Vec<tokio::task::AbortHandle>>>,
}

impl RecordLocation {
    fn new(seed: u8, avg_bytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let params =
            ChunkParams { min_bytes: avg_bytes / 4, avg_bytes, max_bytes: avg_bytes * 4, zero_run_min_bytes: 8 << 10 };
        let options = InitOptions { params, reserve: false };
        Store::init(dir.path(), &options, [seed; 16], "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let options = OpenOptions { seed: u64::from(seed), ..OpenOptions::default() };
        let store = Arc::new(Store::open(dir.path(), &options).unwrap());
        let server = Server::new(Arc::clone(&store), ServeOptions::default(), [seed; 32]);
        let is_there = Arc::new(AtomicBool::new(true));
        Self { dir, store, server, is_there, connections: Arc::default(), serving: Arc::default() }
    }

    fn ingest(&self, name: SnapshotName, bytes: &[u8]) -> Snapshot {
        let now = name.time.timestamp();
        let options = IngestOptions { name, labels: BTreeMap::new(), group: None, base: Base::Newest, threads: 2, now };
        let source = Source::Disk(Box::new(MemDisk::new(bytes.to_vec())));
        ingest(&self.store, source, &options, &Progress::default()).unwrap()
    }

    fn connect(&self) -> Connect {
        let (server, is_there) = (Arc::clone(&self.server), Arc::clone(&self.is_there));
        let (connections, serving) = (Arc::clone(&self.connections), Arc::clone(&self.serving));
        Arc::new(move |limit| {
            if !is_there.load(Ordering::SeqCst) {
                return Box::pin(std::future::ready(Err(Error::unreachable("it is away"))));
            }
            connections.fetch_add(1, Ordering::SeqCst);
            let (here, there) = tokio::io::duplex(64 << 10);
            let peer = Peer::Local { uid: rustix::process::getuid().as_raw(), pid: None };
            let task = tokio::spawn(serve_stream(Arc::clone(&server), Box::new(there), peer));
            serving.lock().unwrap().push(task.abort_handle());
            let link = Link { limit, ..Link::default() };
            Box::pin(async move { Client::start(Box::new(here), &Hello::default(), &link).await })
        })
    }

    /// Cuts all connections; there are no new ones for now.
    fn leave(&self) {
        self.is_there.store(false, Ordering::SeqCst);
        self.serving.lock().unwrap().drain(..).for_each(|serving| serving.abort());
    }

    fn come_back(&self) {
        self.is_there.store(true, Ordering::SeqCst);
    }

    fn verify(&self) -> VerifyReport {
        verify(&self.store, &[], 2, &Progress::default()).unwrap()
    }

    fn read(&self, name: &SnapshotName) -> Snapshot {
        self.store.catalog().read(name).unwrap()
    }

    fn has(&self, id: RecordId) -> bool {
        self.store.locate(&[id]).unwrap()[0].is_some()
    }
}

/// A far store with two nights, and a near one with nothing.
struct World {
    near: RecordLocation,
    far: RecordLocation,
    nights: [Snapshot; 2],
}

impl World {
    fn new() -> Self {
        let (near, far) = (RecordLocation::new(1, 8 << 10), RecordLocation::new(2, 8 << 10));
        let images = nights();
        let nights = [0, 1].map(|day| far.ingest(night("web01", day as i64), &images[day]));
        Self { near, far, nights }
    }

    fn options(&self) -> UpstreamServiceOptions {
        UpstreamServiceOptions {
            metrics: Metrics::default(),
            runtime: Handle::current(),
            dir: self.near.dir.path().to_path_buf(),
            catalog: self.near.store.catalog().clone(),
            local: Arc::clone(&self.near.store) as Arc<dyn ChunkSource>,
            near: self.near.connect(),
            far: Some(self.far.connect()),
            address: "far".into(),
            read_timeout: Duration::from_secs(20),
            hydrate: Vec::new(),
            record: false,
        }
    }

    async fn site(&self) -> Arc<UpstreamService> {
        UpstreamService::start(self.options()).await.unwrap()
    }

    async fn pull(&self, wanted: Wanted) {
        let near = (self.near.connect())(None).await.unwrap();
        let far = (self.far.connect())(None).await.unwrap();
        let ends = Ends { near, catalog: self.near.store.catalog().clone(), far: vec![far] };
        let options = TransferOptions { direction: Direction::Pull, wanted, dry_run: false };
        let report = transfer(&ends, &options, &Arc::default()).await.unwrap();
        assert!(report.snapshots_failed.is_empty(), "{report:?}");
    }

    /// All bytes of a snapshot, as a mount reads them.
    async fn read_all(&self, site: &UpstreamService, snapshot: &Snapshot) -> Result<Vec<u8>> {
        let local = Arc::clone(&self.near.store) as Arc<dyn ChunkSource>;
        let options = ChunkCacheOptions { far: site.far(), ..ChunkCacheOptions::default() };
        let cache = ChunkCache::with_options(local, Handle::current(), options);
        let disk = SnapshotDisk::new(&cache, snapshot);
        let mut image = vec![0; disk.size_bytes() as usize];
        disk.read(&mut image, 0).await.map(|()| image)
    }

    /// Opens a snapshot as a mount does.
    async fn open(&self, site: &UpstreamService, name: &SnapshotName) -> crate::names::Opened {
        let (names, name) = (site.names().unwrap(), name.clone());
        in_background(move || names.open(&name)).await.unwrap()
    }
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn leaf(source: &dyn ChunkSource, id: NodeId) -> Result<Leaf> {
    match source.node(id)? {
        Node::Leaf(leaf) => Ok(leaf),
        Node::Inner(_) => panic!("a leaf is a leaf"),
    }
}

/// The chunks of a snapshot, with their offsets.
fn chunks_of(store: &Store, snapshot: &Snapshot) -> Vec<(u64, ChunkId)> {
    let (mut chunks, entry) = (Vec::new(), snapshot.entry());
    manifest::walk(store, entry.root, entry.virtual_bytes, &mut |segment| {
        let start = segment.number * SEGMENT_BYTES as u64;
        chunks.extend(leaf(store, segment.leaf)?.chunks().map(|(at, id, _)| (start + at as u64, id)));
        Ok(())
    })
    .unwrap();
    chunks
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("in vain waited for {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn far_snapshots_appear_are_read_bit_for_bit_and_kept() {
    let world = World::new();
    world.near.ingest(night("db01", 0), &noise(100_000, 5));
    let site = world.site().await;
    let names = site.names().unwrap();
    let images: Vec<_> = names.images().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(images, ["db01", "web01"]);
    let [first, second] = [0, 1].map(|day| night("web01", day));
    assert_eq!(names.snapshots(&first.image).unwrap(), [first.clone(), second.clone()]);
    assert!(world.near.store.catalog().read(&first).is_err(), "only what is opened comes into the catalog");
    let opened = world.open(&site, &second).await;
    assert!(opened.snapshot.state.partial && opened.lease.is_some());
    assert_eq!(opened.snapshot.entry_encoding(), world.nights[1].entry_encoding());
    for (night, image) in [(1, &nights()[1]), (0, &nights()[0])] {
        world.open(&site, &world.nights[night].name()).await;
        assert!(world.read_all(&site, &world.nights[night]).await.unwrap() == *image, "night {night}");
    }
    let status = site.status().unwrap();
    assert!(status.is_connected && status.refused_records == 0, "{status:?}");
    site.stop().await;
    // All of it is here by now, although that was not checked.
    let report = world.near.verify();
    assert!(report.is_sound() && report.partial_snapshots == 2 && report.absent_records == 0, "{report:?}");
    let there = world.near.read(&second);
    assert_eq!((there.state.partial, there.state.presence.unwrap().percent()), (true, 100));
    // A pull does, and brings nothing.
    world.pull(Wanted::All).await;
    assert!(!world.near.read(&second).state.partial && !world.near.read(&first).state.partial);
}

/// A store that must ask others, which a thread that drives tasks can't wait for.
struct Asking(Arc<Store>, Handle);

impl ChunkSource for Asking {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        self.1.block_on(async {});
        self.0.chunks(ids, each)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        self.1.block_on(async {});
        self.0.node(id)
    }

    fn expect(&self, _: &[ChunkId]) {
        self.1.block_on(async {});
    }

    fn expect_nodes(&self, _: &[NodeId]) {
        self.1.block_on(async {});
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_a_mount_read_through() {
    let world = World::new();
    let local = Arc::new(Asking(Arc::clone(&world.near.store), Handle::current())) as Arc<dyn ChunkSource>;
    let options = UpstreamServiceOptions { local: Arc::clone(&local), record: true, ..world.options() };
    let site = UpstreamService::start(options).await.unwrap();
    let options = ChunkCacheOptions { far: site.far(), observer: site.observer(), ..ChunkCacheOptions::default() };
    let cache = ChunkCache::with_options(local, Handle::current(), options);
    let opened = world.open(&site, &world.nights[0].name()).await;
    let disk = SnapshotDisk::new(&cache, &opened.snapshot);
    let mut image = vec![0; disk.size_bytes() as usize];
    for (at, part) in image.chunks_mut(100_000).enumerate() {
        disk.read(part, at as u64 * 100_000).await.unwrap();
    }
    assert!(image == nights()[0]);
    site.stop().await;
    assert_eq!(world.near.dir.path().join("boot").read_dir().unwrap().count(), 1, "what was read is recorded");
    assert_eq!(world.near.verify().absent_records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_does_not_travel_and_changes_travel_as_deltas() {
    let world = World::new();
    world.pull(Wanted::Snapshots(vec![merged_names::selector_of(&world.nights[0].name())])).await;
    let site = world.site().await;
    world.open(&site, &world.nights[1].name()).await;
    assert!(world.read_all(&site, &world.nights[1]).await.unwrap() == nights()[1]);
    let status = site.status().unwrap();
    assert!(status.fetched_bytes < 300_000, "{status:?}");
    site.stop().await;
    let kept = site.status().unwrap();
    assert!(kept.kept_records > 0 && kept.kept_bytes < 300_000 && kept.not_kept_records == 0, "{kept:?}");
    assert!(world.near.verify().is_sound());
    assert_eq!(world.near.verify().absent_records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_while_upstream_is_away_and_go_on_when_it_is_back() {
    let world = World::new();
    let site = world.site().await;
    world.open(&site, &world.nights[0].name()).await;
    let before = world.far.connections.load(Ordering::SeqCst);
    let coming_and_going = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            world.far.leave();
            tokio::time::sleep(Duration::from_millis(60)).await;
            world.far.come_back();
        }
    };
    let (read, ()) = tokio::join!(world.read_all(&site, &world.nights[0]), coming_and_going);
    assert!(read.unwrap() == nights()[0]);
    assert!(world.far.connections.load(Ordering::SeqCst) > before, "it was connected again");
    // The list stays, also while it is away.
    world.far.leave();
    assert_eq!(site.names().unwrap().snapshots(&"web01".parse().unwrap()).unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_ends_and_a_mount_starts_without_its_upstream() {
    let world = World::new();
    world.near.ingest(night("db01", 0), &noise(100_000, 5));
    world.far.leave();
    let options = UpstreamServiceOptions { read_timeout: Duration::from_millis(300), ..world.options() };
    let site = UpstreamService::start(options).await.unwrap();
    assert_eq!(site.names().unwrap().images().unwrap().len(), 1);
    let chunk = chunks_of(&world.far.store, &world.nights[0])[0].1;
    let far = site.far().unwrap();
    let failed = far.fetch(chunk, Urgency::Demand).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    assert!(!far.is_absent(chunk), "the local store may have it by other ways");
    world.far.come_back();
    eventually("upstream", || site.status().unwrap().waiting_records == 0).await;
    for _ in 0..100 {
        if let Ok(chunk) = far.fetch(chunk, Urgency::Demand).await {
            assert!(far.is_absent(chunk.id()));
            return;
        }
    }
    panic!("it is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hydrated_snapshot_is_an_ordinary_one_and_upstream_may_go() {
    let world = World::new();
    let hydrate = vec!["web01@latest".parse().unwrap()];
    let site = UpstreamService::start(UpstreamServiceOptions { hydrate, ..world.options() }).await.unwrap();
    let name = world.nights[1].name();
    // A reader meanwhile does no harm.
    world.open(&site, &name).await;
    assert!(world.read_all(&site, &world.nights[1]).await.unwrap() == nights()[1]);
    eventually("hydration", || site.status().unwrap().hydrations[0].state == HydrationState::Done).await;
    world.far.leave();
    assert!(!world.near.read(&name).state.partial);
    assert!(world.read_all(&site, &world.nights[1]).await.unwrap() == nights()[1]);
    site.stop().await;
    let report = world.near.verify();
    assert!(report.is_sound() && report.partial_snapshots == 0, "{report:?}");
    // After a restart, nothing is left to do, also without upstream.
    let hydrate = vec![merged_names::selector_of(&name)];
    let site = UpstreamService::start(UpstreamServiceOptions { hydrate, ..world.options() }).await.unwrap();
    eventually("the same again", || site.status().unwrap().hydrations[0].state == HydrationState::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hydration_that_is_cut_goes_on() {
    let world = World::new();
    let name = world.nights[0].name();
    let options = || UpstreamServiceOptions { hydrate: vec![merged_names::selector_of(&name)], ..world.options() };
    let site = UpstreamService::start(options()).await.unwrap();
    eventually("some of it", || site.status().unwrap().hydrations[0].fetched_bytes > 0).await;
    world.far.leave();
    site.stop().await;
    assert!(world.near.verify().is_sound());
    world.far.come_back();
    let site = UpstreamService::start(options()).await.unwrap();
    eventually("hydration", || site.status().unwrap().hydrations[0].state == HydrationState::Done).await;
    assert!(!world.near.read(&name).state.partial && world.near.verify().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_heals_what_is_damaged_here() {
    let world = World::new();
    world.pull(Wanted::All).await;
    let (_, broken) = chunks_of(&world.near.store, &world.nights[0])[7];
    break_record(&world.near, broken.into());
    assert!(world.near.store.chunk(broken).is_err());
    let site = world.site().await;
    assert!(world.read_all(&site, &world.nights[0]).await.unwrap() == nights()[0]);
    site.stop().await;
    assert_eq!(site.status().unwrap().healed_records, 1);
    assert!(world.near.store.chunk(broken).is_ok());
    let report = world.near.verify();
    assert!(report.is_sound() && report.healed_records == 1, "{report:?}");
}

/// Flips a byte in the middle of a record.
fn break_record(place: &RecordLocation, id: RecordId) {
    let found = place.store.locate(&[id]).unwrap()[0].unwrap();
    let pack = place.store.packs().row(found.pack).unwrap().id.to_string();
    let mut packs = fs::read_dir(place.dir.path().join("packs")).unwrap().map(|entry| entry.unwrap().path());
    let path = packs.find(|path| path.to_str().unwrap().contains(&pack)).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let at = u64::from(found.offset) + HEADER_BYTES as u64 + u64::from(found.stored_bytes) / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_says_is_an_error_and_not_kept() {
    let world = World::new();
    // A store that takes an ingest's word: the record's checksums are right, its content is another.
    let id = ChunkId::of(b"the truth");
    let lie = |kind| Record::new(kind, id.into(), 5, Codec::Raw, b"a lie".to_vec(), None);
    let session = world.far.store.session(None).unwrap();
    session.put(vec![lie(Kind::Chunk)]).unwrap();
    session.flush().unwrap();
    let site = world.site().await;
    let far = site.far().unwrap();
    for _ in 0..2 {
        let refused = far.fetch(id, Urgency::Demand).await;
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    }
    // A chunk where a node is wanted is no node.
    let (_, chunk) = chunks_of(&world.far.store, &world.nights[0])[0];
    let refused = far.fetch_node(NodeId::from_bytes(*chunk.as_bytes()), Urgency::Demand).await;
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    let nowhere = far.fetch(ChunkId::of(b"nowhere"), Urgency::Demand).await;
    assert!(matches!(nowhere, Err(Error::Damaged { .. })), "{nowhere:?}");
    // Others are not harmed.
    assert!(far.fetch(chunk, Urgency::Demand).await.is_ok());
    site.stop().await;
    assert_eq!(site.status().unwrap().refused_records, 3);
    assert!(!world.near.has(id.into()) && world.near.has(chunk.into()));
    assert!(world.near.verify().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_boot_touched_is_recorded_on_both_sides_and_fetched_before_anybody_asks() {
    let world = World::new();
    let name = world.nights[0].name();
    let site = UpstreamService::start(UpstreamServiceOptions { record: true, ..world.options() }).await.unwrap();
    let opened = world.open(&site, &name).await;
    let touched = [7 << 20..(7 << 20) + 4096, 1 << 20..(1 << 20) + 100_000];
    for range in &touched {
        site.observer().unwrap().observe(opened.snapshot.entry_id(), range.clone());
    }
    site.stop().await;
    let orders = [&world.near, &world.far].map(|place| place.dir.path().join("boot").read_dir().unwrap().count());
    assert_eq!(orders, [1, 1]);
    // Another near store, and another night of the image.
    let world = World { near: RecordLocation::new(3, 8 << 10), ..world };
    let site = world.site().await;
    world.open(&site, &world.nights[1].name()).await;
    let chunks = chunks_of(&world.far.store, &world.nights[1]);
    let is_touched = |at: u64| {
        let granule = |range: &Range<u64>| range.start & !0xffff..range.end.next_multiple_of(64 << 10);
        touched.iter().any(|range| granule(range).contains(&at))
    };
    let (wanted, others): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|(at, _)| is_touched(*at));
    assert!(wanted.len() > 10 && others.len() > 500, "{}, {}", wanted.len(), others.len());
    let count = |all: &[(u64, ChunkId)]| all.iter().filter(|(_, id)| world.near.has((*id).into())).count();
    eventually("the manifest", || site.status().unwrap().fetched_records > wanted.len() as u64).await;
    eventually("silence", || site.status().unwrap().waiting_records == 0).await;
    site.stop().await;
    assert_eq!(count(&wanted), wanted.len());
    // At the ranges' ends lies a chunk that begins before.
    assert!(count(&others) <= 2 * touched.len(), "{}", count(&others));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_brings_its_neighbours_and_not_what_is_here() {
    let world = World::new();
    let chunks = chunks_of(&world.far.store, &world.nights[0]);
    let site = world.site().await;
    let far = site.far().unwrap();
    let segment: Vec<ChunkId> = chunks[..64].iter().map(|(_, id)| *id).collect();
    far.neighbours(&segment);
    // Whoever decodes is no thread of the runtime.
    let (asking, first) = (Arc::clone(&far), segment[20]);
    let fetching = std::thread::spawn(move || asking.fetch(first, Urgency::Demand)).join().unwrap();
    fetching.await.unwrap();
    eventually("neighbours", || site.status().unwrap().fetched_records == 17).await;
    far.fetch(segment[50], Urgency::Demand).await.unwrap();
    eventually("the rest", || site.status().unwrap().fetched_records == 64).await;
    // They are given without another request, and once more after they were kept.
    let requests = site.status().unwrap().requests;
    far.fetch(segment[21], Urgency::Demand).await.unwrap();
    assert_eq!(site.status().unwrap().requests, requests);
    site.stop().await;
    assert!(segment.iter().all(|id| world.near.has((*id).into())));
    let site = world.site().await;
    let far = site.far().unwrap();
    far.neighbours(&chunks[..128].iter().map(|(_, id)| *id).collect::<Vec<_>>());
    far.fetch(chunks[66].1, Urgency::Demand).await.unwrap();
    // Two lie before it, of which none is here, and fourteen after it.
    eventually("neighbours", || site.status().unwrap().fetched_records == 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nothing_can_be_kept_fails_no_read() {
    let world = World::new();
    let near = world.near.connect();
    let is_full = Arc::new(AtomicBool::new(false));
    let full = Arc::clone(&is_full);
    let near: Connect = Arc::new(move |limit| {
        if full.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(Error::OutOfSpace { path: "packs".into(), is_quota: false })));
        }
        near(limit)
    });
    let site = UpstreamService::start(UpstreamServiceOptions { near, ..world.options() }).await.unwrap();
    world.open(&site, &world.nights[0].name()).await;
    is_full.store(true, Ordering::SeqCst);
    world.near.serving.lock().unwrap().drain(..).for_each(|serving| serving.abort());
    assert!(world.read_all(&site, &world.nights[0]).await.unwrap() == nights()[0]);
    eventually("that it is told", || site.status().unwrap().is_keeping_failing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_cut_chunks_differently_are_refused() {
    let world = World::new();
    let world = World { near: RecordLocation::new(3, 16 << 10), ..world };
    let Err(refused) = UpstreamService::start(world.options()).await else { panic!("they do not fit") };
    assert!(matches!(&refused, Error::Refused { what } if what.contains("init --like")), "{refused}");
}
