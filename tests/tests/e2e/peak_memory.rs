//! How much memory commands take: bounded, whatever the size of the image.

use tests::images;
use tests::{Vmstore, measured};

const MIB: u64 = 1 << 20;
/// Of which seven tenths are data.
const IMAGE_BYTES: u64 = 860 * MIB;
const PEAK_BYTES_MAX: u64 = 300_000_000;

#[test]
fn no_command_takes_much_memory() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let vmstore = Vmstore::init_in(dir.path());
    let path = |name| dir.path().join(name).into_os_string().into_string().unwrap();
    let (first, next, restored) = (path("first"), path("next"), path("restored"));
    images::make(first.as_ref(), IMAGE_BYTES, 1);
    images::make_next(next.as_ref(), first.as_ref(), MIB, 2);
    let commands: &[&[&str]] = &[
        &["ingest", &first, "--image", "web01", "--time", "20261119T020000Z"],
        &["ingest", &next, "--image", "web01", "--time", "20261120T020000Z"],
        &["restore", "web01", &restored],
        &["diff", "web01@20261119", "web01@20261120"],
        &["verify"],
        &["stats"],
        &["remove", "web01@20261119"],
        &["gc"],
        &["reindex"],
    ];
    for command in commands {
        let ended = measured(&mut vmstore.command(*command));
        println!("{}: {} MB", command[0], ended.peak_bytes / 1_000_000);
        assert!(ended.status.success(), "{command:?}: {}", ended.status);
        assert!(ended.peak_bytes < PEAK_BYTES_MAX, "{command:?} took {} bytes", ended.peak_bytes);
    }
    images::assert_same(restored.as_ref(), next.as_ref());
}
