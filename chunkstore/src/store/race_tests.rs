//! Everything at once: ingests, abandoned sessions, removals, readers, gc and verify on one open store with small
//! packs, killed now and then. Acknowledged snapshots come back bit for bit, and nothing is unsound.
//!
//! Each thread's actions follow from a seed, which is printed; their interleaving does not. `VMSTORE_RACE_SEED` and
//! `VMSTORE_RACE_ROUNDS` choose other seeds and another number of rounds.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::crash_tests::new_storage;
use super::{OpenOptions, Store};
use crate::catalog::{Entry, IngestReport, Snapshot, SnapshotName};
use crate::error::{Error, Result};
use crate::format::{Record, RecordId};
use crate::ingest::{Base, IngestInto, IngestOptions, ingest};
use crate::maintenance::gc;
use crate::maintenance::verify::verify;
use crate::pack::{self, Class, part_path};
use crate::progress::Progress;
use crate::storage::{MemStorage, Storage};
use crate::store::direct_session::DirectWriteSession;
use crate::store::sink::{self, Claim, Like, Sink};
use crate::testing::Rng;
use crate::testing::{disk, night, noise, open_options, options, read_back};

const WRITERS: usize = 3;
const STEPS: u32 = 60;
const PACK_BYTES: u64 = 48 << 10;
const IMAGE_BYTES: usize = 96 << 10;

/// A writer's knowledge of its images.
#[derive(Default)]
struct Known {
    /// Acknowledged: must come back.
    there: BTreeMap<SnapshotName, Vec<u8>>,
    /// Begun and not acknowledged, or removed without an acknowledgement: there as a whole, or not at all.
    unsure: BTreeMap<SnapshotName, Vec<u8>>,
    last_day: u32,
}

/// State that the threads of a round share.
struct Round {
    store: Arc<Store>,
    storage: MemStorage,
    /// The storage fails from this call on.
    killed_at: u64,
    collections: Mutex<u64>,
    collected: Condvar,
    writers_left: AtomicU64,
    operations: AtomicU64,
}

impl Round {
    fn is_killed(&self) -> bool {
        self.storage.calls() >= self.killed_at
    }

    fn is_over(&self) -> bool {
        self.is_killed() || self.writers_left.load(Ordering::SeqCst) == 0
    }

    /// Waits until a collection that begins from now on has ended.
    fn wait_for_collection(&self) {
        let seen = *self.collections.lock().unwrap();
        let waits = |collections: &mut u64| *collections < seen.saturating_add(2) && !self.is_killed();
        drop(self.collected.wait_while(self.collections.lock().unwrap(), waits).unwrap());
    }

    /// Passes a result on; `None` if the storage was killed.
    fn expect<T>(&self, context: &str, result: Result<T>) -> Option<T> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(value) => Some(value),
            Err(_) if self.is_killed() => None,
            Err(error) => panic!("{context}: {error}"),
        }
    }
}

/// Signals that a writer has ended, even by a panic.
struct Ends<'a>(&'a Round);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.writers_left.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Signals that collections have ended.
struct EndsCollecting<'a>(&'a Round);

impl Drop for EndsCollecting<'_> {
    fn drop(&mut self) {
        *self.0.collections.lock().unwrap() = u64::MAX;
        self.0.collected.notify_all();
    }
}

/// A session that writes packs directly, and may rely on records that it found while gc ran, before it publishes.
struct Client<'a> {
    sink: DirectWriteSession<'a>,
    round: &'a Round,
    is_slow: bool,
}

impl Sink for Client<'_> {
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.sink.claim(ids)
    }

    fn bases(&self, like: &[Like]) -> Result<Vec<Option<sink::Base>>> {
        self.sink.bases(like)
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        self.sink.put(records)
    }

    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot> {
        if self.is_slow {
            self.round.wait_for_collection();
        }
        self.sink.publish(entry, report)
    }
}

/// An image that shares much with those of all writers, and with older ones.
fn image(random: &mut Rng) -> Vec<u8> {
    let mut image = noise(IMAGE_BYTES, 1 + random.below(2));
    for _ in 0..random.below(4) {
        let (at, len) = (random.below(IMAGE_BYTES as u64 / 4096) as usize * 4096, 4096 << random.below(4));
        let end = (at + len).min(IMAGE_BYTES);
        image[at..end].copy_from_slice(&noise(end - at, 10 + random.below(6)));
    }
    image
}

