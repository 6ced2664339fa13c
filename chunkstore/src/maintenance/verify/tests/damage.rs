//! Files of a store that are flipped, cut, lost, copied, swapped and extended.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::*;
use crate::pack::Class;
use crate::storage::{AppendFile, Failure, Listing, LocalDir, ReadFile, Storage};
use crate::store::OpenOptions;
use crate::store::crash_tests::{new_storage, open_on};
use crate::testing::{init, open, open_options};

/// A directory in memory, if there is one: these tests sync often.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store with two nights; copied for each case.
struct Template {
    dir: tempfile::TempDir,
    snapshots: [Snapshot; 2],
    packs: Vec<(Class, PackId)>,
}

fn template() -> Template {
    let dir = directory();
    init(dir.path());
    let store = open(dir.path());
    let snapshots = put_nights(&store, 0);
    store.index().flush().unwrap();
    assert!(check(&store).unwrap().is_sound());
    let packs = store.packs().rows().iter().map(|row| (row.class, row.id)).collect();
    Template { dir, snapshots, packs }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Names and lengths of the sealed packs.
fn sealed(dir: &Path) -> Vec<(String, u64)> {
    let files = fs::read_dir(dir.join("packs")).unwrap().map(|file| file.unwrap());
    let mut sealed: Vec<_> =
        files.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len())).collect();
    sealed.sort();
    sealed
}

/// A report's text, truncated.
fn brief(report: &VerifyReport) -> String {
    text(report).chars().take(1500).collect()
}

/// The damage done to a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// One bit, at this many 256ths of the length.
    Flip(usize),
    FlipLast,
    /// Truncated to this many 256ths.
    Truncate(usize),
    CutLast,
    /// A block of zeros in the middle.
    Blank,
    Append,
    Delete,
}

const HARMS: [Harm; 12] = [
    Harm::Flip(0),
    Harm::Flip(40),
    Harm::Flip(128),
    Harm::Flip(200),
    Harm::Flip(250),
    Harm::FlipLast,
    Harm::Truncate(0),
    Harm::Truncate(100),
    Harm::CutLast,
    Harm::Blank,
    Harm::Append,
    Harm::Delete,
];

