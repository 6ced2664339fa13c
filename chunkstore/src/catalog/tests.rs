//! The catalog on storage that fails, loses power and is tampered with.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use super::*;
use crate::format::NodeId;
use crate::storage::MemStorage;
use crate::storage::power_cut::{Arrived, Recorder};

pub(crate) fn name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// The entry of the format's worked example, under this name.
pub(crate) fn entry(of: &str) -> Entry {
    let SnapshotName { image, time } = name(of);
    let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Entry {
        image,
        time,
        root: Some(NodeId::from_bytes(std::array::from_fn(|n| n as u8))),
        virtual_bytes: 8 << 30,
        labels: text(&[("os", "debian12"), ("app", "mysql")]),
        group: Some("web".to_owned()),
        origin: "00112233445566778899aabbccddeeff".to_owned(),
        created: "2026-11-20T02:00:07Z".parse().unwrap(),
        attachments: text(&[("domain.xml", "<domain/>\n")]),
        extra: Extra::default(),
    }
}

fn snapshot(of: &str) -> Snapshot {
    Snapshot::create(entry(of), State::default()).unwrap()
}

fn held(of: &str) -> Snapshot {
    let mut held = snapshot(of);
    held.state.hold("clone a").unwrap();
    held
}

const A: &str = "db01@20261119T020000Z";
const B: &str = "web01@20261120T020000Z";
const C: &str = "web01@20261121T020000Z";

fn filled() -> (MemStorage, Catalog) {
    let storage = MemStorage::new();
    let catalog = Catalog::create(Arc::new(storage.clone())).unwrap();
    for name in [C, A, B] {
        catalog.publish(&snapshot(name)).unwrap();
    }
    (storage, catalog)
}

fn reopened(storage: &MemStorage) -> Catalog {
    Catalog::open(Arc::new(storage.clone())).unwrap()
}

/// Each snapshot's name, with `!` if it can't be read.
fn listed(catalog: &Catalog) -> Vec<String> {
    let line = |listed: Listed| format!("{}{}", listed.name, if listed.snapshot.is_ok() { "" } else { "!" });
    catalog.list(None).unwrap().into_iter().map(line).collect()
}

fn put(storage: &MemStorage, path: &str) {
    storage.create(path).unwrap().append(b"x").unwrap();
}

#[test]
fn what_is_published_is_listed_and_read() {
    let (storage, catalog) = filled();
    let file_bytes = storage.open("catalog/web01/20261120T020000Z.snap").unwrap().len_bytes().unwrap();
    assert_eq!(snapshot(B).encode().len() as u64, file_bytes);
    assert_eq!(listed(&catalog), [A, B, C]);
    assert_eq!(catalog.images().unwrap().iter().map(ImageName::as_ref).collect::<Vec<_>>(), ["db01", "web01"]);
    assert_eq!(catalog.list(Some(&"web01".parse().unwrap())).unwrap().len(), 2);
    assert!(catalog.list(Some(&"web02".parse().unwrap())).unwrap().is_empty());
    assert_eq!(catalog.read(&name(B)).unwrap(), snapshot(B));
    assert!(matches!(catalog.read(&name("web01@20261122T020000Z")), Err(Error::NotFound { .. })));
    assert_eq!(catalog.times(&"web01".parse().unwrap()).unwrap(), [name(B).time, name(C).time]);
    assert!(catalog.check().is_empty() && catalog.strangers().unwrap().is_empty());
}

#[test]
fn a_local_directory_holds_a_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(crate::storage::LocalDir::new(dir.path()));
    assert!(matches!(Catalog::open(Arc::clone(&storage)), Err(Error::Damaged { .. })));
    let catalog = Catalog::create(storage).unwrap();
    catalog.publish(&snapshot(B)).unwrap();
    catalog.rewrite(&held(B)).unwrap();
    assert_eq!(catalog.read(&name(B)).unwrap(), held(B));
    catalog.rewrite(&snapshot(B)).unwrap();
    catalog.remove(&name(B)).unwrap();
    assert_eq!(listed(&catalog), [""; 0]);
}

