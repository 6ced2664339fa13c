//! `restore`: to files, streams and qcow2, and which destinations are refused.

use std::fs;
use std::process::Command;

use crate::common::{MIB, NIGHT, Site, code, stderr};

#[test]
fn what_was_ingested_is_restored() {
    let site = Site::with_nights(&[NIGHT]);
    let original = fs::read(site.path("web01.raw")).unwrap();
    let dest = site.path("out.raw");
    let to = dest.to_str().unwrap();
    let report = site.json(&["restore", "web01", to]);
    assert_eq!(fs::read(&dest).unwrap(), original);
    assert_eq!((&report["virtual_bytes"], &report["data_bytes"]), (&(8 * MIB).into(), &MIB.into()));
    assert_eq!((&report["format"], &report["dest"]), (&"raw".into(), &to.into()));

    fs::write(&dest, "precious").unwrap();
    assert!(site.fail(&["restore", "web01", to], 6).contains("--force"));
    assert_eq!(fs::read(&dest).unwrap(), b"precious");
    site.succeed(&["restore", "web01", to, "--force", "--no-sync"]);
    assert_eq!(fs::read(&dest).unwrap(), original);

    let output = site.run(&["restore", "web01", "-", "--json"]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    assert!(output.stdout == original, "the stream is the image and nothing else");
}

#[test]
fn a_destination_that_can_not_be_is_said() {
    let site = Site::with_nights(&[NIGHT]);
    let dir = site.path("dir");
    fs::create_dir(&dir).unwrap();
    for (dest, exit) in [("dir", 6), ("none/out.raw", 1), ("none/out.qcow2", 1), ("dir", 6)] {
        site.fail(&["restore", "web01", site.path(dest).to_str().unwrap()], exit);
    }
    site.fail(&["restore", "web02", site.path("out.raw").to_str().unwrap()], 5);
    assert!(!site.path("out.raw").exists() && fs::read_dir(&dir).unwrap().next().is_none());
}

#[test]
fn a_snapshot_becomes_qcow2_and_comes_back() {
    let site = Site::with_nights(&[NIGHT]);
    let dest = site.path("out:put.qcow2");
    let to = dest.to_str().unwrap();
    let without = site.command(&["restore", "web01", to]).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(code(&without), 1);
    assert!(stderr(&without).contains("qemu-utils"), "{}", stderr(&without));
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("qemu-img is not installed: the rest is not tested");
        return;
    }
    assert_eq!(site.json(&["restore", "web01", to])["format"], "qcow2");
    assert!(site.fail(&["restore", "web01", to], 6).contains("--force"));
    site.succeed(&["restore", "web01", to, "--force"]);
    assert!(fs::read(&dest).unwrap().starts_with(b"QFI\xfb"));
    let back = site.json(&["ingest", to, "--image", "back"]);
    assert_eq!(back["root"], site.json(&["show", "web01"])["root"]);
    let left: Vec<_> = fs::read_dir(site.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing is left beside it: {left:?}");
}