fn write(round: &Round, writer: usize, known: &mut Known, random: &mut Rng) {
    let _ends = Ends(round);
    for _ in 0..STEPS {
        if round.is_killed() {
            break;
        }
        match random.below(16) {
            0..3 => ingest_one(round, writer, known, random, How::Here),
            3..6 => ingest_one(round, writer, known, random, How::DirectWriter),
            6..8 => ingest_one(round, writer, known, random, How::BesideAndSlowly),
            8..12 => remove_one(round, known, random),
            12..15 => read_one(round, known, random),
            _ => abandon(round, random),
        }
    }
}

/// How an ingest writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Here,
    DirectWriter,
    BesideAndSlowly,
}

fn ingest_one(round: &Round, writer: usize, known: &mut Known, random: &mut Rng, how: How) {
    let image_name = format!("vm{writer}-{}", random.below(2));
    known.last_day += 1;
    let name = night(&image_name, known.last_day);
    let bytes = image(random);
    let base = if random.below(3) == 0 { Base::None } else { Base::Newest };
    let options = IngestOptions { threads: 1, ..options(name.clone(), base) };
    known.unsure.insert(name.clone(), bytes.clone());
    let ingested = if how == How::Here {
        ingest(&round.store, disk(&bytes), &options, &Progress::default())
    } else {
        ingest_beside(round, &bytes, &options, how == How::BesideAndSlowly)
    };
    if round.expect(&format!("ingest of {name}"), ingested).is_some() {
        known.unsure.remove(&name);
        known.there.insert(name, bytes);
    }
}

fn ingest_beside(round: &Round, bytes: &[u8], options: &IngestOptions, is_slow: bool) -> Result<Snapshot> {
    let store = &round.store;
    let parent = crate::ingest::find_parent(store.catalog(), options)?.map(|parent| parent.name());
    let session = store.session(parent.as_ref())?;
    let into = IngestInto {
        sink: &Client { sink: DirectWriteSession::new(&session), round, is_slow },
        source: &**store,
        params: store.config().format.chunk_params(),
        codec: store.codec().clone(),
        store_id: "here",
        trusts_parent: session.trusts_parent(),
        parent: session.parent().cloned(),
    };
    into.ingest(disk(bytes), options, &Progress::default())
}

fn remove_one(round: &Round, known: &mut Known, random: &mut Rng) {
    let nth = random.below(known.there.len().max(1) as u64) as usize;
    let Some(name) = known.there.keys().nth(nth).cloned() else { return };
    let bytes = known.there.remove(&name).expect("it was picked from these");
    if round.expect(&format!("removal of {name}"), round.store.catalog().remove(&name)).is_none() {
        known.unsure.insert(name, bytes);
    }
}

fn read_one(round: &Round, known: &Known, random: &mut Rng) {
    let nth = random.below(known.there.len().max(1) as u64) as usize;
    let Some((name, bytes)) = known.there.iter().nth(nth) else { return };
    let snapshot = round.store.catalog().read(name).unwrap();
    let read = round.expect(&format!("reading {name}"), read_back(&*round.store, snapshot.entry()));
    assert!(read.is_none_or(|read| read == *bytes), "{name} has other bytes");
}

/// A session that puts something, relies on something, reserves an extent and ends without using it. It writes into the
/// extent too late.
fn abandon(round: &Round, random: &mut Rng) {
    let session = round.store.session(None).unwrap();
    let stopped = StopsAtPublish(DirectWriteSession::new(&session));
    let store = &round.store;
    let into = IngestInto {
        sink: &stopped,
        source: &**store,
        params: store.config().format.chunk_params(),
        codec: store.codec().clone(),
        store_id: "here",
        trusts_parent: false,
        parent: None,
    };
    let options = options(night("abandoned", 1), Base::None);
    let result = into.ingest(disk(&image(random)), &options, &Progress::default());
    assert!(matches!(result, Err(Error::Interrupted)) || round.is_killed(), "{result:?}");
    let room = round.expect("borrowing room", session.reserve(Class::Data, 5000));
    drop(session);
    if random.below(2) == 0 {
        round.expect("sealing the open packs", store.flush_open_packs());
    }
    if let Some(room) = room {
        for path in [part_path(room.pack), pack::path(room.pack)] {
            // It may be gone, like its borrower.
            let late = round.storage.join(&path);
            let _ = late.and_then(|file| file.write_at(room.offset.into(), &noise(room.bytes as usize, 9)));
        }
    }
}

struct StopsAtPublish<'a>(DirectWriteSession<'a>);

impl Sink for StopsAtPublish<'_> {
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.0.claim(ids)
    }

    fn bases(&self, like: &[Like]) -> Result<Vec<Option<sink::Base>>> {
        self.0.bases(like)
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        self.0.put(records)
    }

    fn publish(&self, _: Entry, _: IngestReport) -> Result<Snapshot> {
        Err(Error::Interrupted)
    }
}

