//! Every call to the storage fails in turn, once or until it is healed: what is under way ends with an error that names
//! what failed, or works; then it works when it is repeated, in the same open store or another, and the store is sound.

use std::io::ErrorKind;
use std::sync::Arc;

use chunkstore::Error;
use chunkstore::storage::power_cut::{Arrived, Recorder};
use chunkstore::storage::{Failure, MemStorage};
use tests::images::Rng;
use tests::scripted::{Act, Expected, Far, IndexFiles, Worked, index_dir, new_storage, night};
use tests::torture::Torture;

use super::try_faults;

/// Faults that are tried in the short form.
const SHORT_FAULTS: u64 = 500;

const FAILURES: [Failure; 6] = [
    Failure::Errno(libc::EIO),
    Failure::Errno(libc::ENOSPC),
    Failure::Errno(libc::EDQUOT),
    Failure::Errno(libc::EMFILE),
    Failure::Kind(ErrorKind::Other),
    Failure::ShortRead,
];

/// An act on a store, as it is before.
struct Scene {
    act: Act,
    storage: MemStorage,
    index: IndexFiles,
    before: Expected,
    /// Calls that the act makes.
    accesses: u64,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    scene: usize,
    nth: u64,
    failure: Failure,
    /// Whether all later calls fail, too.
    lasts: bool,
    /// Whether the store is opened anew before the act is repeated.
    reopens: bool,
}

impl Scene {
    fn new(prepared: &[Act], act: Act, far: &Far) -> Self {
        let storage = new_storage();
        let mut worked = Worked::open(index_dir(), Arc::new(storage.clone()), 1).unwrap();
        let mut before = Expected::default();
        for act in prepared {
            let effects = act.effects(&before.must);
            worked.run(act, far).unwrap();
            before.settle(&effects);
        }
        let index = IndexFiles::of(worked.close().path());
        let mut scene = Self { act, storage, index, before, accesses: 0 };
        let (mut worked, storage) = scene.set();
        let opened = storage.accesses();
        worked.run(&scene.act, far).unwrap();
        scene.accesses = storage.accesses() - opened;
        scene
    }

    /// A copy of the store, open.
    fn set(&self) -> (Worked, MemStorage) {
        let storage = Recorder::new(&self.storage, |_| ()).unwrap().recording().power_cut(0, Arrived::EVERYTHING);
        let dir = index_dir();
        self.index.put(dir.path());
        (Worked::open(dir, Arc::new(storage.clone()), 2).unwrap(), storage)
    }

    /// Returns whether the act failed.
    fn try_with(&self, fault: &Fault, far: &Far) -> bool {
        let Self { act, .. } = self;
        let (mut worked, storage) = self.set();
        let first = storage.accesses() + fault.nth;
        storage.fail_accesses(first..=if fault.lasts { u64::MAX } else { first }, fault.failure);
        let result = worked.run(act, far);
        storage.heal();
        let failed = result.is_err();
        if let Err(error) = result {
            assert!(names_something(&error), "{act:?}, {fault:?}: {error}");
        }
        let effects = act.effects(&self.before.must);
        if fault.reopens {
            worked.run(&Act::Reopen, far).unwrap_or_else(|error| panic!("{act:?}, {fault:?}: reopening: {error}"));
        }
        if failed || matches!(act, Act::Verify) {
            match worked.run(act, far) {
                Ok(()) => {}
                // The snapshot was seen already, or was gone, and only the last sync had failed.
                Err(Error::Refused { what }) if what.contains(" already") => {}
                Err(Error::NotFound { .. }) if matches!(act, Act::Remove(_)) => {}
                Err(error) => panic!("{act:?}, {fault:?}: repeated: {error}"),
            }
        }
        let mut expected = self.before.clone();
        expected.settle(&effects);
        let dir = worked.close();
        expected.check(dir.path(), &storage, fault.nth, &|| format!("{act:?}, {fault:?}, failed: {failed}"));
        failed
    }
}

/// Whether an error says which part of the store it is about.
fn names_something(error: &Error) -> bool {
    let said = error.to_string();
    let parts = ["pack", "catalog", "config.toml", "damaged", "boot", "snapshot", "manifest", "image", "the store"];
    parts.iter().any(|part| said.contains(part))
}

fn scenes(far: &Far) -> Vec<Scene> {
    let a = |day| night("a", day);
    let nights: Vec<Act> = (0..3).map(|day| Act::Ingest(a(day))).collect();
    let others: Vec<Act> = ["b", "c", "d", "e"].map(|image| Act::Ingest(night(image, 0))).to_vec();
    let many = [nights.clone(), others].concat();
    let without_first = [many.clone(), vec![Act::Remove(a(1)), Act::Remove(night("c", 0))]].concat();
    [
        (vec![], Act::Ingest(a(0))),
        (nights.clone(), Act::Ingest(a(3))),
        (nights.clone(), Act::Push("far0", 2)),
        (nights.clone(), Act::Hydrate("far1")),
        (nights.clone(), Act::PushOverPart("far0")),
        (nights.clone(), Act::Read(a(2))),
        (without_first.clone(), Act::Verify),
        (nights.clone(), Act::Remove(a(1))),
        (nights.clone(), Act::Prune("a")),
        (many, Act::Collect),
        (without_first.clone(), Act::Collect),
        (without_first.clone(), Act::Reindex),
        (without_first, Act::Reopen),
        (nights.clone(), Act::Hold(a(0))),
        (nights, Act::BootOrder(a(0))),
    ]
    .into_iter()
    .map(|(prepared, act)| Scene::new(&prepared, act, far))
    .collect()
}

fn all_faults(scenes: &[Scene], rng: &mut Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (scene, accesses) in scenes.iter().map(|scene| scene.accesses).enumerate() {
        for (nth, failure) in (1..=accesses).flat_map(|nth| FAILURES.map(|failure| (nth, failure))) {
            let fault = |lasts| Fault { scene, nth, failure, lasts, reopens: rng.below(2) == 0 };
            faults.extend([false, true].map(fault));
        }
    }
    faults
}

#[test]
fn after_any_failed_call_of_the_storage_the_store_is_sound_and_work_goes_on() {
    let torture = Torture::begin("storage faults");
    let far = Far::default();
    let scenes = scenes(&far);
    let faults = all_faults(&scenes, &mut torture.rng(1));
    try_faults(torture, SHORT_FAULTS, 25, faults, |fault| scenes[fault.scene].try_with(fault, &far));
}
