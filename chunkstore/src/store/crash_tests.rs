//! Death and power cuts at every storage call of ingest, remove and gc.
//!
//! The storage fails from the n-th call on, for every n; then only what was synced survives. The index lives on a real
//! disk and keeps what it was told, so it is ahead of or behind the packs, as after a real crash.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::open::make_dirs;
use super::{OpenOptions, Store};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gc;
use crate::ingest::{Base, ingest};
use crate::name::SnapshotName;
use crate::progress::Progress;
use crate::storage::Storage;
use crate::storage::memory::MemStorage;
use crate::testing::{disk, night, noise, options, read_back, small_params};

type Expected = BTreeMap<SnapshotName, Vec<u8>>;

pub(crate) fn new_storage() -> MemStorage {
    let memory = MemStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    make_dirs(&storage).unwrap();
    let config = Config::new([7; 16], "2026-11-20T00:00:00Z".parse().unwrap(), small_params()).unwrap();
    config.store(&*storage).unwrap();
    memory
}

pub(crate) fn open_on(dir: &Path, storage: &MemStorage) -> Result<Arc<Store>> {
    let options = OpenOptions { storage: Some(Arc::new(storage.clone())), ..OpenOptions::default() };
    Store::open(dir, &options).map(Arc::new)
}

fn first_night() -> Vec<u8> {
    noise(400_000, 1)
}

fn second_night() -> Vec<u8> {
    let mut image = first_night();
    image[100_000..104_096].copy_from_slice(&noise(4096, 2));
    image.extend(noise(50_000, 3));
    image
}

/// One write of an operator, on a store that has the first night.
#[derive(Clone, Copy, Debug)]
enum Write {
    SecondNight,
    RemoveFirst,
    RemoveFirstAndCollect,
    CollectSmall,
}

impl Write {
    fn run(self, store: &Arc<Store>) -> Result<()> {
        let first = night("web01", 1);
        match self {
            Self::SecondNight => {
                ingest(store, disk(&second_night()), &options(night("web01", 2), Base::Newest), &Progress::default())?;
            }
            Self::RemoveFirst => store.catalog().remove(&first)?,
            Self::RemoveFirstAndCollect => {
                store.catalog().remove(&first)?;
                gc::collect(store, false, 1, &Progress::default())?;
            }
            Self::CollectSmall => drop(gc::collect(store, false, 1, &Progress::default())?),
        }
        Ok(())
    }

    /// Snapshots that were acknowledged before and that this write does not touch, and what it may change.
    fn touches(self) -> Option<SnapshotName> {
        match self {
            Self::SecondNight => Some(night("web01", 2)),
            Self::RemoveFirst | Self::RemoveFirstAndCollect => Some(night("web01", 1)),
            Self::CollectSmall => None,
        }
    }
}

/// A store with a night of two images, in several small packs.
fn prepared(dir: &Path) -> (MemStorage, Expected) {
    let storage = new_storage();
    let store = open_on(dir, &storage).unwrap();
    let mut expected = Expected::new();
    for (name, bytes) in [
        (night("web01", 1), first_night()),
        (night("web02", 1), noise(200_000, 9)),
        (night("web03", 1), second_night()),
        (night("web04", 1), noise(150_000, 8)),
    ] {
        ingest(&store, disk(&bytes), &options(name.clone(), Base::Newest), &Progress::default()).unwrap();
        expected.insert(name, bytes);
    }
    (storage, expected)
}

/// Opens what a crash left and checks everything that was promised.
fn check(dir: &Path, storage: &MemStorage, write: Write, acknowledged: bool, before: &Expected, at: u64) {
    let context = format!("{write:?} ended at call {at}, acknowledged: {acknowledged}");
    let store = open_on(dir, storage).unwrap_or_else(|error| panic!("{context}: {error}"));
    let touched = write.touches();
    for (name, bytes) in before.iter().filter(|(name, _)| Some(*name) != touched.as_ref()) {
        let snapshot = store.catalog().read(name).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(read_back(&*store, snapshot.entry()).unwrap() == *bytes, "{context}: {name}");
    }
    if let Some(name) = touched {
        check_touched(&store, write, acknowledged, &name, &context);
    }
    gc::collect(&store, false, 1, &Progress::default()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let again = gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert_eq!((again.dead_records, again.freed_bytes), (0, 0), "{context}: garbage is left");
    let name = night("web01", 30);
    let snapshot = ingest(&store, disk(&second_night()), &options(name, Base::Newest), &Progress::default()).unwrap();
    assert!(read_back(&*store, snapshot.entry()).unwrap() == second_night(), "{context}: life goes on");
}

/// What a write touches is wholly as before or wholly as after; as after if it was acknowledged.
fn check_touched(store: &Arc<Store>, write: Write, acknowledged: bool, name: &SnapshotName, context: &str) {
    let found = store.catalog().read(name);
    match (write, &found) {
        (Write::SecondNight, Ok(snapshot)) => {
            assert!(read_back(&**store, snapshot.entry()).unwrap() == second_night(), "{context}");
        }
        (Write::SecondNight, Err(Error::NotFound { .. })) => assert!(!acknowledged, "{context}: lost"),
        (_, Ok(snapshot)) => {
            assert!(!acknowledged, "{context}: came back");
            assert!(read_back(&**store, snapshot.entry()).unwrap() == first_night(), "{context}");
        }
        (_, Err(Error::NotFound { .. })) => {}
        (_, Err(error)) => panic!("{context}: {error}"),
    }
}

/// Lets a write end at every call in turn, by `how`.
fn at_every_call(write: Write, how: fn(&MemStorage, u64)) -> u64 {
    let mut at = 0;
    loop {
        at += 1;
        let dir = tempfile::tempdir().unwrap();
        let (storage, before) = prepared(dir.path());
        let store = open_on(dir.path(), &storage).unwrap();
        let calls = storage.calls();
        how(&storage, calls + at);
        let result = write.run(&store);
        drop(store);
        let hit = storage.calls() >= calls + at;
        storage.heal();
        check(dir.path(), &storage.power_cut(), write, result.is_ok(), &before, at);
        if !hit {
            return at;
        }
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_acknowledged() {
    for write in [Write::SecondNight, Write::RemoveFirst, Write::RemoveFirstAndCollect, Write::CollectSmall] {
        let calls = at_every_call(write, |storage, call| storage.fail_from(call, ErrorKind::Other));
        assert!(calls > 2, "{write:?} made only {calls} calls");
    }
}

#[test]
fn a_full_disk_at_any_call_loses_nothing_acknowledged() {
    for write in [Write::SecondNight, Write::RemoveFirstAndCollect] {
        at_every_call(write, |storage, call| storage.fail_at(call, ErrorKind::StorageFull));
    }
}
