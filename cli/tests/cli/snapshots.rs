//! Commands on snapshots: `list`, `show`, `diff`, `remove`, `hold`, `release` and `prune`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::common::{MIB, NIGHT, Site, code, stderr, stdout};

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
