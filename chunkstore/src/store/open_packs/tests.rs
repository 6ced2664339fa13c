//! Packs between adoption by the index and the end of sealing, and failures of sealing.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::format::{ChunkId, Codec, Kind, Record};
use crate::maintenance::gc;
use crate::progress::Progress;
use crate::storage::{AppendFile, Listing, MemStorage, ReadFile, Storage};
use crate::store::crash_tests::new_storage;
use crate::store::{OpenOptions, Store};
use crate::testing::{init, open, open_options};

fn chunk(bytes: &[u8]) -> Record {
    Record::new(Kind::Chunk, ChunkId::of(bytes).into(), bytes.len(), Codec::Raw, bytes.to_vec(), None)
}

/// A storage that panics when a pack is renamed to its final name.
struct Panicking {
    memory: MemStorage,
    panics: AtomicBool,
}

impl Storage for Panicking {
    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>> {
        self.memory.create(path)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>> {
        self.memory.open(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        assert!(!self.panics.load(Ordering::Relaxed), "as asked for");
        self.memory.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.memory.remove(path)
    }

    fn list(&self, dir: &str) -> io::Result<Listing> {
        self.memory.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.memory.create_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.memory.sync_dir(dir)
    }
}

fn open_panicking(dir: &Path) -> (Arc<Panicking>, Arc<Store>) {
    let storage = Arc::new(Panicking { memory: new_storage(), panics: AtomicBool::new(false) });
    let options = OpenOptions { storage: Some(Arc::clone(&storage) as Arc<dyn Storage>), ..open_options() };
    (storage, Arc::new(Store::open(dir, &options).unwrap()))
}

/// The result of `work`; fails if `work` does not end.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(Duration::from_mins(1)).expect("it ends")
}

/// Makes the sealing of a pack fail in which two sessions have pins, and checks that only these fail.
fn fails_those_who_count_on_it(store: &Arc<Store>, expected: &str, heal: impl FnOnce()) {
    let (a, b, idle) = (store.session(None).unwrap(), store.session(None).unwrap(), store.session(None).unwrap());
    a.put(vec![chunk(b"1")]).unwrap();
    b.put(vec![chunk(b"1")]).unwrap();
    let ended = ends(move || [a.flush(), b.flush()]);
    for error in ended.map(Result::unwrap_err) {
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(expected), "{error}");
    }
    assert!(store.open_packs.sealing().is_empty());
    heal();
    idle.put(vec![chunk(b"1")]).unwrap();
    ends(move || idle.flush()).unwrap();
}

#[test]
fn a_panic_while_a_pack_is_sealed_fails_those_who_count_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, store) = open_panicking(dir.path());
    storage.panics.store(true, Ordering::Relaxed);
    fails_those_who_count_on_it(&store, "its thread panicked", || storage.panics.store(false, Ordering::Relaxed));
}

#[test]
fn a_pack_for_which_no_thread_can_be_started_fails_those_who_count_on_it() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let spawn = std::mem::replace(&mut store.open_packs.lock().spawn, |_| Err(io::ErrorKind::WouldBlock.into()));
    fails_those_who_count_on_it(&store, "starting a thread to seal", || store.open_packs.lock().spawn = spawn);
    let parts = store.storage().list("packs").unwrap().files;
    assert!(!parts.concat().contains(".part"), "{parts:?}");
}

#[test]
fn a_pack_whose_records_are_pending_still_is_not_collected() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let session = store.session(None).unwrap();
    session.put(vec![chunk(b"garbage")]).unwrap();
    session.flush().unwrap();
    drop(session);
    let number = store.packs().rows()[0].id.number;
    // As between the pack's adoption and the end of its sealing.
    store.open_packs.lock().sealing.insert(number);
    let collect = || gc::collect(&store, false, 1, &Progress::default()).unwrap().removed_packs;
    assert_eq!(collect(), 0);
    store.open_packs.lock().sealing.remove(&number);
    assert_eq!(collect(), 1);
}
