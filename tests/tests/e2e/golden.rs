//! A store that the first program of its format wrote, in `tests/golden`: every later one reads it as it was, goes on
//! with it, and keeps what it does not know. Files of a newer program are refused and left unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::devices::tool;
use tests::fuzz::reseal;
use tests::{Mounted, Site, Vmfs, Vmstore};

const CLONE: &str = "clone";
const PARTIAL: &str = "far01@20260101T020000Z";
const NIGHT: &str = "web01@20260102T020000Z";
/// The file of [`NIGHT`].
const NIGHT_FILE: &str = "catalog/web01/20260102T020000Z.snap";
/// Files that differ from one opening to the next and are not the store's content.
const OF_THE_MOMENT: [&str; 6] = ["index", "leases", "lock", "owner.sock", "owner.log", "vmfs.log"];

/// A file to make newer, how, and commands that must refuse it.
type Case<'a> = (&'a str, &'a dyn Fn(&Vmstore), &'a [&'a [&'a str]]);

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A fresh copy of the store.
fn copy(site: &Site) -> Vmstore {
    let store = tempfile::tempdir_in(site.dir()).unwrap().keep();
    tool("tar", &["-xpzf".as_ref(), golden("store.tar.gz").as_os_str(), "-C".as_ref(), store.as_os_str()]);
    Vmstore::new(store)
}

/// SHA-256 of what each snapshot, and the clone, must read as.
fn digests() -> BTreeMap<String, String> {
    let text = fs::read_to_string(golden("digests")).unwrap();
    let line = |line: &str| line.split_once("  ").map(|(digest, name)| (name.to_owned(), digest.to_owned()));
    text.lines().map(|text| line(text).unwrap()).collect()
}

fn digest(path: &Path) -> String {
    let printed = tool("sha256sum", &[path.as_os_str()]);
    printed.split(' ').next().unwrap().to_owned()
}

fn list() -> Value {
    serde_json::from_str(&fs::read_to_string(golden("list.json")).unwrap()).unwrap()
}

/// Fails unless every snapshot reads as it was.
fn assert_reads(site: &Site, vmstore: &Vmstore) {
    let digests = digests();
    assert_eq!(digests.len(), 5, "{digests:?}");
    for (name, expected) in digests.iter().filter(|(name, _)| *name != CLONE) {
        let restored = site.path("restored.raw");
        vmstore.run(["restore", name, restored.to_str().unwrap(), "--no-sync"]);
        assert_eq!(digest(&restored), *expected, "{name}");
        fs::remove_file(restored).unwrap();
    }
}

