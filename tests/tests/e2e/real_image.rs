//! Nights of a real machine: two images of Debian with a day of package and database work between them.
//!
//! The images are those of `tests/make-images small`, kept in `VMSTORE_IMAGES` (`~/.cache/vmstore/images`).

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;
use tests::Vmstore;
use tests::devices::tool;
use tests::images::{self, Rng, assert_same};

const NIGHT1: &str = "20261118T020000Z";
const NIGHT2: &str = "20261119T020000Z";
const NIGHT3: &str = "20261120T020000Z";
/// Growth allowed for the ingest of an unchanged image: its entry and little more.
const UNCHANGED_BYTES_MAX: u64 = 8 << 10;
const WINDOW_BYTES: u64 = 1 << 20;

static IMAGES: LazyLock<PathBuf> = LazyLock::new(|| images::real("small"));

/// The image after the first or the second day.
fn day(number: u32) -> PathBuf {
    IMAGES.join(format!("small-day{number}.raw"))
}

/// On the disk of the build, because the images may be larger than what `/tmp` has.
fn scratch() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn ingest(vmstore: &Vmstore, source: &Path, image: &str, time: &str) -> Value {
    let args = ["ingest", source.to_str().unwrap(), "--image", image, "--time", time];
    vmstore.json(args)
}

fn name(night: &str) -> String {
    format!("web01@{night}")
}

fn two_nights(dir: &Path) -> Vmstore {
    let vmstore = Vmstore::init_in(dir);
    ingest(&vmstore, &day(1), "web01", NIGHT1);
    ingest(&vmstore, &day(2), "web01", NIGHT2);
    vmstore
}

/// The bytes of the files below `path`.
fn file_bytes(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    if !metadata.is_dir() {
        return metadata.len();
    }
    fs::read_dir(path).unwrap().map(|entry| file_bytes(&entry.unwrap().path())).sum()
}

/// Size of the store's ground truth.
fn truth_bytes(vmstore: &Vmstore) -> u64 {
    ["packs", "catalog"].iter().map(|dir| file_bytes(&vmstore.store().join(dir))).sum()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number {field:?} in {value}"))
}

#[test]
fn a_second_night_is_nearly_free_and_a_third_that_changed_nothing_is_free() {
    let dir = scratch();
    let vmstore = Vmstore::init_in(dir.path());
    let mut grown = Vec::new();
    for (source, night) in [(day(1), NIGHT1), (day(2), NIGHT2), (day(2), NIGHT3)] {
        let before_bytes = truth_bytes(&vmstore);
        let report = ingest(&vmstore, &source, "web01", night);
        let grown_bytes = truth_bytes(&vmstore) - before_bytes;
        assert_eq!(number(&report, "stored_bytes"), grown_bytes, "{report}");
        let shown = vmstore.json(["show", &name(night)]);
        assert_eq!(shown, report, "show and ingest print the same");
        assert_describes(&shown, &source, night);
        grown.push(grown_bytes);
    }
    assert!(grown[1] < grown[0] / 10, "{grown:?}");
    assert!(grown[2] < UNCHANGED_BYTES_MAX, "{grown:?}");
    assert_eq!(vmstore.snapshots(), [NIGHT1, NIGHT2, NIGHT3].map(name));
    assert_eq!(vmstore.json(["verify"])["sound"], true);
}

fn assert_describes(shown: &Value, source: &Path, night: &str) {
    assert_eq!((&shown["image"], &shown["snapshot"]), (&"web01".into(), &name(night).into()));
    let size_bytes = source.metadata().unwrap().len();
    assert_eq!(number(shown, "virtual_bytes"), size_bytes);
    assert_eq!(number(shown, "data_bytes") + number(shown, "zero_bytes"), size_bytes);
    let (chunks, new_chunks) = (number(shown, "chunks"), number(shown, "new_chunks"));
    assert!(0 < chunks && new_chunks <= chunks, "{shown}");
    assert!(number(shown, "new_bytes") <= number(shown, "data_bytes"), "{shown}");
    assert!(number(shown, "delta_chunks") <= new_chunks, "{shown}");
    assert!(number(shown, "reused_boundaries") <= chunks, "{shown}");
    assert_eq!(night != NIGHT1, number(shown, "reused_boundaries") > chunks / 2, "{shown}");
    assert!(night != NIGHT2 || number(shown, "delta_chunks") > 0, "{shown}");
    assert_eq!(night == NIGHT3, new_chunks == 0, "{shown}");
    for field in ["elapsed_s", "throughput"] {
        assert!(shown[field].as_f64().is_some_and(|value| value > 0.0), "{field} in {shown}");
    }
}

