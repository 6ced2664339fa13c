//! A device that fails for a moment, at any call of opening and gc: no record that exists is treated as lost.
//! Power cuts and all other faults: `tests/tests/attacks/power_cuts.rs` and `faults/storage.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::open::make_dirs;
use super::{OpenOptions, Store};
use crate::catalog::SnapshotName;
use crate::error::Result;
use crate::maintenance::gc;
use crate::maintenance::verify;
use crate::progress::Progress;
use crate::storage::power_cut::{Arrived, Recorder};
use crate::storage::{Failure, MemStorage, Storage};
use crate::store::config::Config;
use crate::testing::{night, noise, open_options, put, read_back, small_params};

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
    let options = OpenOptions { storage: Some(Arc::new(storage.clone())), ..open_options() };
    Store::open(dir, &options).map(Arc::new)
}

/// A store with nights of two images, full records and deltas; one night was removed.
fn prepared(dir: &Path) -> (MemStorage, Expected) {
    let storage = new_storage();
    let store = open_on(dir, &storage).unwrap();
    let mut expected = Expected::new();
    for (image, day) in [("web01", 1), ("web01", 2), ("web02", 1), ("web01", 3)] {
        let mut bytes = noise(100_000, image.len() as u64 + u64::from(image.as_bytes()[4]));
        bytes[..day as usize * 3000].fill(day as u8 ^ 0x55);
        put(&store, night(image, day), &bytes);
        expected.insert(night(image, day), bytes);
    }
    let removed = night("web01", 1);
    store.catalog().remove(&removed).unwrap();
    expected.remove(&removed);
    (storage, expected)
}

fn copy(storage: &MemStorage) -> MemStorage {
    Recorder::new(storage, |_| ()).unwrap().recording().power_cut(0, Arrived::EVERYTHING)
}

fn assert_all_there(dir: &Path, storage: &MemStorage, expected: &Expected, context: &str) {
    let store = open_on(dir, storage).unwrap_or_else(|error| panic!("{context}: {error}"));
    for (name, bytes) in expected {
        let snapshot = store.catalog().read(name).unwrap();
        let found = read_back(&*store, snapshot.entry()).unwrap_or_else(|error| panic!("{context}: {name}: {error}"));
        assert!(found == *bytes, "{context}: {name}");
    }
    gc::collect(&store, false, 1, &Progress::default()).unwrap_or_else(|error| panic!("{context}: {error}"));
}

/// Makes calls fail, this many at a time and every one in turn, while a store is opened, perhaps without an index, and
/// collected.
fn at_every_call(calls: u64, has_index: bool, failure: Failure) {
    let prepared_dir = tempfile::tempdir().unwrap();
    let (prepared, expected) = prepared(prepared_dir.path());
    for nth in (1..).step_by(calls as usize) {
        let context = format!("{failure:?} of {calls} calls from {nth} on, index: {has_index}");
        let dir = tempfile::tempdir().unwrap();
        let storage = copy(&prepared);
        if has_index {
            drop(open_on(dir.path(), &storage).unwrap());
        }
        let first = storage.accesses() + nth;
        storage.fail_accesses(first..=first + calls - 1, failure);
        if let Ok(store) = open_on(dir.path(), &storage) {
            // It may fail to read something, but must not treat it as garbage.
            let _ = gc::collect(&store, false, 1, &Progress::default());
        }
        let was_hit = storage.accesses() >= first;
        storage.heal();
        assert_all_there(dir.path(), &storage, &expected, &context);
        if !was_hit {
            break;
        }
    }
}

#[test]
fn what_can_not_be_read_for_a_moment_is_not_taken_for_lost() {
    at_every_call(2, false, Failure::Errno(libc::EIO));
    at_every_call(3, true, Failure::Errno(libc::EIO));
    at_every_call(4, false, Failure::ShortRead);
}

#[test]
fn an_index_that_is_a_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, expected) = prepared(dir.path());
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    fs::write(dir.path().join("index"), "").unwrap();
    assert_all_there(dir.path(), &storage, &expected, "a file");
}

#[test]
fn what_a_collection_could_not_unlink_the_next_does_before_it_forgets_what_was_removed() {
    let prepared_dir = tempfile::tempdir().unwrap();
    let (prepared, expected) = prepared(prepared_dir.path());
    for nth in 1.. {
        let storage = copy(&prepared);
        let dir = tempfile::tempdir().unwrap();
        let store = open_on(dir.path(), &storage).unwrap();
        let first = storage.accesses() + nth;
        storage.fail_accesses(first..=u64::MAX, Failure::Errno(libc::EMFILE));
        let failed = gc::collect(&store, false, 1, &Progress::default()).is_err();
        storage.heal();
        gc::collect(&store, false, 1, &Progress::default()).unwrap_or_else(|error| panic!("call {nth}: {error}"));
        drop(store);
        let storage = storage.power_cut();
        let store = open_on(dir.path(), &storage).unwrap();
        let found = verify::verify(&store, &[], 1, &Progress::default()).unwrap();
        assert!(found.is_sound(), "call {nth}: {found:?}");
        drop(store);
        assert_all_there(dir.path(), &storage, &expected, &format!("call {nth}"));
        if !failed {
            assert!(nth > 20, "only {nth} calls were tried");
            return;
        }
    }
}