#[test]
fn selectors_find_or_say_what_there_is() {
    let (_, catalog) = filled();
    let resolve = |selector: &str| catalog.resolve(&selector.parse().unwrap()).map(|name| name.to_string());
    assert_eq!(resolve("web01").unwrap(), C);
    assert_eq!(resolve("web01@2026-11-20").unwrap(), B);
    assert_eq!(resolve("web02").unwrap_err().to_string(), "image web02 (the store has db01, web01) not found");
    assert!(matches!(resolve("web01@2026"), Err(Error::Invalid { .. })));
    let empty = Catalog::create(Arc::new(MemStorage::new())).unwrap();
    let error = empty.resolve(&"web01".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "image web01 (the store has none yet) not found");
}

#[test]
fn a_name_is_given_once() {
    let (_, catalog) = filled();
    let mut other = entry(B);
    other.root = None;
    let other = Snapshot::create(other, State::default()).unwrap();
    for again in [snapshot(B), other.clone()] {
        let error = catalog.publish(&again).unwrap_err();
        assert!(matches!(&error, Error::Refused { what } if what.contains(B)), "{error}");
    }
    assert!(matches!(catalog.rewrite(&other), Err(Error::Refused { .. })));
    assert!(matches!(catalog.rewrite(&snapshot("web02@20261120T020000Z")), Err(Error::NotFound { .. })));
    assert_eq!(catalog.read(&name(B)).unwrap(), snapshot(B));
}

#[test]
fn what_is_too_large_is_refused_before_it_is_written() {
    let (storage, catalog) = filled();
    let calls = storage.calls();
    let mut large = snapshot(B);
    large.state.extra.insert("x".to_owned(), "y".repeat(CATALOG_FILE_BYTES_MAX as usize).into());
    assert!(matches!(catalog.rewrite(&large), Err(Error::Invalid { .. })));
    assert_eq!(storage.calls(), calls);
}

#[test]
fn a_held_snapshot_stays() {
    let (_, catalog) = filled();
    catalog.rewrite(&held(B)).unwrap();
    let error = catalog.remove(&name(B)).unwrap_err();
    assert!(matches!(&error, Error::Refused { what } if what.contains(B) && what.contains("clone a")), "{error}");
    let mut released = catalog.read(&name(B)).unwrap();
    assert!(released.state.release("clone a"));
    catalog.rewrite(&released).unwrap();
    catalog.remove(&name(B)).unwrap();
    assert_eq!(listed(&catalog), [A, C]);
}

#[test]
fn a_removed_snapshot_leaves_a_tombstone_until_it_is_cleared_or_published_again() {
    let (_, catalog) = filled();
    catalog.remove(&name(B)).unwrap();
    assert!(matches!(catalog.remove(&name(B)), Err(Error::NotFound { .. })));
    let [tombstone] = &catalog.tombstones().unwrap()[..] else { panic!("one tombstone") };
    assert!(tombstone.is_of(&snapshot(B)) && !tombstone.is_of(&snapshot(C)));
    assert!(snapshot(B).entry_id().to_string().starts_with(&tombstone.entry_prefix));
    assert!(catalog.strangers().unwrap().is_empty());

    let mut other = entry(B);
    other.root = None;
    catalog.publish(&Snapshot::create(other, State::default()).unwrap()).unwrap();
    catalog.remove(&name(B)).unwrap();
    assert_eq!(catalog.tombstones().unwrap().len(), 2);
    catalog.publish(&snapshot(B)).unwrap();
    let [other] = &catalog.tombstones().unwrap()[..] else { panic!("the other one's tombstone") };
    assert!(!other.is_of(&snapshot(B)));
    catalog.clear_tombstone(other, || Ok(false)).unwrap();
    catalog.clear_tombstone(other, || Ok(false)).unwrap();
    assert!(catalog.tombstones().unwrap().is_empty());
    assert_eq!(listed(&catalog), [A, B, C]);
}

#[test]
fn an_image_without_snapshots_is_not_listed() {
    let (_, catalog) = filled();
    catalog.remove(&name(A)).unwrap();
    assert_eq!(catalog.images().unwrap(), ["web01".parse().unwrap()]);
    catalog.publish(&snapshot(A)).unwrap();
    assert_eq!(catalog.images().unwrap().len(), 2);
}

