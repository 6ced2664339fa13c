//! Repairs of damaged stores: data with a second copy comes back, intact data stays, lost data is named, and an
//! interrupted repair loses nothing.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::*;
use crate::catalog::Snapshot;
use crate::error::Error;
use crate::maintenance::gc;
use crate::pack::Class;
use crate::storage::{MemStorage, Storage, whole};
use crate::testing::{init, night, noise, open, open_options, put, read_back};

const WEB: &str = "web01";

fn first_night() -> Vec<u8> {
    noise(300_000, 1)
}

/// Its changed chunks are deltas against those of the first.
fn second_night() -> Vec<u8> {
    let mut image = first_night();
    (0..300_000).step_by(40_000).for_each(|at| image[at..at + 64].copy_from_slice(&noise(64, at as u64)));
    image
}

/// A store with two nights, and an image that shares nothing with them.
struct Site {
    dir: tempfile::TempDir,
    snapshots: Vec<(Snapshot, Vec<u8>)>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        init(dir.path());
        let store = open(dir.path());
        let images =
            [(night(WEB, 0), first_night()), (night(WEB, 1), second_night()), (night("db", 0), noise(90_000, 7))];
        let snapshots = images.into_iter().map(|(name, image)| (put(&store, name, &image), image)).collect();
        Self { dir, snapshots }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn harm(&self, path: &str, harm: impl FnOnce(&mut Vec<u8>)) {
        let path = self.dir().join(path);
        let mut bytes = fs::read(&path).unwrap();
        harm(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// The readable snapshots; each is right or an error.
    fn readable(&self, store: &Arc<Store>) -> Vec<bool> {
        let read = |(snapshot, image): &(Snapshot, Vec<u8>)| {
            let entry = match store.catalog().read(&snapshot.name()) {
                Ok(there) => there.entry().clone(),
                Err(_) => return false,
            };
            let found = read_back(&**store, &entry);
            found.is_ok_and(|found| {
                assert!(found == *image, "wrong bytes of {}", snapshot.name());
                true
            })
        };
        self.snapshots.iter().map(read).collect()
    }

    fn catalog_file(&self, at: usize) -> String {
        let name = self.snapshots[at].0.name();
        format!("catalog/{}/{}.snap", name.image, name.time)
    }

    fn packs(&self, class: Class) -> Vec<String> {
        let rows = open(self.dir()).packs().rows();
        rows.iter().filter(|row| row.class == class).map(|row| crate::pack::path(row.id)).collect()
    }

    fn quarantined(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.dir().join("quarantine")) else { return Vec::new() };
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn repaired(store: &Arc<Store>) -> RepairReport {
    repair(store, false, 2, &Progress::default()).unwrap()
}

/// The problems are gone, and gc works without keeping anything.
fn assert_mended(store: &Arc<Store>, report: &RepairReport) {
    let others = |problem: &&String| !problem.contains("its base");
    assert_eq!(report.verify.problems.iter().find(others), None, "a delta that waits for its base is all that is left");
    if report.verify.damage.is_empty() {
        let collected = gc::collect(store, false, 2, &Progress::default()).unwrap();
        assert_eq!((collected.kept_damaged, collected.missing_records), (Vec::new(), 0));
    }
    let again = repaired(store);
    assert_eq!((again.mended, again.quarantined), (Vec::new(), Vec::new()), "repeating it is harmless");
}

#[test]
fn a_sound_store_is_left_alone() {
    let site = Site::new();
    let store = open(site.dir());
    let report = repaired(&store);
    assert!(report.is_sound() && report.mended.is_empty() && site.quarantined().is_empty(), "{report:?}");
}

#[test]
fn what_is_sound_in_a_damaged_pack_is_kept_and_the_pack_put_aside() {
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 6] = [
        ("flipped in the middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }),
        ("without header", |bytes| bytes[..64].fill(0)),
        ("without footer", |bytes| bytes.truncate(bytes.len() - 40)),
        ("with something behind it", |bytes| bytes.extend([1; 100])),
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", |bytes| bytes.clear()),
    ];
    for class in Class::ALL {
        for (what, harm) in harms {
            for loses_index in [false, true] {
                let site = Site::new();
                let pack = site.packs(class).swap_remove(0);
                site.harm(&pack, harm);
                if loses_index {
                    fs::remove_dir_all(site.dir().join("index")).unwrap();
                }
                let case = format!("{class:?} {what}, index lost: {loses_index}");
                let store = open(site.dir());
                let before = site.readable(&store);
                let report = repaired(&store);
                assert_eq!(site.readable(&store), before, "{case}");
                assert_eq!(report.verify.damage.is_empty(), before.iter().all(|is_whole| *is_whole), "{case}");
                assert!(!site.dir().join(&pack).exists(), "{case}");
                assert_eq!(site.quarantined(), [pack.replace('/', ".")], "{case}");
                assert_mended(&store, &report);
                for (nth, bytes) in [first_night(), second_night(), noise(90_000, 7)].iter().enumerate() {
                    put(&store, night(if nth < 2 { WEB } else { "db" }, 40 + nth as u32), bytes);
                }
                assert_eq!(site.readable(&store), [true; 3], "{case}: a new backup heals");
                assert!(repaired(&store).is_sound(), "{case}");
            }
        }
    }
}

#[test]
fn swapped_copied_and_misplaced_packs_lose_nothing() {
    let site = Site::new();
    let [a, b] = [Class::Data, Class::Meta].map(|class| site.dir().join(site.packs(class).swap_remove(0)));
    fs::rename(&a, site.dir().join("aside")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(site.dir().join("aside"), &b).unwrap();
    fs::copy(&a, site.dir().join("packs/00000063-00000001.pack")).unwrap();
    fs::write(site.dir().join("packs/notes.txt"), "mine").unwrap();
    let store = open(site.dir());
    let report = repaired(&store);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(site.readable(&store), [true; 3]);
    assert_eq!(fs::read(site.dir().join("quarantine/packs.notes.txt")).unwrap(), b"mine");
    assert_mended(&store, &report);
}

#[test]
fn a_missing_pack_is_told_once_and_its_loss_remembered() {
    let site = Site::new();
    fs::remove_file(site.dir().join(site.packs(Class::DataDelta).swap_remove(0))).unwrap();
    let store = open(site.dir());
    let report = repaired(&store);
    assert!(!report.is_sound() && report.verify.problems.is_empty(), "{report:?}");
    assert_eq!(site.readable(&store), [true, false, true]);
    drop(store);
    let store = open(site.dir());
    assert!(!store.session(None).unwrap().trusts_parent());
    put(&store, night(WEB, 2), &second_night());
    assert_eq!(site.readable(&store), [true; 3]);
    assert!(repaired(&store).is_sound());
}

#[test]
fn a_lost_or_damaged_catalog_file_is_restored_and_held() {
    type Harm = fn(&Path);
    let harms: [Harm; 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, [0; 500]).unwrap(),
        |path| fs::write(path, vec![b'x'; 2 << 20]).unwrap(),
    ];
    for harm in harms {
        let site = Site::new();
        harm(&site.dir().join(site.catalog_file(1)));
        let store = open(site.dir());
        let is_lost = !site.dir().join(site.catalog_file(1)).exists();
        if !is_lost {
            assert!(gc::collect(&store, false, 2, &Progress::default()).is_err(), "nothing is collected before");
        }
        let told = repair(&store, true, 2, &Progress::default()).unwrap();
        assert!(!told.is_sound() && told.mended.len() == 1 && site.quarantined().is_empty(), "{told:?}");
        let report = repaired(&store);
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(site.readable(&store), [true; 3]);
        let restored = store.catalog().read(&night(WEB, 1)).unwrap();
        assert!(restored.state.holds.contains(HOLD) && !restored.state.partial);
        assert!(matches!(store.catalog().remove(&night(WEB, 1)), Err(Error::Refused { .. })));
        assert_mended(&store, &report);
    }
}

#[test]
fn an_entry_that_nothing_repeats_is_named_and_stops_gc_no_longer() {
    let site = Site::new();
    for pack in site.packs(Class::Meta) {
        site.harm(&pack, |bytes| {
            // All entries; the nodes stay.
            for at in 0..bytes.len() - 5 {
                if bytes[at..at + 5] == *b"VMR1\x03" {
                    bytes[at + 96] ^= 1;
                }
            }
        });
    }
    fs::write(site.dir().join(site.catalog_file(1)), "x").unwrap();
    let store = open(site.dir());
    let report = repaired(&store);
    assert!(report.verify.is_sound() && !report.is_sound(), "{report:?}");
    assert!(report.beyond_help[0].contains(&night(WEB, 1).to_string()), "{report:?}");
    assert_eq!(site.readable(&store), [true, false, true]);
    assert_mended(&store, &report);
    // The others' entries are in a pack again.
    fs::remove_file(site.dir().join(site.catalog_file(0))).unwrap();
    assert!(repaired(&store).is_sound());
    assert_eq!(site.readable(&store), [true, false, true]);
}

#[test]
fn removed_snapshots_stay_removed_unless_their_tombstone_is_lost() {
    let site = Site::new();
    let store = open(site.dir());
    store.catalog().remove(&night(WEB, 0)).unwrap();
    assert!(repaired(&store).mended.is_empty());
    let tombstone = store.catalog().tombstones().unwrap().swap_remove(0);
    fs::remove_file(
        site.dir().join(format!("catalog/{WEB}/{}.{}.removed", tombstone.name.time, tombstone.entry_prefix)),
    )
    .unwrap();
    // Another has its name now.
    let new = put(&store, night(WEB, 0), &noise(50_000, 3));
    let report = repaired(&store);
    assert!(report.is_sound() && report.mended.len() == 1, "{report:?}");
    assert_eq!(store.catalog().read(&night(WEB, 0)).unwrap().entry_id(), new.entry_id());
    assert_mended(&store, &report);
}

/// Opens a store without its configuration, as far as possible.
fn try_open(dir: &Path) -> Result<Arc<Store>> {
    Store::open(dir, &open_options()).map(Arc::new)
}

#[test]
fn a_lost_configuration_is_put_back_from_its_copy_or_from_the_packs() {
    let now = "2026-11-20T00:00:00Z".parse().unwrap();
    let options = open_options();
    let foreign = || {
        let dir = tempfile::tempdir().unwrap();
        let other = crate::store::InitOptions { params: crate::testing::small_params(), reserve: false };
        Store::init(dir.path(), &other, [9; 16], now).unwrap();
        fs::read(dir.path().join("config.toml")).unwrap()
    };
    let edited = |site: &Site| {
        let text = fs::read_to_string(site.dir().join("config.toml")).unwrap();
        fs::write(site.dir().join("config.toml"), text.replace("zstd_level = 1", "zstd_level = 7")).unwrap();
        drop(open(site.dir()));
    };
    for (loss, level) in [("config.toml", 7), ("config.toml.copy", 7), ("both", 1)] {
        for harm in ["delete", "truncate", "another store's", "no text"] {
            let site = Site::new();
            edited(&site);
            for name in ["config.toml", "config.toml.copy"].into_iter().filter(|name| loss == "both" || *name == loss) {
                let path = site.dir().join(name);
                match harm {
                    "delete" => fs::remove_file(path).unwrap(),
                    "truncate" => fs::write(path, "[format]\n").unwrap(),
                    "no text" => fs::write(path, [0xff; 40]).unwrap(),
                    _ if loss == "both" && name == "config.toml" => fs::write(path, foreign()).unwrap(),
                    _ if loss == "both" => fs::remove_file(path).unwrap(),
                    _ => fs::write(path, foreign()).unwrap(),
                }
            }
            let case = format!("{loss}: {harm}");
            let told = look(site.dir()).unwrap();
            let opened = try_open(site.dir());
            let heals_itself = loss == "config.toml.copy" && harm != "another store's";
            let unnoticed = loss == "both" && harm == "another store's";
            assert_eq!(told.is_empty(), heals_itself, "{case}: {told:?}");
            if !heals_itself && !unnoticed {
                let message = opened.err().unwrap_or_else(|| panic!("{case}: it opened")).to_string();
                assert!(message.contains("config.toml") && message.contains("`vmstore repair`"), "{case}: {message}");
            } else {
                drop(opened);
            }
            if unnoticed {
                fs::remove_file(site.dir().join("config.toml.copy")).unwrap();
            }
            mend(site.dir(), &options, now).unwrap();
            assert_eq!(look(site.dir()).unwrap(), Vec::<String>::new(), "{case}");
            let store = open(site.dir());
            assert_eq!(store.config().defaults.zstd_level, level, "{case}");
            assert_eq!(store.config().format.store_id_bytes(), [7; 16], "{case}");
            assert!(repaired(&store).is_sound(), "{case}");
            assert_eq!(site.readable(&store), [true; 3], "{case}");
        }
    }
}

#[test]
fn a_store_without_packs_has_only_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    fs::remove_file(dir.path().join("config.toml")).unwrap();
    assert_eq!(look(dir.path()).unwrap().len(), 1);
    fs::remove_file(dir.path().join("config.toml.copy")).unwrap();
    assert!(matches!(look(dir.path()), Err(Error::Damaged { .. })));
    assert!(matches!(look(&dir.path().join("nowhere")), Err(Error::NotFound { .. })));
}

#[test]
fn a_lost_list_of_damage_or_catalog_is_made_anew() {
    let now = "2026-11-20T00:00:00Z".parse().unwrap();
    let site = Site::new();
    site.harm(&site.packs(Class::DataDelta)[0], |bytes| bytes[200] ^= 1);
    let store = open(site.dir());
    assert!(!verify::verify(&store, &[], 2, &Progress::default()).unwrap().is_sound());
    drop(store);
    site.harm(crate::store::damaged::FILE, |bytes| bytes[30] ^= 1);
    fs::remove_dir_all(site.dir().join("catalog")).unwrap();
    let message = try_open(site.dir()).err().unwrap().to_string();
    assert!(message.contains("`vmstore repair`"), "{message}");
    assert_eq!(mend(site.dir(), &open_options(), now).unwrap().len(), 2);
    let store = open(site.dir());
    let report = repaired(&store);
    assert_eq!(report.mended.len(), 4, "{report:?}");
    assert_eq!(site.readable(&store), [true, false, true]);
    assert!(report.verify.damage.iter().all(|range| range.snapshot == night(WEB, 1).to_string()), "{report:?}");
    assert_mended(&store, &report);
}

#[test]
fn after_the_index_was_rebuilt_no_parent_is_trusted_until_a_verification() {
    let site = Site::new();
    let trusts = |store: &Arc<Store>| store.session(Some(&night(WEB, 1))).unwrap().trusts_parent();
    assert!(trusts(&open(site.dir())));
    // Its chunks are in the parent's manifest, and their loss is not yet known.
    fs::remove_file(site.dir().join(site.packs(Class::Data).swap_remove(0))).unwrap();
    fs::remove_dir_all(site.dir().join("index")).unwrap();
    let store = open(site.dir());
    assert!(!trusts(&store));
    put(&store, night(WEB, 2), &second_night());
    assert!(site.readable(&store)[1], "the backup stored what was gone");
    put(&store, night(WEB, 3), &first_night());
    assert!(verify::verify(&store, &[], 2, &Progress::default()).unwrap().damage.is_empty());
    assert!(!trusts(&store), "deltas without bases are left");
    gc::collect(&store, false, 2, &Progress::default()).unwrap();
    assert!(verify::verify(&store, &[], 2, &Progress::default()).unwrap().is_sound());
    assert!(trusts(&open_again(store, site.dir())));
}

fn open_again(store: Arc<Store>, dir: &Path) -> Arc<Store> {
    drop(store);
    open(dir)
}

/// A store in memory with a damaged pack of each class, and a damaged catalog file.
fn damaged_in_memory(dir: &Path) -> MemStorage {
    let storage = crate::store::crash_tests::new_storage();
    let store = crate::store::crash_tests::open_on(dir, &storage).unwrap();
    put(&store, night(WEB, 0), &first_night());
    put(&store, night(WEB, 1), &second_night());
    put(&store, night("db", 0), &noise(90_000, 7));
    for class in Class::ALL {
        let row = store.packs().rows().into_iter().find(|row| row.class == class).unwrap();
        let path = crate::pack::path(row.id);
        let mut bytes = whole::read_whole(&storage, &path, 1 << 30).unwrap().unwrap();
        let end = bytes.len() - 10;
        bytes[end] ^= 1;
        storage.overwrite(&path, &bytes).unwrap();
    }
    storage.overwrite(&format!("catalog/db/{}.snap", night("db", 0).time), b"x").unwrap();
    storage
}

#[test]
fn a_repair_that_is_cut_short_anywhere_loses_nothing() {
    let template = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let calls = {
        let storage = damaged_in_memory(template.path());
        let before = storage.calls();
        let store = crate::store::crash_tests::open_on(template.path(), &storage).unwrap();
        assert!(repaired(&store).is_sound());
        storage.calls() - before
    };
    assert!(calls > 40, "{calls}");
    for nth in 1..=calls {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let storage = damaged_in_memory(dir.path());
        let store = crate::store::crash_tests::open_on(dir.path(), &storage).unwrap();
        storage.fail_from(storage.calls() + nth, ErrorKind::Other);
        let ended = repair(&store, false, 1, &Progress::default());
        drop(store);
        let storage = storage.power_cut();
        let store = crate::store::crash_tests::open_on(dir.path(), &storage).unwrap();
        let report = repair(&store, false, 1, &Progress::default()).unwrap();
        assert!(report.is_sound(), "cut at {nth} ({ended:?}): {report:?}");
        for (name, image) in
            [(night(WEB, 0), first_night()), (night(WEB, 1), second_night()), (night("db", 0), noise(90_000, 7))]
        {
            let snapshot = store.catalog().read(&name).unwrap_or_else(|error| panic!("cut at {nth}: {error}"));
            assert!(read_back(&*store, snapshot.entry()).unwrap() == image, "cut at {nth}: {name}");
        }
        let quarantined = storage.list("quarantine").unwrap().files;
        assert!(quarantined.iter().filter(|name| name.starts_with("packs.")).count() >= 4, "{quarantined:?}");
    }
}
