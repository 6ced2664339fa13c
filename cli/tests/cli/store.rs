//! Commands on the whole store: concurrent use, `stats`, `gc` and `reindex`.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use chunkstore::store::lock::StoreLock;

use crate::common::{MIB, NIGHT, Site, code, keys, vmstore};

#[test]
fn a_store_in_use_is_said_with_4_and_waited_for() {
    let site = Site::with_nights(&[NIGHT]);
    let lock = StoreLock::acquire(&site.store(), Duration::ZERO).unwrap();
    let disk = site.disk("a.raw", 1, 1);
    let commands: &[&[&str]] = &[
        &["ingest", &disk, "--image", "a"],
        &["remove", "web01"],
        &["hold", "web01"],
        &["prune", "--keep-last", "1"],
        &["gc"],
        &["stats"],
        &["verify"],
        &["reindex"],
        &["--wait=0", "reindex"],
    ];
    for command in commands {
        let said = site.fail(command, 4);
        assert!(said.contains(&format!("process {}", std::process::id())) && said.contains("--wait"), "{said}");
    }
    // Commands that need only the catalog still work.
    assert_eq!(site.snapshots().len(), 1);
    site.succeed(&["show", "web01"]);
    site.succeed(&["remove", "--dry-run", "web01"]);
    site.succeed(&["prune", "--keep-last", "1", "--dry-run"]);
    thread::scope(|scope| {
        let waiters = [&["hold", "web01", "--wait"][..], &["--wait=60", "reindex"]];
        let waiters = waiters.map(|args| scope.spawn(|| site.succeed(args)));
        thread::sleep(Duration::from_millis(200));
        drop(lock);
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
    assert_eq!(site.json(&["show", "web01"])["held"], true);
}

#[test]
fn statistics_name_each_image() {
    let site = Site::with_nights(&["20261119T020000Z", "20261120T020000Z"]);
    let stats = site.json(&["stats"]);
    assert_eq!((&stats["images"], &stats["snapshots"]), (&1.into(), &2.into()));
    assert_eq!((&stats["logical_bytes"], &stats["unique_bytes"]), (&(2 * MIB).into(), &MIB.into()));
    assert_eq!(stats["per_image"][0]["image"], "web01");
    assert!(site.succeed(&["stats"]).contains("ONLY ITS OWN"));
}

#[test]
fn collecting_frees_what_was_removed() {
    let site = Site::with_nights(&[NIGHT]);
    let disk = site.disk("other.raw", 2, 7);
    site.succeed(&["ingest", &disk, "--image", "other"]);
    site.succeed(&["remove", "other"]);
    let planned = site.json(&["gc", "--dry-run"]);
    assert_eq!(planned["dry_run"], true);
    let done = site.json(&["gc"]);
    assert!(done["freed_bytes"].as_u64().unwrap() > 2 * MIB as u64, "{done}");
    assert_eq!(done["missing_records"], 0);
    assert!(!site.store().join("reserve").exists(), "a store without a reserve gets none");
    let dest = site.path("out.raw");
    site.succeed(&["restore", "web01", dest.to_str().unwrap()]);
    assert!(fs::read(dest).unwrap() == fs::read(site.path("web01.raw")).unwrap());
    let pruned = site.json(&["prune", "--keep-last", "1", "--gc"]);
    assert_eq!((&pruned["removed"], &pruned["gc"]["dry_run"]), (&0.into(), &false.into()));
}

#[test]
fn a_reserve_that_was_given_up_is_put_back_by_gc() {
    let dir = tempfile::tempdir().unwrap();
    let run = |command: &str| vmstore().args([command, "--store"]).arg(dir.path().join("store")).output().unwrap();
    assert_eq!(code(&run("init")), 0);
    let reserve = dir.path().join("store/reserve");
    File::create(&reserve).unwrap();
    assert_eq!(code(&run("gc")), 0);
    assert_eq!(fs::metadata(&reserve).unwrap().len(), 256 << 20);
}

#[test]
fn an_index_is_built_anew() {
    let site = Site::with_nights(&[NIGHT]);
    let done = site.json(&["reindex"]);
    assert_eq!(keys(&done), ["damaged_packs", "packs", "records"]);
    assert!(done["records"].as_u64().unwrap() > 0 && done["damaged_packs"] == 0);
    fs::remove_dir_all(site.store().join("index")).unwrap();
    let disk = site.path("web01.raw");
    assert_eq!(site.json(&["ingest", disk.to_str().unwrap(), "--image", "again"])["new_chunks"], 0);
}