#[test]
fn damage_is_named_and_hides_nothing_else() {
    let (storage, catalog) = filled();
    let [a, b, c] = [A, B, C].map(|of| snapshot(of).encode());
    let path = "catalog/web01/20261120T020000Z.snap";
    let truncated = &b[..b.len() - 1];
    let mut flipped = b.clone();
    flipped[40] ^= 1;
    let huge = vec![b'x'; CATALOG_FILE_BYTES_MAX as usize + 1];
    for bytes in [&a[..], &c, truncated, &flipped, &huge, b""] {
        storage.overwrite(path, bytes).unwrap();
        assert_eq!(listed(&catalog), [A, &format!("{B}!"), C]);
        let [error] = &catalog.check()[..] else { panic!("one problem") };
        assert!(matches!(error, Error::Damaged { what, .. } if what.contains(B)), "{error}");
        assert!(matches!(catalog.remove(&name(B)), Err(Error::Damaged { .. })));
        assert!(matches!(catalog.publish(&snapshot(B)), Err(Error::Refused { .. })));
    }
    catalog.rewrite(&snapshot(B)).unwrap();
    assert!(catalog.check().is_empty());
}

#[test]
fn strangers_are_reported_and_left_alone() {
    let (storage, catalog) = filled();
    let files = [
        "catalog/README",
        "catalog/web01/20261120T020000Z",
        "catalog/web01/20261120T020000Z.0123456789ABCDEF.removed",
        "catalog/web01/20261120T020000Z.012345.removed",
        "catalog/web01/20261120T020000Z.snap~",
        "catalog/web01/20261320T020000Z.snap",
        "catalog/web01/notes.tmp",
    ];
    for file in files {
        put(&storage, file);
    }
    storage.create_dir("catalog/.hidden").unwrap();
    storage.create_dir("catalog/web01/dir.snap").unwrap();
    put(&storage, "catalog/web01/20261122T020000Z.snap.tmp");
    put(&storage, "catalog/web01/20261122T020000Z.0123456789abcdef.removed.tmp");
    assert_eq!(listed(&catalog), [A, B, C]);
    let mut expected: Vec<_> = files.into_iter().chain(["catalog/.hidden", "catalog/web01/dir.snap"]).collect();
    expected.sort_unstable();
    for left_aside in [2, 0] {
        let mut strangers = catalog.strangers().unwrap();
        strangers.sort_unstable();
        assert_eq!(strangers, expected);
        assert_eq!(catalog.clean().unwrap(), left_aside);
    }
    assert!(catalog.tombstones().unwrap().is_empty());
}

/// Runs a change with every call failing from the n-th on, for each n, and judges what is left in memory (a killed
/// process) and on the disk (a power cut). `change` ends without an error once n is past its last call.
fn at_every_failure(change: impl Fn(&Catalog) -> Result<()>, judge: impl Fn(&Catalog, bool, u64)) {
    for nth in 1.. {
        let (storage, catalog) = filled();
        catalog.rewrite(&snapshot(A)).unwrap();
        storage.fail_from(storage.calls() + nth, ErrorKind::Other);
        let done = change(&catalog).is_ok();
        let after_power_cut = storage.power_cut();
        storage.heal();
        for survivor in [storage, after_power_cut] {
            let catalog = reopened(&survivor);
            catalog.clean().unwrap();
            assert!(catalog.check().is_empty() && catalog.strangers().unwrap().is_empty(), "call {nth}");
            judge(&catalog, done, nth);
        }
        if done {
            return;
        }
    }
}

#[test]
fn a_failed_publish_leaves_all_or_nothing() {
    for new in ["web01@20261122T020000Z", "new@20261122T020000Z"] {
        at_every_failure(
            |catalog| catalog.publish(&snapshot(new)).map(drop),
            |catalog, done, nth| {
                let read = catalog.read(&name(new));
                assert!(read.is_ok() || !done, "call {nth}: published, but not there");
                match read {
                    Ok(there) => assert_eq!(there, snapshot(new)),
                    Err(_) => drop(catalog.publish(&snapshot(new)).unwrap()),
                }
                assert_eq!(catalog.list(None).unwrap().len(), 4);
            },
        );
    }
}