impl Harm {
    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let len = bytes.len();
        match self {
            Self::Flip(at) => bytes[len * at / 256] ^= 4,
            Self::FlipLast => bytes[len - 1] ^= 128,
            Self::Truncate(to) => bytes.truncate(len * to / 256),
            Self::CutLast => bytes.truncate(len - 1),
            Self::Blank => bytes[len / 2 - (len / 8).min(2048)..len / 2].fill(0),
            Self::Append => bytes.extend_from_slice(&[0; 100]),
            Self::Delete => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

impl Template {
    fn copy(&self) -> tempfile::TempDir {
        let dir = directory();
        copy_dir(self.dir.path(), dir.path());
        dir
    }

    fn pack(&self, class: Class) -> PackId {
        self.packs.iter().find(|pack| pack.0 == class).unwrap_or_else(|| panic!("no pack of {class:?}")).1
    }

    /// A damaged store must report it and name the damage, return right bytes or none, lose no pack, heal when the same
    /// images are ingested again, and be as good after a reindex.
    fn judge(&self, case: &str, dir: &Path, names: &[String]) {
        let packs = sealed(dir);
        let store = try_open(dir).unwrap_or_else(|error| panic!("{case}: {error}"));
        restored(&store, &self.snapshots);
        let report = check(&store).unwrap();
        assert!(!report.is_sound(), "{case} went unnoticed");
        for name in names {
            assert!(text(&report).contains(name), "{case}: {name} is not in {}", brief(&report));
        }
        let again = check(&store).unwrap();
        assert!(text(&again) == text(&report), "{case}: {}\n\nagain: {}", brief(&report), brief(&again));
        let whole = restored(&store, &self.snapshots);
        let hurt = self.snapshots.iter().filter(|s| text(&report).contains(&format!("{} ", s.name()))).count();
        assert_eq!(whole + hurt, 2, "{case}: ranges are named of what can't be read, and only of that");
        let healed = self.heal(case, &store);
        drop(store);
        assert!(packs.iter().all(|pack| sealed(dir).contains(pack)), "{case}");
        let before = sealed(dir);
        Store::reindex(dir, &open_options()).unwrap();
        assert_eq!(sealed(dir), before, "{case}");
        let store = open(dir);
        assert_eq!(restored(&store, &healed), 4, "{case}: after a reindex");
        let names: Vec<_> = healed.iter().map(Snapshot::name).collect();
        let report = verify(&store, &names, 2, &Progress::default()).unwrap();
        assert!(report.damage.is_empty(), "{case}: after a reindex {}", brief(&report));
        crate::maintenance::gc::collect(&store, false, 2, &Progress::default()).unwrap();
        assert_eq!(restored(&store, &healed), 4, "{case}: after gc");
        assert_eq!(check(&store).unwrap().damage, [], "{case}: after gc");
    }

    /// Ingests the same images again.
    fn heal(&self, case: &str, store: &Arc<Store>) -> Vec<Snapshot> {
        let new = put_nights(store, 10);
        let names: Vec<_> = new.iter().map(Snapshot::name).collect();
        let report = verify(store, &names, 2, &Progress::default()).unwrap();
        assert!(report.is_sound(), "{case}: a new backup is not whole: {}", brief(&report));
        let all: Vec<_> = self.snapshots.iter().cloned().chain(new).collect();
        assert_eq!(restored(store, &all), 4, "{case}: not healed");
        assert_eq!(check(store).unwrap().damage, [], "{case}: not healed");
        all
    }
}

#[test]
fn what_could_not_be_read_for_a_while_is_healed_by_one_verification() {
    let (dir, storage) = (directory(), new_storage());
    let snapshots = put_nights(&open_on(dir.path(), &storage).unwrap(), 1);
    let store = open_on(dir.path(), &storage).unwrap();
    storage.fail_accesses(storage.accesses() + 1..=u64::MAX, Failure::ShortRead);
    assert!(!check(&store).unwrap().is_sound());
    storage.heal();
    assert_eq!(restored(&store, &snapshots), 0, "all counts as damaged");
    drop(store);
    let store = open_on(dir.path(), &storage).unwrap();
    assert_eq!(check(&store).unwrap().damage, []);
    assert_eq!(restored(&store, &snapshots), 2);
    assert!(check(&store).unwrap().is_sound());
}

#[test]
fn any_harm_to_a_pack_is_named_and_healed() {
    let template = template();
    for class in Class::ALL {
        let id = template.pack(class);
        for harm in HARMS {
            let dir = template.copy();
            harm.apply(&dir.path().join(crate::pack::path(id)));
            template.judge(&format!("{harm:?} of {class:?}"), dir.path(), &[id.to_string()]);
        }
    }
}

#[test]
fn any_harm_to_a_pack_is_named_and_healed_when_the_index_is_lost_too() {
    let template = template();
    for class in Class::ALL {
        let id = template.pack(class);
        for harm in [Harm::Flip(0), Harm::Flip(128), Harm::FlipLast, Harm::Truncate(100), Harm::Blank, Harm::Delete] {
            let dir = template.copy();
            fs::remove_dir_all(dir.path().join("index")).unwrap();
            harm.apply(&dir.path().join(crate::pack::path(id)));
            let names = if matches!(harm, Harm::Delete) { Vec::new() } else { vec![id.to_string()] };
            template.judge(&format!("{harm:?} of {class:?} without index"), dir.path(), &names);
        }
    }
}

#[test]
fn copied_swapped_and_foreign_packs_are_named() {
    let template = template();
    for class in Class::ALL {
        let id = template.pack(class);
        let path = |dir: &Path, id| dir.join(crate::pack::path(id));
        let copies = [(99, 1), (id.number, 0), (id.number, u32::MAX)];
        for copy in copies.map(|(number, tag)| PackId { number, tag }) {
            let dir = template.copy();
            fs::copy(path(dir.path(), id), path(dir.path(), copy)).unwrap();
            let store = open(dir.path());
            assert_eq!(restored(&store, &template.snapshots), 2, "a copy {copy} of {id} harms nothing");
            drop(store);
            template.judge(&format!("copy of {class:?} as {copy}"), dir.path(), &[copy.to_string()]);
        }
        for (_, other) in template.packs.iter().filter(|(_, other)| *other > id) {
            let dir = template.copy();
            let (a, b, aside) = (path(dir.path(), id), path(dir.path(), *other), dir.path().join("aside"));
            fs::rename(&a, &aside).unwrap();
            fs::rename(&b, &a).unwrap();
            fs::rename(&aside, &b).unwrap();
            template.judge(&format!("swap of {id} and {other}"), dir.path(), &[id.to_string(), other.to_string()]);
        }
    }
    let dir = template.copy();
    fs::write(dir.path().join("packs/notes.txt"), "mine").unwrap();
    let report = check(&open(dir.path())).unwrap();
    assert!(text(&report).contains("packs/notes.txt"));
    assert_eq!(fs::read(dir.path().join("packs/notes.txt")).unwrap(), b"mine");
}

#[test]
fn any_harm_to_a_catalog_entry_is_named() {
    let template = template();
    let path = |dir: &Path, day| {
        let name = night("vm", day);
        dir.join(format!("catalog/vm/{}.snap", name.time))
    };
    let name = night("vm", 1).to_string();
    for harm in HARMS {
        let dir = template.copy();
        harm.apply(&path(dir.path(), 1));
        let store = open(dir.path());
        let report = check(&store).unwrap();
        assert!(text(&report).contains(&name), "{harm:?}: {}", brief(&report));
        let asked = verify(&store, &[night("vm", 1)], 2, &Progress::default());
        match harm {
            Harm::Delete => assert!(matches!(asked, Err(Error::NotFound { .. }))),
            _ => assert!(!asked.unwrap().is_sound()),
        }
        assert!(verify(&store, &[night("vm", 0)], 2, &Progress::default()).unwrap().is_sound());
    }
    let dir = template.copy();
    fs::copy(path(dir.path(), 0), path(dir.path(), 1)).unwrap();
    assert!(text(&check(&open(dir.path())).unwrap()).contains(&name));
    let dir = template.copy();
    fs::copy(path(dir.path(), 0), path(dir.path(), 5)).unwrap();
    assert!(text(&check(&open(dir.path())).unwrap()).contains(&night("vm", 5).to_string()));
    let dir = template.copy();
    open(dir.path()).catalog().remove(&night("vm", 1)).unwrap();
    assert!(check(&open(dir.path())).unwrap().is_sound(), "a removed snapshot is not a lost one");
}

#[test]
fn harm_to_configuration_and_lists_is_refused_by_name_or_harmless() {
    let template = template();
    let with_damage = template.copy();
    let id = template.pack(Class::Data);
    Harm::Flip(128).apply(&with_damage.path().join(crate::pack::path(id)));
    assert!(!check(&open(with_damage.path())).unwrap().is_sound());
    for (from, file) in [(template.dir.path(), "config.toml"), (with_damage.path(), crate::store::damaged::FILE)] {
        for harm in HARMS {
            let dir = directory();
            copy_dir(from, dir.path());
            harm.apply(&dir.path().join(file));
            let store = match try_open(dir.path()) {
                Ok(store) => store,
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains(file) || message.contains("damaged"), "{file} {harm:?}: {message}");
                    continue;
                }
            };
            restored(&store, &template.snapshots);
            let detected = !check(&store).unwrap().is_sound();
            assert_eq!(detected, from == with_damage.path(), "{file} {harm:?}");
        }
    }
}

