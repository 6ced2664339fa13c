//! The program from outside: arguments, exit codes, what is printed where, and who may use a store when.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use chunkstore::lock::StoreLock;
use serde_json::Value;
use tempfile::TempDir;

const NIGHT: &str = "20261120T020000Z";
const MIB: usize = 1 << 20;

/// A directory with a store in it, and room for images.
struct Site {
    dir: TempDir,
}

impl Site {
    /// With an empty store.
    fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        site.succeed(&["init", "--no-reserve"]);
        site
    }

    /// With a snapshot of each of these times, all of image `web01`.
    fn with_nights(times: &[&str]) -> Self {
        let site = Self::new();
        let disk = site.disk("web01.raw", 1, 1);
        for time in times {
            site.succeed(&["ingest", &disk, "--image", "web01", "--time", time]);
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Makes a sparse disk of 8 MiB with some MiB of data.
    fn disk(&self, name: &str, data_mib: usize, seed: u8) -> String {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(8 * MIB as u64).unwrap();
        file.write_all_at(&noise(data_mib * MIB, seed), MIB as u64).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = vmstore();
        command.arg("--store").arg(self.store()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; returns what it printed.
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Runs a command that must end with `expected`, print nothing, and say why; returns what it said.
    fn fail(&self, args: &[&str], expected: i32) -> String {
        let output = self.run(args);
        let said = stderr(&output);
        assert_eq!((code(&output), stdout(&output).as_str()), (expected, ""), "{args:?}: {said}");
        assert!(!said.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
        said
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.succeed(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    fn snapshots(&self) -> Vec<String> {
        let list = self.json(&["list"]);
        list.as_array().unwrap().iter().map(|line| line["snapshot"].as_str().unwrap().to_owned()).collect()
    }

    fn catalog_file(&self, snapshot: &str) -> PathBuf {
        let (image, time) = snapshot.split_once('@').unwrap();
        self.store().join("catalog").join(image).join(format!("{time}.snap"))
    }
}

fn vmstore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmstore"));
    command.stdin(Stdio::null());
    for variable in ["VMSTORE_STORE", "VMSTORE_LOG", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Bytes that do not compress (xorshift64).
fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ u64::from(seed);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

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
fn lists_are_filtered() {
    let site = Site::new();
    let disk = site.disk("a.raw", 1, 1);
    for (image, label) in [("web01", "os=debian12"), ("web02", "os=debian13"), ("db01", "os=debian12")] {
        site.succeed(&["ingest", &disk, "--image", image, "--time", NIGHT, "--label", label, "--label", "x=y"]);
    }
    let names = |args: &[&str]| -> Vec<String> {
        let list = site.json(&[&["list"], args].concat());
        list.as_array().unwrap().iter().map(|line| line["image"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&[]), ["db01", "web01", "web02"]);
    assert_eq!(names(&["web02"]), ["web02"]);
    assert_eq!(names(&["--label", "os=debian12"]), ["db01", "web01"]);
    assert_eq!(names(&["--label", "os=debian12", "--label", "x=y"]), ["db01", "web01"]);
    assert!(names(&["web02", "--label", "os=debian12"]).is_empty());
    let table = site.succeed(&["list", "web01"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("SNAPSHOT") && lines[0].contains("ADDED"), "{table}");
    assert!(lines[1].starts_with(&format!("web01@{NIGHT}")) && lines[1].contains("os=debian12 x=y"), "{table}");
    assert!(table.lines().all(|line| line == line.trim_end()));
}

#[test]
fn what_is_not_found_is_said_with_5_and_help() {
    let site = Site::with_nights(&[NIGHT]);
    let disk = site.disk("a.raw", 1, 1);
    site.succeed(&["ingest", &disk, "--image", "mail", "--time", NIGHT]);
    for args in
        [&["show", "web1"][..], &["list", "web1"], &["remove", "web1"], &["prune", "--keep-last=1", "--image=web1"]]
    {
        let said = site.fail(args, 5);
        assert!(said.contains("did you mean web01?"), "{args:?}: {said}");
    }
    let said = site.fail(&["show", "web01@2025"], 5);
    assert!(said.contains(NIGHT), "{said}");
    assert_eq!(site.snapshots().len(), 2);
}

#[test]
fn an_unclear_time_is_said_with_2() {
    let site = Site::with_nights(&["20261120T020000Z", "20261120T140000Z"]);
    let said = site.fail(&["remove", "web01@20261120"], 2);
    assert!(said.contains("20261120T140000Z"), "{said}");
    assert_eq!(site.snapshots().len(), 2);
}

#[test]
fn removing_is_all_or_nothing() {
    let nights = ["20261118T020000Z", "20261119T020000Z", "20261120T020000Z"];
    let site = Site::with_nights(&nights);
    site.fail(&["remove", "web01@20261118", "web01@20251119"], 5);
    site.succeed(&["hold", "web01@20261119", "--reason", "audit"]);
    let said = site.fail(&["remove", "web01@20261118", "web01@20261119"], 6);
    assert!(said.contains("audit"), "{said}");
    assert_eq!(site.snapshots().len(), 3);
    let planned = site.json(&["remove", "--dry-run", "web01@20261118"]);
    assert_eq!(planned["removed"][0], "web01@20261118T020000Z");
    assert_eq!(site.snapshots().len(), 3);
    // Both mean the same one: looked up before any is removed.
    let removed = site.json(&["remove", "web01", "web01@20261120"]);
    assert_eq!(removed, serde_json::json!({"dry_run": false, "removed": ["web01@20261120T020000Z"]}));
    site.succeed(&["release", "web01@20261119", "--reason", "audit"]);
    site.succeed(&["remove", "web01@20261118", "web01@20261119"]);
    assert!(site.snapshots().is_empty());
}

#[test]
fn holds_have_reasons() {
    let site = Site::with_nights(&[NIGHT]);
    site.fail(&["release", "web01"], 5);
    site.succeed(&["hold", "web01"]);
    assert_eq!(site.json(&["hold", "web01", "--reason", "audit"])["holds"], serde_json::json!(["audit", "operator"]));
    site.succeed(&["hold", "web01", "--reason", "audit"]);
    assert!(site.fail(&["release", "web01", "--reason", "other"], 5).contains("audit"));
    let released = site.json(&["release", "web01"]);
    assert_eq!((&released["held"], &released["holds"]), (&true.into(), &serde_json::json!(["audit"])));
    assert_eq!(site.json(&["release", "web01", "--all"])["held"], false);
    site.fail(&["hold", "web01", "--reason", ""], 2);
    site.fail(&["hold", "web01", "--reason", "two\nlines"], 2);
}

#[test]
fn prune_keeps_what_rules_and_holds_say() {
    let nights = ["20261117T020000Z", "20261118T020000Z", "20261119T020000Z", "20261120T020000Z"];
    let site = Site::with_nights(&nights);
    site.succeed(&["hold", "web01@20261117"]);
    let planned = site.json(&["prune", "--keep-last", "1", "--keep-daily", "2", "--dry-run"]);
    assert_eq!((&planned["kept"], &planned["removed"], &planned["dry_run"]), (&3.into(), &1.into(), &true.into()));
    let expected = serde_json::json!([
        {"snapshot": "web01@20261117T020000Z", "action": "keep", "reasons": ["held"]},
        {"snapshot": "web01@20261118T020000Z", "action": "remove", "reasons": []},
        {"snapshot": "web01@20261119T020000Z", "action": "keep", "reasons": ["daily"]},
        {"snapshot": "web01@20261120T020000Z", "action": "keep", "reasons": ["last", "daily"]},
    ]);
    assert_eq!(planned["snapshots"], expected);
    assert_eq!(site.snapshots().len(), 4);
    let text = site.succeed(&["prune", "--keep-daily", "2"]);
    assert!(text.contains("vmstore gc") && text.contains("removed 1 snapshot and kept 3"), "{text}");
    assert_eq!(site.snapshots().len(), 3);
}

#[test]
fn prune_takes_its_rules_from_the_configuration() {
    let site = Site::with_nights(&["20261119T020000Z", "20261120T020000Z"]);
    let config = site.store().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("# keep_last = 1", "keep_last = 1")).unwrap();
    site.succeed(&["prune", "--image", "web01"]);
    assert_eq!(site.snapshots(), ["web01@20261120T020000Z"]);
}

#[test]
fn a_damaged_entry_is_listed_and_hides_nothing() {
    let site = Site::with_nights(&["20261119T020000Z", "20261120T020000Z"]);
    let file = site.catalog_file("web01@20261119T020000Z");
    let mut bytes = fs::read(&file).unwrap();
    bytes[40] ^= 1;
    fs::write(&file, bytes).unwrap();
    let output = site.run(&["list", "--json"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("web01@20261119T020000Z"), "{}", stderr(&output));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(list[0]["error"].is_string() && list[0]["snapshot"] == "web01@20261119T020000Z");
    assert_eq!(list[1]["virtual_bytes"], 8 * MIB);
    let output = site.run(&["list"]);
    assert!(code(&output) == 3 && stdout(&output).contains("unreadable"));
    for command in [&["show", "web01@20261119"][..], &["remove", "web01@20261119"], &["hold", "web01@20261119"]] {
        site.fail(command, 3);
    }
    let output = site.run(&["prune", "--keep-last", "1"]);
    assert_eq!(code(&output), 3);
    assert!(stdout(&output).contains("unreadable"));
    assert!(file.exists());
}

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
    // What needs only the catalog works all the same.
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

fn terminate(child: &Child) {
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
}

/// Reads what a child says until it has said `word`.
fn wait_for(child: &mut Child, word: &str) -> String {
    let stderr = child.stderr.as_mut().unwrap();
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(word) && stderr.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let site = Site::with_nights(&[NIGHT]);
    for args in
        [&["list"][..], &["list", "--json"], &["show", "web01"], &["hold", "web01"], &["completions", "bash"], &["man"]]
    {
        let mut child = site.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn a_result_that_can_not_be_written_is_a_failure() {
    let site = Site::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = site.command(&["list"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(code(&output), 1);
}

#[test]
fn quiet_prints_no_report_but_what_was_asked_for() {
    let site = Site::with_nights(&[NIGHT]);
    assert_eq!(site.succeed(&["hold", "web01", "--quiet"]), "");
    assert!(site.succeed(&["list", "--quiet"]).contains("web01"));
    assert!(site.succeed(&["hold", "web01", "--quiet", "--json"]).contains("\"held\":true"));
}

#[test]
fn logs_and_errors_can_be_json() {
    let site = Site::new();
    let said = site.fail(&["show", "web01", "--log-format", "json"], 5);
    let line: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!((&line["level"], &line["fields"]["exit_code"]), (&"ERROR".into(), &5.into()));
    assert!(line["fields"]["message"].as_str().unwrap().contains("web01"));
}

#[test]
fn progress_goes_to_standard_error_if_asked() {
    let site = Site::new();
    let mut child = site.command(&["ingest", "-", "--image", "a", "--progress", "always"]).piped().spawn().unwrap();
    let said = wait_for(&mut child, "ingest a: 0 B\n");
    assert!(said.ends_with("ingest a: 0 B\n"), "{said}");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

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

#[test]
fn differences_are_ranges_and_their_sum() {
    let site = Site::with_nights(&["20261119T020000Z"]);
    let disk = site.path("web01.raw");
    File::options().write(true).open(&disk).unwrap().write_all_at(b"changed", 5 * MIB as u64).unwrap();
    site.succeed(&["ingest", disk.to_str().unwrap(), "--image", "web01", "--time", NIGHT]);
    let [a, b] = ["web01@20261119T020000Z", "web01@20261120T020000Z"];
    let diff = site.json(&["diff", "web01@20261119", "web01"]);
    assert_eq!((&diff["a"], &diff["b"]), (&a.into(), &b.into()));
    let ranges = diff["ranges"].as_array().unwrap();
    let [offset, bytes] = ["offset", "bytes"].map(|key| ranges[0][key].as_u64().unwrap());
    assert!(ranges.len() == 1 && offset <= 5 * MIB as u64 && offset + bytes >= 5 * MIB as u64 + 7, "{diff}");
    assert_eq!(diff["changed_bytes"], bytes);
    assert!(site.succeed(&["diff", a, b]).starts_with(&format!("{offset} {bytes}\n")));
    let equal = site.json(&["diff", b, b]);
    assert_eq!((&equal["changed_bytes"], &equal["ranges"]), (&0.into(), &serde_json::json!([])));
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

/// A command that is fed and listened to.
trait Piped {
    fn piped(&mut self) -> &mut Self;
}

impl Piped for Command {
    fn piped(&mut self) -> &mut Self {
        self.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
    }
}