/// All files below a directory that are the store's content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn add(dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            match entry.file_type().unwrap() {
                _ if OF_THE_MOMENT.iter().any(|name| entry.file_name() == *name) => {}
                kind if kind.is_dir() => add(&path, files),
                _ => drop(files.insert(path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    let mut files = BTreeMap::new();
    add(dir, &mut files);
    files
}

/// Changes a file of the store, and puts its checksums right.
fn change(path: &Path, change: impl Fn(&mut Vec<u8>), seal: fn(&[u8]) -> Option<Vec<u8>>) {
    let mut bytes = fs::read(path).unwrap();
    let before = bytes.clone();
    change(&mut bytes);
    assert_ne!(bytes, before, "{}", path.display());
    fs::write(path, seal(&bytes).unwrap()).unwrap();
}

fn replace(from: &str, to: &str) -> impl Fn(&mut Vec<u8>) {
    move |bytes| *bytes = String::from_utf8(std::mem::take(bytes)).unwrap().replacen(from, to, 1).into_bytes()
}

/// The pack with this number.
fn pack(vmstore: &Vmstore, number: &str) -> PathBuf {
    let names = vmstore.files("packs", ".pack");
    vmstore.store().join("packs").join(names.iter().find(|name| name.starts_with(number)).unwrap())
}

#[test]
fn the_golden_store_reads_as_it_was_and_goes_on() {
    let site = Site::new();
    let vmstore = copy(&site);
    assert_eq!(vmstore.json(["list"]), list());
    assert_reads(&site, &vmstore);
    vmstore.expect_exit(6, ["restore", PARTIAL, &site.arg("never.raw")]);
    let verified = vmstore.json(["verify"]);
    assert_eq!((&verified["healed_records"], &verified["partial_snapshots"]), (&json!(1), &json!(1)), "{verified}");
    assert_eq!(verified["snapshots"], 5);
    assert!(fs::read_to_string(vmstore.store().join("damaged")).unwrap().starts_with("vmstore-damaged 1\n"));
    assert_eq!(vmstore.json(["token", "list"])[0]["name"], "site-a");
    assert!(vmstore.run(["remote", "list"]).contains("tls://b.example:7878"));
    assert!(!vmstore.files("catalog/gone", ".removed").is_empty());

    site.make("next.raw", 6, 1);
    vmstore.run(["ingest", &site.arg("next.raw"), "--image", "web01", "--time", "20260104T020000Z"]);
    vmstore.run(["remove", "web01@20260101T020000Z"]);
    vmstore.run(["gc"]);
    vmstore.run(["verify"]);
    vmstore.expect_exit(6, ["remove", NIGHT]);
    vmstore.run(["ingest", &site.arg("next.raw"), "--image", "web01", "--time", "20260101T020000Z"]);
    for (name, expected) in digests().iter().filter(|(name, _)| *name != CLONE && !name.contains("0101T")) {
        let restored = site.path("restored.raw");
        vmstore.run(["restore", name, restored.to_str().unwrap(), "--no-sync"]);
        assert_eq!(digest(&restored), *expected, "{name} after gc");
        fs::remove_file(restored).unwrap();
    }
}

#[test]
fn the_golden_clone_reads_as_it_was_and_is_written_on() {
    let site = Site::new();
    let vmstore = copy(&site).through_owner();
    let mounted = Mounted::start(&vmstore, site.path("mnt"));
    let disk = mounted.clone_file("test");
    assert_eq!(digest(&disk), digests()[CLONE]);
    assert_eq!(digest(&mounted.snapshot(NIGHT)), digests()[NIGHT]);
    let mut bytes = fs::read(&disk).unwrap();
    bytes[123_456] ^= 1;
    let written = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    written.write_all_at(&bytes[123_456..=123_456], 123_456).unwrap();
    written.sync_all().unwrap();
    drop(written);
    mounted.vmfs().run(["clone", "commit", "test", "--image", "committed", "--time", "20260105T020000Z"]);
    vmstore.run(["restore", "committed", &site.arg("committed.raw")]);
    assert!(fs::read(site.path("committed.raw")).unwrap() == bytes);
}

#[test]
fn an_index_of_another_store_is_rebuilt() {
    let site = Site::new();
    let (vmstore, other) = (copy(&site), Vmstore::new(site.path("other")));
    vmstore.run(["stats"]);
    other.run(["init", "--no-reserve"]);
    other.run(["stats"]);
    fs::remove_dir_all(vmstore.store().join("index")).unwrap();
    tool("cp", &["-r".as_ref(), other.store().join("index").as_os_str(), vmstore.store().as_os_str()]);
    assert_reads(&site, &vmstore);
    vmstore.run(["verify"]);
}

#[test]
fn files_of_a_newer_program_are_refused_and_left_alone() {
    let site = Site::new();
    let restored = site.arg("never.raw");
    let restore: &[&str] = &["restore", NIGHT, &restored];
    let (gc, verify, list): (&[&str], &[&str], &[&str]) = (&["gc"], &["verify"], &["list"]);
    let next = site.make("next.raw", 1, 7);
    let ingest: &[&str] = &["ingest", next.to_str().unwrap(), "--image", "next"];
    let at = |name| move |vmstore: &Vmstore| vmstore.store().join(name);
    let config =
        |store: &Vmstore| change(&at("config.toml")(store), replace("version = 1", "version = 2"), reseal::config);
    let entry =
        |store: &Vmstore| change(&at(NIGHT_FILE)(store), replace("snapshot 1", "snapshot 2"), reseal::last_line);
    let needs = |store: &Vmstore| {
        let needed = replace("{\"image\"", "{\"required_features\":[\"cipher\"],\"image\"");
        change(&at(NIGHT_FILE)(store), needed, reseal::last_line);
    };
    let damaged = |store: &Vmstore| change(&at("damaged")(store), replace("damaged 1", "damaged 2"), reseal::last_line);
    let header = |store: &Vmstore| change(&pack(store, "00000004"), |bytes| bytes[33] = 1, reseal::pack);
    // Of the first record of the first delta's pack.
    let record = |store: &Vmstore| change(&pack(store, "00000005"), |bytes| bytes[64 + 7] = 1, reseal::pack);
    let cases: [Case<'_>; 6] = [
        ("config.toml", &config, &[list, restore, gc, verify, ingest]),
        ("a catalog file", &entry, &[restore, gc]),
        ("an entry's features", &needs, &[restore, gc]),
        ("damaged", &damaged, &[restore, gc, verify, ingest]),
        ("a pack's header", &header, &[restore, gc, verify, ingest]),
        ("a record", &record, &[restore]),
    ];
    for (what, make_newer, commands) in cases {
        let vmstore = copy(&site);
        make_newer(&vmstore);
        let before = content(vmstore.store());
        for command in commands {
            let said = vmstore.expect_exit(6, *command);
            assert!(said.contains("newer"), "{what}, {command:?}: {said}");
            assert!(content(vmstore.store()) == before, "{what}: {command:?} changed the store");
        }
    }
}

#[test]
fn a_newer_clone_is_refused_and_left_alone() {
    let site = Site::new();
    let vmstore = copy(&site).through_owner();
    change(&vmstore.store().join("clones/test/clone.json"), replace("\"version\": 1", "\"version\": 2"), |bytes| {
        Some(bytes.to_vec())
    });
    let before = content(vmstore.store());
    let vmfs = Vmfs::beside(&vmstore);
    for command in [&["clone", "commit", "test"][..], &["clone", "rollback", "test"]] {
        let said = vmfs.expect_exit(6, command);
        assert!(said.contains("newer"), "{command:?}: {said}");
    }
    assert!(content(vmstore.store()) == before);
}

#[test]
fn a_newer_boot_order_is_none_and_left_alone() {
    let site = Site::new();
    let vmstore = copy(&site);
    for name in vmstore.files("boot", ".order") {
        change(&vmstore.store().join("boot").join(name), replace("order 1", "order 2"), reseal::last_line);
    }
    let before = content(&vmstore.store().join("boot"));
    assert_reads(&site, &vmstore);
    vmstore.run(["gc"]);
    vmstore.run(["verify"]);
    assert!(!before.is_empty() && content(&vmstore.store().join("boot")) == before);
}

#[test]
fn unknown_optional_fields_are_kept_by_who_rewrites() {
    let site = Site::new();
    let vmstore = copy(&site).through_owner();
    let file = vmstore.store().join("catalog/web01/20260103T020000Z.snap");
    change(&file, replace("{\"image\"", "{\"weight\": 1.50e1, \"image\""), reseal::last_line);
    change(&file, replace("\"partial\":", "\"later\":{\"a\":[1]},\"partial\":"), reseal::last_line);
    for file in ["config.toml", "config.toml.copy"] {
        change(&vmstore.store().join(file), replace("version = 1\n", "version = 1\nlater = 7\n"), reseal::config);
    }
    let clone = vmstore.store().join("clones/test/clone.json");
    change(&clone, replace("\"version\": 1", "\"version\": 1, \"later\": [7]"), |bytes| Some(bytes.to_vec()));
    // The entry to the byte, the state by its fields.
    let read = || {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<_> = text.lines().collect();
        (lines[1].to_owned(), serde_json::from_str::<Value>(lines[2]).unwrap())
    };
    let before = read();
    assert_eq!(before.1["later"], json!({"a": [1]}));
    vmstore.run(["hold", "web01@20260103T020000Z", "--reason", "golden"]);
    assert_ne!(read(), before);
    vmstore.run(["release", "web01@20260103T020000Z", "--reason", "golden"]);
    assert_eq!(read(), before);
    assert!(fs::read_to_string(vmstore.store().join("config.toml")).unwrap().contains("\nlater = 7\n"));
    let before = fs::read(&clone).unwrap();
    Vmfs::beside(&vmstore).run(["clone", "rollback", "test"]);
    let after = fs::read(&clone).unwrap();
    assert_ne!(after, before);
    assert_eq!(serde_json::from_slice::<Value>(&after).unwrap()["later"], json!([7]));
}