#[test]
fn a_harmed_index_costs_nothing_but_its_rebuilding() {
    let template = template();
    let files: Vec<PathBuf> = fs::read_dir(template.dir.path().join("index"))
        .unwrap()
        .map(|file| PathBuf::from("index").join(file.unwrap().file_name()))
        .filter(|file| !file.ends_with("LOCK") && !file.ends_with("LOG"))
        .collect();
    assert!(files.iter().any(|file| file.extension().is_some_and(|extension| extension == "sst")));
    for file in files {
        let empty = fs::metadata(template.dir.path().join(&file)).unwrap().len() == 0;
        let harms = HARMS.into_iter().filter(|harm| !empty || matches!(harm, Harm::Append | Harm::Delete));
        for harm in harms {
            let case = format!("{harm:?} of {}", file.display());
            let dir = template.copy();
            let packs = sealed(dir.path());
            harm.apply(&dir.path().join(&file));
            // An index found damaged in use is rebuilt when the store is opened again.
            let mut sound = false;
            for _ in 0..2 {
                let store = try_open(dir.path()).unwrap_or_else(|error| panic!("{case}: {error}"));
                restored(&store, &template.snapshots);
                sound = check(&store).is_ok_and(|report| report.damage.is_empty());
            }
            assert!(sound, "{case}");
            let store = open(dir.path());
            assert!(check(&store).unwrap().is_sound(), "{case}");
            assert_eq!(restored(&store, &template.snapshots), 2, "{case}");
            assert_eq!(sealed(dir.path()), packs, "{case}");
        }
    }
}

/// A directory in which part of one file can't be read.
struct BadBlocks {
    inner: LocalDir,
    path: String,
    bad: std::ops::Range<u64>,
}

struct BadFile {
    inner: Arc<dyn ReadFile>,
    bad: std::ops::Range<u64>,
}

impl ReadFile for BadFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset < self.bad.end && offset + buf.len() as u64 > self.bad.start {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.inner.read_exact_at(buf, offset)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }
}

impl Storage for BadBlocks {
    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>> {
        let inner = self.inner.open(path)?;
        Ok(if path == self.path { Arc::new(BadFile { inner, bad: self.bad.clone() }) } else { inner })
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>> {
        self.inner.create(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, dir: &str) -> io::Result<Listing> {
        self.inner.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.create_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
}

#[test]
fn what_a_device_can_not_read_is_damage_like_any_other() {
    let template = template();
    for class in Class::ALL {
        let id = template.pack(class);
        let bytes = fs::metadata(template.dir.path().join(crate::pack::path(id))).unwrap().len();
        let at_end = bytes.saturating_sub(4096)..bytes;
        for (bad, without_index) in
            [(0..512, true), (bytes / 2..bytes / 2 + 512, true), (at_end, true), (0..bytes, false)]
        {
            let case = format!("{bad:?} of {class:?}");
            let dir = template.copy();
            if without_index {
                fs::remove_dir_all(dir.path().join("index")).unwrap();
            }
            let storage = BadBlocks { inner: LocalDir::new(dir.path()), path: crate::pack::path(id), bad };
            let options = OpenOptions { storage: Some(Arc::new(storage)), ..open_options() };
            let store = Arc::new(Store::open(dir.path(), &options).unwrap());
            let report = check(&store).unwrap();
            assert!(text(&report).contains(&id.to_string()), "{case}: {}", brief(&report));
            template.heal(&case, &store);
        }
    }
}
