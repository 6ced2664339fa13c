//! Valid inputs of the targets that read clones, locks and mounts.

use chunkstore::format::limits::IMAGE_BYTES_MAX;
use replicate::rpc::wire::WireError;
use serde_json::json;

use super::super::{Example, reseal};
use super::{catalog_file, json};

const SECTOR_BYTES: usize = 512;
/// Bytes of a disk that a sector of a map covers.
const SECTOR_DISK_BYTES: u64 = 4064 * 4096;

/// As in disks/CLONES.md.
fn record() -> serde_json::Value {
    json!({
        "version": 1,
        "name": "web01-test",
        "snapshot": "web01@20261120T020000Z",
        "entry": "e532cc91b021f1a9a9fd7f4b1994f2d300eaa25b6d1c7be7030ebbcf832d4007",
        "root": "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "base_bytes_max": 8_589_934_592_u64,
        "size_bytes": 8_589_934_592_u64,
        "layers": [{ "number": 1, "bytes_max": 8_589_934_592_u64 }, { "number": 2 }],
        "releases": ["web01@20261121T020000Z"],
        "created": "2026-11-20T09:00:00Z",
    })
}

pub(in super::super) fn clone_record() -> Vec<Example> {
    let mut fresh = record();
    fresh["layers"] = json!([{ "number": 1 }]);
    fresh["root"] = json!(null);
    fresh.as_object_mut().expect("it is one").remove("releases");
    let mut newer = record();
    newer["layers"][0]["later"] = json!(-1.5e-7);
    newer["weight"] = json!({ "deep": [[1, -2, { "x": null }]] });
    let mut last = record();
    last["layers"] = json!([{ "number": u32::MAX - 1 }]);
    vec![("fresh", json(&fresh)), ("two_layers", json(&record())), ("newer", json(&newer)), ("last", json(&last))]
}

pub(in super::super) fn clone_map() -> Vec<Example> {
    let last = (IMAGE_BYTES_MAX - 1) / SECTOR_DISK_BYTES;
    vec![("runs", map(0)), ("end", map(last - 2)), ("empty", map(0)[..8].to_vec())]
}

/// The map's sectors from this one on: the first has all blocks, the next has none, the one after that a few.
fn map(first: u64) -> Vec<u8> {
    let mut sectors = [[0xff; SECTOR_BYTES], [0; SECTOR_BYTES], [0; SECTOR_BYTES]];
    sectors[2][..2].copy_from_slice(&[0xf8, 0x1f]);
    [first.to_le_bytes().to_vec(), reseal::map_sectors(first, &sectors.concat())].concat()
}

pub(in super::super) fn clone_socket() -> Vec<Example> {
    let commit = json!({ "commit": {
        "image": "web01-test", "time": "20261121T020000Z", "labels": { "state": "installed" },
        "now": "2026-11-21T02:00:00Z",
    } });
    let snapshot = String::from_utf8(catalog_file().remove(1).1).expect("catalog files are text");
    let committed = json!({ "committed": {
        "snapshot": snapshot, "base": "web01@20261120T020000Z", "written_bytes": 10_485_760,
    } });
    let progress = json!({ "progress": { "done_bytes": 4_194_304, "total_bytes": 10_485_760 } });
    let refused = WireError::Refused { what: "snapshot web01@20261121T020000Z exists already".to_owned() };
    let busy = WireError::Busy { holder: "process 1 (a\u{1b}[2J)".to_owned() };
    let lines = |lines: &[serde_json::Value]| lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
    vec![
        ("question", lines(&[commit])),
        ("done", lines(&[progress.clone(), committed])),
        ("refused", lines(&[progress, json!({ "failed": refused })])),
        ("busy", lines(&[json!({ "failed": busy })])),
    ]
}

pub(in super::super) fn lock_holder() -> Vec<Example> {
    vec![("process", "process 4711 (vmfs mount /mnt/vm --store /srv/vmstore)".into())]
}

pub(in super::super) fn mountinfo() -> Vec<Example> {
    let text = r"22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:26 / /dev/shm rw shared:7 master:2 - tmpfs tmpfs rw
536 29 0:53 / /mnt/a\040b\134c rw,nosuid,nodev shared:7 - fuse.vmfs /srv/my\011\012store rw,user_id=0
";
    vec![("three", text.into())]
}
