//! A mount while snapshots are added and removed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tests::images::{self, Rng};
use tests::{Mounted, eventually};

use super::names::list;
use super::{MIB, Viewed, errno, forget_pages, read_at};

#[test]
fn new_snapshots_appear_and_the_newest_is_the_latest() {
    let viewed = Viewed::of(2, 1);
    let latest = viewed.mounted.path().join("snapshots/web01/latest.raw");
    images::assert_same(&latest, &viewed.first().1);
    let next = viewed.site.make_next("next.raw", "web01-1.raw", 7);
    let name = viewed.ingest(&next, "web01", "20261115T020000Z");
    // Nothing about what is newest is remembered.
    assert_eq!(fs::read_link(&latest).unwrap(), std::path::Path::new("20261115T020000Z.raw"));
    images::assert_same(&latest, &next);
    images::assert_same(&viewed.mounted.snapshot(&name), &next);
    assert_eq!(list(latest.parent().unwrap()).len(), 3);
    viewed.ingest(&next, "another", "20261115T020000Z");
    assert_eq!(list(&viewed.mounted.path().join("snapshots")), ["another", "web01"]);
}

#[test]
fn a_snapshot_that_is_removed_while_it_is_open_stays_until_it_is_closed() {
    let viewed = Viewed::of(8, 1);
    let source = viewed.site.make("other.raw", 8, 99);
    let name = viewed.ingest(&source, "doomed", "20261115T020000Z");
    let path = viewed.mounted.snapshot(&name);
    let file = File::open(&path).unwrap();
    viewed.vmstore.run(["remove", &name]);
    viewed.vmstore.collect_all();
    let bytes_while_open = viewed.vmstore.packs_bytes();
    eventually("the end of its name", || path.symlink_metadata().is_err());
    assert_eq!(errno(File::open(&path)), libc::ENOENT);
    assert_eq!(list(&viewed.mounted.path().join("snapshots")), ["web01"]);

    let expected = fs::read(&source).unwrap();
    for _ in 0..2 {
        forget_pages(&file);
        assert!(read_at(&file, 0, expected.len()).unwrap() == expected);
    }
    assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
    assert_eq!(viewed.vmstore.files("leases", ".lease").len(), 1);
    assert_eq!(viewed.mounted.status()["open_files"], 1);
    drop(file);
    eventually("the end of its lease", || viewed.vmstore.files("leases", ".lease").is_empty());
    viewed.vmstore.collect_all();
    assert!(viewed.vmstore.packs_bytes() + MIB < bytes_while_open, "its data is gone");
    images::assert_same(&viewed.first().0, &viewed.first().1);
}

#[test]
fn a_snapshot_made_anew_under_the_same_name_is_another_file() {
    let viewed = Viewed::of(2, 1);
    let [old, new] = [(1, "old.raw"), (2, "new.raw")].map(|(seed, name)| {
        let path = viewed.site.path(name);
        fs::write(&path, Rng::new(seed).noise(3_000_000)).unwrap();
        path
    });
    let name = viewed.ingest(&old, "twice", "20261115T020000Z");
    let path = viewed.mounted.snapshot(&name);
    let was_open = File::open(&path).unwrap();
    images::assert_same(&path, &old);
    viewed.vmstore.run(["remove", &name]);
    viewed.ingest(&new, "twice", "20261115T020000Z");
    // Opening looks again if what was found is gone.
    eventually("the new one", || {
        let file = File::open(&path).unwrap();
        file.metadata().unwrap().ino() != was_open.metadata().unwrap().ino()
    });
    images::assert_same(&path, &new);
    forget_pages(&was_open);
    assert!(read_at(&was_open, 0, 3_000_000).unwrap() == fs::read(&old).unwrap());
}

#[test]
fn listings_are_right_while_snapshots_come_and_go() {
    let viewed = Viewed::of(1, 3);
    let source = viewed.first().1;
    let dir = viewed.mounted.path().join("snapshots/web01");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..8 {
                let come: Vec<_> =
                    (0..3).map(|n| viewed.ingest(&source, "web01", &format!("2026110{}T030000Z", n + 1))).collect();
                for name in &come {
                    viewed.vmstore.run(["remove", name]);
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let names = list(&dir);
            let mut unique = names.clone();
            unique.dedup();
            assert_eq!(unique, names);
            for always in ["20261101T020000Z.raw", "20261102T020000Z.raw", "20261103T020000Z.raw", "latest.raw"] {
                assert!(names.iter().any(|name| name == always), "{names:?}");
            }
            for name in names {
                match fs::read(dir.join(&name)) {
                    Ok(bytes) => assert_eq!(bytes.len() as u64, MIB, "{name}"),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}"),
                }
            }
        }
    });
    eventually("the end of the last one's name", || list(&dir).len() == 4);
    assert_eq!(viewed.mounted.status()["requests"]["failures"], 0);
}

#[test]
fn the_last_snapshot_takes_its_image_along() {
    let viewed = Viewed::of(1, 1);
    let image = viewed.mounted.path().join("snapshots/web01");
    let latest = image.join("latest.raw");
    latest.metadata().unwrap();
    viewed.vmstore.run(["remove", "web01"]);
    eventually("the end of the image", || image.symlink_metadata().is_err());
    assert_eq!(errno(fs::read_link(&latest)), libc::ENOENT);
    assert_eq!(list(&viewed.mounted.path().join("snapshots")), [""; 0]);
}

#[test]
fn a_hundred_snapshots() {
    let viewed = Viewed::of(1, 1);
    let source = viewed.first().1;
    let expected = fs::read(&source).unwrap();
    for n in 0..99 {
        viewed.ingest(&source, "web01", &format!("202611{:02}T{:02}0000Z", 2 + n / 24, n % 24));
    }
    let dir = viewed.mounted.path().join("snapshots/web01");
    let names = list(&dir);
    assert_eq!(names.len(), 101);
    let files: Vec<_> = names.iter().map(|name| File::open(dir.join(name)).unwrap()).collect();
    for file in &files {
        assert_eq!(read_at(file, 0, 1).unwrap(), expected[..1]);
    }
    // The link leads to one of them, which is open once.
    assert_eq!(viewed.vmstore.files("leases", ".lease").len(), 100);
    drop(files);
    eventually("the end of all leases", || viewed.vmstore.files("leases", ".lease").is_empty());
}

#[test]
fn two_mounts_of_one_store() {
    let viewed = Viewed::of(4, 1);
    let second = Mounted::start(&viewed.vmstore, viewed.site.path("second"));
    let (name, source) = viewed.snapshots.first_key_value().unwrap();
    let held = File::open(second.snapshot(name)).unwrap();
    images::assert_same(&viewed.mounted.snapshot(name), source);
    images::assert_same(&second.snapshot(name), source);
    let Viewed { site, vmstore, mounted, .. } = viewed;
    let statuses = mounted.vmfs().json(["status"]);
    let store = vmstore.store().to_str().unwrap().to_owned();
    let ours = statuses.as_array().unwrap().iter().filter(|mount| mount["store"] == store.as_str());
    assert_eq!(ours.count(), 2);
    mounted.unmount();
    forget_pages(&held);
    images::assert_same(&second.snapshot("web01@20261101T020000Z"), &site.path("web01-1.raw"));
    drop(held);
    second.unmount();
}