#[test]
fn a_diff_covers_every_changed_byte_and_nothing_that_is_equal() {
    let dir = scratch();
    let vmstore = two_nights(dir.path());
    let diff = vmstore.json(["diff", &name(NIGHT1), &name(NIGHT2)]);
    let files = [1, 2].map(|number| File::open(day(number)).unwrap());
    let mut end = 0;
    let mut changed_bytes = 0;
    for range in diff["ranges"].as_array().unwrap() {
        let (offset, bytes) = (number(range, "offset"), number(range, "bytes"));
        assert!(offset > end || (offset, end) == (0, 0), "ranges in order, and none touches the next: {range}");
        assert!(are_equal(&files, end, offset), "{end}..{offset} differs and is not reported");
        assert!(!are_equal(&files, offset, offset + bytes), "{range} is equal");
        end = offset + bytes;
        changed_bytes += bytes;
    }
    assert!(changed_bytes > 0);
    assert_eq!(number(&diff, "changed_bytes"), changed_bytes);
    assert!(are_equal(&files, end, day(2).metadata().unwrap().len()), "after {end}");

    let equal = vmstore.json(["diff", "web01", &name(NIGHT2)]);
    assert_eq!((&equal["ranges"], number(&equal, "changed_bytes")), (&Value::Array(Vec::new()), 0));
}

fn are_equal(files: &[File; 2], start: u64, end: u64) -> bool {
    (start..end).step_by(WINDOW_BYTES as usize).all(|offset| {
        let [one, other] = files.each_ref().map(|file| {
            let mut window = vec![0; (end - offset).min(WINDOW_BYTES) as usize];
            file.read_exact_at(&mut window, offset).unwrap();
            window
        });
        one == other
    })
}

#[test]
fn nights_come_back_bit_for_bit_sparse_and_as_sound_file_systems() {
    let dir = scratch();
    let vmstore = two_nights(dir.path());
    for (number, night) in [(1, NIGHT1), (2, NIGHT2)] {
        let (source, restored) = (day(number), dir.path().join(format!("{night}.raw")));
        vmstore.run(["restore", &name(night), restored.to_str().unwrap(), "--no-sync"]);
        assert_same(&restored, &source);
        let [blocks, source_blocks] = [&restored, &source].map(|path| path.metadata().unwrap().blocks());
        // Only zeros of 64 KiB and more become holes.
        assert!(blocks <= source_blocks + source_blocks / 20, "{blocks} blocks of {source_blocks}");
        tool("e2fsck", &[OsStr::new("-fn"), restored.as_os_str()]);
        fs::remove_file(restored).unwrap();
    }
}

#[test]
fn held_snapshots_stay_and_pruned_ones_free_their_space() {
    let dir = scratch();
    let vmstore = two_nights(dir.path());
    let other = dir.path().join("other.raw");
    for (seed, night) in [(1, NIGHT1), (2, NIGHT2)] {
        fs::write(&other, Rng::new(seed).noise(16 << 20)).unwrap();
        ingest(&vmstore, &other, "other", night);
    }

    let held = vmstore.json(["hold", &name(NIGHT1), "--reason", "audit"]);
    assert_eq!((&held["held"], &held["holds"][0]), (&true.into(), &"audit".into()));
    let said = vmstore.expect_exit(6, ["remove", &name(NIGHT1)]);
    assert!(said.contains("audit") && said.contains("vmstore release"), "{said}");
    vmstore.run(["prune", "--keep-last", "1"]);
    let left = [format!("other@{NIGHT2}"), name(NIGHT1), name(NIGHT2)];
    assert_eq!(vmstore.snapshots(), left);

    vmstore.run(["release", &name(NIGHT1), "--reason", "audit"]);
    vmstore.run(["prune", "--keep-last", "1"]);
    assert_eq!(vmstore.snapshots(), [left[0].clone(), left[2].clone()]);
    let packs = vmstore.store().join("packs");
    let before_bytes = file_bytes(&packs);
    let freed_bytes = number(&vmstore.json(["gc"]), "freed_bytes");
    assert!(freed_bytes >= 16 << 20, "{freed_bytes}");
    assert_eq!(before_bytes - file_bytes(&packs), freed_bytes);
    assert_eq!(vmstore.json(["verify"])["sound"], true);
    vmstore.assert_holds("web01", &day(2));
    vmstore.assert_holds("other", &other);
}