/// Collects continuously, sometimes stops in the middle, sometimes verifies.
fn maintain(round: &Round, random: &mut Rng) {
    let _ends = EndsCollecting(round);
    while !round.is_over() {
        let progress = Progress::default();
        let done = AtomicBool::new(false);
        let stop_after = (random.below(4) == 0).then(|| random.below(20_000));
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..stop_after.unwrap_or(0)).for_each(|_| thread::yield_now());
                if stop_after.is_some() && !done.load(Ordering::Relaxed) {
                    progress.stop();
                }
            });
            match gc::collect(&round.store, false, 1, &progress) {
                Err(Error::Interrupted) => {}
                result => drop(round.expect("gc", result)),
            }
            done.store(true, Ordering::Relaxed);
        });
        *round.collections.lock().unwrap() += 1;
        round.collected.notify_all();
        if random.below(8) == 0 {
            check_sound(round, "verify beside the others");
        }
    }
}

fn check_sound(round: &Round, context: &str) {
    if let Some(report) = round.expect(context, verify(&round.store, &[], 1, &Progress::default())) {
        assert!(report.is_sound() || round.is_killed(), "{context}: {report:?}");
    }
}

fn open_small(dir: &Path, storage: &MemStorage) -> Arc<Store> {
    let options = OpenOptions { storage: Some(Arc::new(storage.clone())), pack_bytes: PACK_BYTES, ..open_options() };
    Arc::new(Store::open(dir, &options).unwrap())
}

/// Checks everything that the writers know, and settles what they are unsure of.
fn check(store: &Arc<Store>, known: &mut Known, context: &str) {
    for (name, bytes) in std::mem::take(&mut known.unsure) {
        match store.catalog().read(&name) {
            Ok(_) => drop(known.there.insert(name, bytes)),
            Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{context}: {error}"),
        }
    }
    for (name, bytes) in &known.there {
        let snapshot = store.catalog().read(name).unwrap_or_else(|error| panic!("{context}: {error}"));
        let read = read_back(&**store, snapshot.entry()).unwrap_or_else(|error| panic!("{context}: {name}: {error}"));
        assert!(read == *bytes, "{context}: {name} has other bytes");
    }
}

/// Number of collections after which another one has nothing to do.
const COLLECTIONS_MAX: usize = 4;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn everything_at_once_loses_nothing() {
    let seed = from_environment("VMSTORE_RACE_SEED", 1);
    let rounds = from_environment("VMSTORE_RACE_ROUNDS", 12);
    let dir = tempfile::tempdir().unwrap();
    let mut storage = new_storage();
    let mut known: Vec<Known> = (0..WRITERS).map(|_| Known::default()).collect();
    let mut random = Rng::new(seed);
    let mut operations = 0;
    for number in 0..rounds {
        let context = format!("seed {seed}, round {number}");
        println!("{context}");
        let is_killed = random.below(3) > 0;
        let killed_at = if is_killed { storage.calls() + 200 + random.below(6000) } else { u64::MAX };
        if is_killed {
            storage.fail_from(killed_at, ErrorKind::Other);
        }
        let round = Round {
            store: open_small(dir.path(), &storage),
            storage: storage.clone(),
            killed_at,
            collections: Mutex::default(),
            collected: Condvar::new(),
            writers_left: AtomicU64::new(WRITERS as u64),
            operations: AtomicU64::new(0),
        };
        thread::scope(|scope| {
            for (writer, known) in known.iter_mut().enumerate() {
                let (round, mut random) = (&round, Rng::new(random.number()));
                scope.spawn(move || write(round, writer, known, &mut random));
            }
            let mut random = Rng::new(random.number());
            let round = &round;
            scope.spawn(move || maintain(round, &mut random));
        });
        operations += round.operations.load(Ordering::Relaxed);
        drop(round);
        if is_killed {
            storage.heal();
            storage = storage.power_cut();
        }
        let store = open_small(dir.path(), &storage);
        known.iter_mut().for_each(|known| check(&store, known, &context));
        let report = verify(&store, &[], 2, &Progress::default()).unwrap();
        assert!(report.is_sound(), "{context}: {report:?}");
    }
    println!("{operations} operations");
    let store = open_small(dir.path(), &storage);
    let collect = || gc::collect(&store, false, 1, &Progress::default()).unwrap();
    // Small packs that one collection writes may be merged by the next; this ends soon.
    let last = (0..COLLECTIONS_MAX).map(|_| collect()).find(|report| report.freed_bytes == 0);
    assert_eq!(last.map(|report| report.missing_records), Some(0), "collections go on and on");
    known.iter_mut().for_each(|known| check(&store, known, "at the end"));
}