#[test]
fn a_power_cut_while_publishing_leaves_the_snapshot_or_its_tombstone() {
    const NEW: &str = "web01@20261122T020000Z";
    let (memory, _) = filled();
    let recorder = Recorder::new(&memory, |_| ()).unwrap();
    let catalog = Catalog::open(Arc::new(recorder.clone())).unwrap();
    let announced = catalog.announce(&snapshot(NEW)).unwrap();
    let first = recorder.changes();
    catalog.publish(&snapshot(NEW)).unwrap();
    drop(announced);
    let recording = recorder.recording();
    for (changes, seed) in (first..=recording.changes()).flat_map(|changes| (0..40).map(move |seed| (changes, seed))) {
        let arrived = Arrived { names_percent: 50, sectors_percent: 50, seed };
        let left = reopened(&recording.power_cut(changes, arrived));
        let (found, tombstones) = (left.read(&name(NEW)).ok(), left.tombstones().unwrap());
        assert_eq!(usize::from(found.is_some()) + tombstones.len(), 1, "after {changes} changes, {arrived:?}");
        assert!(found.is_none_or(|found| found == snapshot(NEW)), "after {changes} changes, {arrived:?}");
    }
}

#[test]
fn a_failed_rewrite_leaves_the_old_or_the_new_state() {
    at_every_failure(
        |catalog| catalog.rewrite(&held(B)),
        |catalog, done, nth| {
            let there = catalog.read(&name(B)).unwrap();
            assert!(there == held(B) || (!done && there == snapshot(B)), "call {nth}");
        },
    );
}

#[test]
fn a_failed_removal_leaves_the_snapshot_or_its_tombstone() {
    at_every_failure(
        |catalog| catalog.remove(&name(B)),
        |catalog, done, nth| {
            let is_there = catalog.read(&name(B)).is_ok();
            assert!(!(is_there && done), "call {nth}: removed, but there");
            assert_eq!(catalog.tombstones().unwrap().len(), usize::from(!is_there), "call {nth}");
        },
    );
}

#[test]
fn a_sync_makes_an_interrupted_removal_permanent() {
    let (storage, catalog) = filled();
    storage.fail_at(storage.calls() + 2, ErrorKind::Other);
    assert!(catalog.remove(&name(B)).is_err());
    assert_eq!(listed(&reopened(&storage.power_cut())), [A, B, C]);
    catalog.sync().unwrap();
    assert_eq!(listed(&reopened(&storage.power_cut())), [A, C]);
}

#[test]
fn a_full_disk_is_named() {
    let (storage, catalog) = filled();
    storage.fail_at(storage.calls() + 3, ErrorKind::StorageFull);
    assert!(matches!(catalog.rewrite(&held(B)), Err(Error::OutOfSpace { .. })));
    assert_eq!(catalog.read(&name(B)).unwrap(), snapshot(B));
    assert_eq!(catalog.clean().unwrap(), 0);
}

#[test]
fn of_two_that_publish_one_name_one_wins() {
    let (_, catalog) = filled();
    let mut other = entry("web01@20261122T020000Z");
    let mine = Snapshot::create(other.clone(), State::default()).unwrap();
    other.root = None;
    let other = Snapshot::create(other, State::default()).unwrap();
    let announced = [catalog.announce(&mine).unwrap(), catalog.announce(&other).unwrap()];
    let clear_all = || {
        for tombstone in catalog.tombstones().unwrap() {
            catalog.clear_tombstone(&tombstone, || Ok(false)).unwrap();
        }
    };
    clear_all();
    assert_eq!(catalog.tombstones().unwrap().len(), 2, "they are being published");
    catalog.publish(&mine).unwrap();
    assert!(matches!(catalog.publish(&other), Err(Error::Refused { .. })));
    assert!(matches!(catalog.announce(&other), Err(Error::Refused { .. })));
    drop(announced);
    clear_all();
    assert_eq!(catalog.tombstones().unwrap(), []);
    assert_eq!(catalog.read(&mine.name()).unwrap(), mine);
}

#[test]
fn of_many_changes_of_a_state_none_is_lost() {
    let (_, catalog) = filled();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let catalog = &catalog;
            scope.spawn(move || {
                catalog.update_state(&name(B), |state| state.hold(&format!("reason {number}"))).unwrap()
            });
        }
    });
    assert_eq!(catalog.read(&name(B)).unwrap().state.holds.len(), 8);
    let failed = catalog.update_state(&name(B), |state| {
        state.holds.clear();
        Err::<(), _>(Error::Interrupted)
    });
    assert!(matches!(failed, Err(Error::Interrupted)));
    assert_eq!(catalog.read(&name(B)).unwrap().state.holds.len(), 8);
}