#[test]
fn without_its_index_a_store_loses_nothing() {
    let dir = scratch();
    let vmstore = two_nights(dir.path());
    fs::remove_dir_all(vmstore.store().join("index")).unwrap();
    let report = ingest(&vmstore, &day(2), "web01", NIGHT3);
    assert!(number(&report, "stored_bytes") < UNCHANGED_BYTES_MAX, "{report}");

    fs::remove_dir_all(vmstore.store().join("index")).unwrap();
    assert_eq!(vmstore.snapshots(), [NIGHT1, NIGHT2, NIGHT3].map(name));
    assert_eq!(vmstore.json(["verify"])["sound"], true);
    vmstore.run(["remove", &name(NIGHT3)]);
    fs::remove_dir_all(vmstore.store().join("index")).unwrap();
    vmstore.run(["gc"]);
    vmstore.assert_holds(&name(NIGHT1), &day(1));
    vmstore.assert_holds("web01", &day(2));
}

/// The beginning of the real image, a little changed every night.
#[test]
fn thirty_nights_stay_sound_while_old_ones_are_pruned() {
    let dir = scratch();
    let vmstore = Vmstore::init_in(dir.path());
    let disk = dir.path().join("web01.raw");
    copy_beginning(&disk, 256 << 20);
    let mut rng = Rng::new(30);
    let mut first_bytes = 0;
    let kept = |night: u32| dir.path().join(format!("kept-{night}.raw"));
    for night in 1..=30 {
        let report = ingest(&vmstore, &disk, "web01", &format!("202611{night:02}T020000Z"));
        let stored_bytes = number(&report, "stored_bytes");
        if night == 1 {
            first_bytes = stored_bytes;
        } else {
            assert!(stored_bytes < first_bytes / 20, "{first_bytes} bytes and then {report}");
        }
        if [1, 23, 24, 27, 30].contains(&night) {
            fs::copy(&disk, kept(night)).unwrap();
        }
        work(&disk, &mut rng);
    }
    assert_eq!(vmstore.snapshots().len(), 30);
    assert_eq!(vmstore.json(["verify"])["sound"], true);
    vmstore.assert_holds("web01@20261101", &kept(1));
    vmstore.assert_holds("web01@20261123", &kept(23));

    vmstore.run(["prune", "--keep-daily", "7", "--gc"]);
    assert_eq!(vmstore.snapshots().len(), 7);
    assert_eq!(vmstore.json(["verify"])["sound"], true);
    for night in [24, 27, 30] {
        vmstore.assert_holds(&format!("web01@202611{night}"), &kept(night));
    }
}

/// Makes a file of the image's first bytes, with its holes.
fn copy_beginning(to: &Path, bytes: u64) {
    let (image, copy) = (File::open(day(1)).unwrap(), File::create(to).unwrap());
    copy.set_len(bytes).unwrap();
    let mut window = vec![0; WINDOW_BYTES as usize];
    for offset in (0..bytes).step_by(window.len()) {
        image.read_exact_at(&mut window, offset).unwrap();
        if window.iter().any(|byte| *byte != 0) {
            copy.write_all_at(&window, offset).unwrap();
        }
    }
}

/// The changes of a day: a few pages written here and there, a short file, and one that is deleted.
fn work(disk: &Path, rng: &mut Rng) {
    let file = File::options().write(true).open(disk).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    let mut write = |bytes: usize, noisy: bool| {
        let content = if noisy { rng.noise(bytes) } else { vec![0; bytes] };
        file.write_all_at(&content, rng.below(pages - bytes as u64 / 4096) * 4096).unwrap();
    };
    for _ in 0..12 {
        write(4096, true);
    }
    write(200 << 10, true);
    write(128 << 10, false);
}
