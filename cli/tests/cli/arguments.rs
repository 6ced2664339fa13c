//! The command line: help, arguments, names, and the choice of the store.

use std::fs;

use serde_json::Value;

use crate::common::{NIGHT, Site, code, stderr, stdout, vmstore};

#[test]
fn help_documents_the_exit_codes() {
    let output = vmstore().arg("--help").output().unwrap();
    assert_eq!(code(&output), 0);
    let help = stdout(&output);
    for word in ["Exit codes", "3  damage was found", "130  interrupted", "VMSTORE_STORE", "web01@20261120"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn what_is_wrong_with_the_command_line_is_said_with_2() {
    let site = Site::new();
    let disk = site.disk("a.raw", 1, 1);
    let cases: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["show"],
        &["ingest", &disk],
        &["ingest", &disk, "--image", "a", "--image", "b"],
        &["ingest", &disk, &disk, "--image", "a", "--image", "a"],
        &["ingest", "-", "-", "--image", "a", "--image", "b"],
        &["ingest", "-", "--image", "a", "--format", "qcow2"],
        &["ingest", &disk, "--image", "a", "--label", "novalue"],
        &["ingest", &disk, "--image", "a", "--label", "k=1", "--label", "k=2"],
        &["ingest", &disk, "--image", "a", "--group", "two\nlines"],
        &["ingest", &disk, "--image", "a", "--time", "yesterday"],
        &["ingest", &disk, "--image", "a", "--base", "../x"],
        &["ingest", &disk, "--image", "a", "--threads", "0"],
        &["ingest", &disk, "--image", "a", "--format", "vmdk"],
        &["restore", "web01", "-", "--format", "qcow2"],
        &["prune"],
        &["prune", "--keep-last", "0"],
        &["prune", "--keep-last", "1", "--time-zone", "Middle/Earth"],
        &["release", "web01", "--all", "--reason", "x"],
        &["--wait=soon", "list"],
        &["init", "--chunk-avg", "65k5"],
    ];
    for case in cases {
        site.fail(case, 2);
    }
    assert!(site.snapshots().is_empty());
}

#[test]
fn names_that_are_no_names_are_refused_before_anything_happens() {
    let site = Site::with_nights(&[NIGHT]);
    let disk = site.disk("a.raw", 1, 1);
    let long = "x".repeat(300);
    for bad in ["a/b", "../a", "..", ".a", "", "a\nb", "a:b", "a b", "ä", "-", "a@b", &long] {
        site.fail(&["ingest", &disk, &format!("--image={bad}")], 2);
    }
    for bad in ["a/b", "../web01", "..", "web01@..", "web01@../x", "we\nb01", "web01@2026\n", "", "@latest", &long] {
        for command in ["show", "remove", "hold", "release"] {
            site.fail(&[command, "--", bad], 2);
        }
    }
    let longest = "x".repeat(128);
    site.succeed(&["ingest", &disk, "--image", &longest]);
    assert_eq!(site.snapshots().len(), 2);
}

#[test]
fn a_store_is_made_once() {
    let site = Site::new();
    assert!(site.fail(&["init"], 6).contains("already holds a store"));
    fs::write(site.path("file"), "").unwrap();
    let other = site.dir.path().to_str().unwrap();
    let output = vmstore().args(["init", "--store", other]).output().unwrap();
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("is not empty"));
}

#[test]
fn a_store_is_made_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("deep/store");
    let output = vmstore().args(["init", "--json", "--chunk-avg", "32K", "--store"]).arg(&store).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((made["chunk_min_bytes"].as_u64(), made["chunk_max_bytes"].as_u64()), (Some(8192), Some(131_072)));
    assert_eq!(made["reserve_bytes"], 256 << 20);
    assert_eq!(fs::metadata(store.join("reserve")).unwrap().len(), 256 << 20);
    assert_eq!(made["store_id"].as_str().unwrap().len(), 32);
}

#[test]
fn chunk_sizes_outside_the_limits_are_no_store() {
    let dir = tempfile::tempdir().unwrap();
    for size in ["3000", "1", "64M", "0"] {
        let store = dir.path().join(size);
        let output = vmstore().args(["init", "--chunk-avg", size, "--store"]).arg(&store).output().unwrap();
        assert_eq!(code(&output), 2, "{size}: {}", stderr(&output));
        assert!(!store.exists());
    }
}

#[test]
fn a_store_must_be_named_and_there() {
    let output = vmstore().arg("list").output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("VMSTORE_STORE"), "{}", stderr(&output));
    for command in [&["list"][..], &["stats"], &["gc"], &["reindex"], &["verify"]] {
        let output = vmstore().env("VMSTORE_STORE", "/nonexistent/store").args(command).output().unwrap();
        assert_eq!(code(&output), 5, "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("vmstore --store /nonexistent/store init"), "{}", stderr(&output));
    }
}

#[test]
fn the_store_may_be_named_by_the_environment_and_after_the_command() {
    let site = Site::new();
    let by_environment = vmstore().env("VMSTORE_STORE", site.store()).args(["list", "--json"]).output().unwrap();
    let after = vmstore().args(["list", "--json", "--store"]).arg(site.store()).output().unwrap();
    assert_eq!([stdout(&by_environment), stdout(&after)], ["[]\n", "[]\n"]);
}

#[test]
fn the_manual_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    let output = vmstore().arg("man").arg("--dir").arg(dir.path().join("man1")).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for page in ["vmstore.1", "vmstore-ingest.1", "vmstore-prune.1"] {
        assert!(dir.path().join("man1").join(page).exists(), "{page}");
    }
    let page = stdout(&vmstore().arg("man").output().unwrap());
    assert!(page.contains(".TH vmstore") && page.contains("damage was found"));
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&vmstore().args(["completions", shell]).output().unwrap());
        assert!(script.contains("ingest"), "{shell}");
    }
}
