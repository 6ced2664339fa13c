//! `ingest`: its report, its sources, times and bases, and what an interrupted one leaves.

use std::io::Write;

use serde_json::Value;

use crate::common::{MIB, NIGHT, Piped, Site, code, keys, stderr, terminate, wait_for};
use chunkstore::testing::noise;

#[test]
fn an_ingest_reports_what_it_did() {
    let site = Site::new();
    let disk = site.disk("web01.raw", 2, 1);
    let labels = ["--label", "os=debian12", "--label", "app=mysql"];
    let args = [&["ingest", &disk, "--image", "web01", "--time", "2026-11-20T02:00:00Z", "--group", "g"], &labels[..]];
    let report = site.json(&args.concat());
    assert_eq!(report["image"], "web01");
    assert_eq!(report["snapshot"], format!("web01@{NIGHT}"));
    assert_eq!(report["virtual_bytes"], 8 * MIB);
    assert_eq!((&report["data_bytes"], &report["zero_bytes"]), (&(2 * MIB).into(), &(6 * MIB).into()));
    assert_eq!((&report["new_bytes"], &report["new_chunks"]), (&report["data_bytes"], &report["chunks"]));
    assert_eq!((&report["delta_chunks"], &report["reused_boundaries"]), (&0.into(), &0.into()));
    assert!(report["stored_bytes"].as_u64().unwrap() > 2 * MIB as u64);
    assert!(report["elapsed_s"].is_number() && report["throughput_bytes_per_s"].is_number());
    assert_eq!(report["throughput"], report["throughput_bytes_per_s"]);
    assert_eq!((&report["parent"], &report["group"]), (&Value::Null, &"g".into()));
    assert_eq!(report["labels"], serde_json::json!({"app": "mysql", "os": "debian12"}));

    let shown = site.json(&["show", "web01"]);
    assert_eq!(keys(&shown), keys(&report));
    assert_eq!(shown, report);
    for key in ["root", "entry", "origin", "created", "holds", "held", "partial"] {
        assert!(shown.get(key).is_some(), "{key}");
    }
    assert_eq!(site.json(&["list"]).as_array().unwrap(), std::slice::from_ref(&report));

    let again = site.json(&["ingest", &disk, "--image", "web01"]);
    assert_eq!((&again["new_chunks"], &again["reused_boundaries"]), (&0.into(), &again["chunks"]));
    assert_eq!((&again["parent"], &again["root"]), (&report["snapshot"], &report["root"]));
}

#[test]
fn several_disks_get_one_time() {
    let site = Site::new();
    let disks = [site.disk("a.raw", 1, 1), site.disk("b.raw", 1, 2)];
    let args = ["ingest", &disks[0], &disks[1], "--image", "db-a", "--image", "db-b", "--group", "db", "--json"];
    let lines: Vec<Value> = site.succeed(&args).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["image"], &lines[1]["image"]), (&"db-a".into(), &"db-b".into()));
    assert_eq!(lines[0]["time"], lines[1]["time"]);
    assert_ne!(lines[0]["root"], lines[1]["root"]);
}

#[test]
fn all_sources_are_opened_before_the_first_is_read() {
    let site = Site::new();
    let disk = site.disk("a.raw", 1, 1);
    let missing = site.path("missing.raw");
    let said = site.fail(&["ingest", &disk, missing.to_str().unwrap(), "--image", "a", "--image", "b"], 5);
    assert!(said.contains("missing.raw"), "{said}");
    assert!(site.snapshots().is_empty());
}

#[test]
fn a_time_is_taken_once() {
    let site = Site::with_nights(&[NIGHT]);
    let disk = site.disk("other.raw", 1, 9);
    let said = site.fail(&["ingest", &disk, &disk, "--image", "new", "--image", "web01", "--time", NIGHT], 6);
    assert!(said.contains(&format!("web01@{NIGHT}")), "{said}");
    assert_eq!(site.snapshots(), [format!("web01@{NIGHT}")]);
}

#[test]
fn standard_input_is_a_source() {
    let site = Site::new();
    let bytes = noise(5 * MIB + 8, 3);
    let mut child = site.command(&["ingest", "-", "--image", "piped", "--json"]).piped().spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["virtual_bytes"], bytes.len());
}

#[test]
fn a_base_of_another_image_may_be_named() {
    let site = Site::with_nights(&[NIGHT]);
    let disk = site.path("web01.raw");
    let disk = disk.to_str().unwrap();
    let report = site.json(&["ingest", disk, "--image", "clone", "--base", "web01@2026"]);
    assert_eq!((&report["parent"], &report["new_chunks"]), (&format!("web01@{NIGHT}").into(), &0.into()));
    let alone = site.json(&["ingest", disk, "--image", "alone", "--base", "none"]);
    assert_eq!((&alone["parent"], &alone["reused_boundaries"]), (&Value::Null, &0.into()));
    site.fail(&["ingest", disk, "--image", "c", "--base", "nothing"], 5);
}

#[test]
fn an_interrupted_ingest_makes_no_snapshot() {
    let site = Site::new();
    let mut child = site.command(&["ingest", "-", "--image", "piped"]).piped().spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&noise(16 * MIB, 1)).unwrap();
    terminate(&child);
    // Also if the writer ends at the same time, as in a pipeline that gets Ctrl-C.
    let said = wait_for(&mut child, "stopping");
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(site.snapshots().is_empty());
}
