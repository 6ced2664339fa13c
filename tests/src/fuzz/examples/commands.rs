//! Valid inputs of the targets that read options, and what other processes tell commands.

use chunkstore::catalog::IngestReport;
use chunkstore::maintenance::gc::GcReport;
use chunkstore::maintenance::repair::RepairReport;
use chunkstore::maintenance::stats::{ImageStats, Stats};
use chunkstore::maintenance::verify::{DamagedRange, VerifyReport};
use disks::stats::Statistics;
use fusefs::status::{Requests, Status};
use serde_json::json;

use super::super::Example;
use super::json;

pub(in super::super) fn options() -> Vec<Example> {
    let sizes = "65536\n64K\n64KiB\n1 m\n200GiB\n0\n15T\n";
    let times = "0s\n90s\n2min\n1h 30m\nPT2M\n250ms\n1193046h\n9223372036854775807s\n";
    let prune = "3\n2\n14\n8\n1\n1\n20261120T020000Z\n20261120T023000Z\n2026-11-21\n2026-01-01T00:30:00+01:00\n";
    vec![
        ("sizes", sizes.into()),
        ("times", times.into()),
        ("prune", format!("{prune}Europe/Berlin\n").into()),
        ("no_rule", "UTC\n20261120T020000Z\n".into()),
    ]
}

pub(in super::super) fn mount_status() -> Vec<Example> {
    let more = json!({ "reading": Statistics::default(), "upstream": { "address": "tls://site-b", "linked": true } });
    let plain = Status {
        version: "0.1.0".to_owned(),
        pid: 4711,
        store: "/srv/vmstore".to_owned(),
        uptime_s: 12.5,
        open_files: 1,
        requests: Requests { reads: 7, read_bytes: 70_000, ..Requests::default() },
        more: more.as_object().expect("it is one").clone(),
    };
    let huge = Statistics { cache_hits: u64::MAX, cache_misses: u64::MAX, ..Statistics::default() };
    let more = json!({ "reading": huge, "\u{1b}[2J": "\u{9b}2J" });
    let hostile = Status {
        version: "\u{1b}[2J".to_owned(),
        uptime_s: 1e300,
        more: more.as_object().expect("it is one").clone(),
        ..plain.clone()
    };
    vec![("plain", json(&plain)), ("hostile", json(&hostile))]
}

pub(in super::super) fn reports() -> Vec<Example> {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let damage = DamagedRange {
        snapshot: "web01@20261120T020000Z".to_owned(),
        offset_bytes: 4096,
        bytes: 8192,
        id: "chunk af1349b9".to_owned(),
    };
    let beyond = DamagedRange { offset_bytes: u64::MAX, ..damage.clone() };
    let verify = VerifyReport {
        packs: 2,
        records: 17,
        problems: lines(&["pack 3: its footer is damaged"]),
        damage: vec![damage, beyond],
        elapsed_s: 0.25,
        ..VerifyReport::default()
    };
    let repair = RepairReport {
        mended: lines(&["config.toml: restored"]),
        copied_records: u64::MAX,
        quarantined: lines(&["quarantine/packs.x"]),
        restored_in_part: lines(&["web01@20261120T020000Z"]),
        verify: verify.clone(),
        ..RepairReport::default()
    };
    let image = ImageStats { image: "web01".to_owned(), snapshots: 3, logical_bytes: 5 << 30, only_bytes: 1 << 20 };
    let gc = GcReport { kept_damaged: lines(&["pack 3"]), live_records: 1, elapsed_s: 1.5, ..GcReport::default() };
    let stats = Stats { ratio: 12.5, per_image: vec![image], ..Stats::default() };
    let ingest = IngestReport { parent: Some("web01@20261119T020000Z".to_owned()), ..IngestReport::default() };
    vec![
        ("verify", json(&verify)),
        ("repair", json(&repair)),
        ("gc", json(&gc)),
        ("stats", json(&stats)),
        ("ingest", json(&ingest)),
    ]
}
