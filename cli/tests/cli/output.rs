//! Output: reports, logs and progress go to the right stream, and readers may go away.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;

use crate::common::{NIGHT, Piped, Site, code, stderr, wait_for};

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
