//! `kill -9` at random moments, and Ctrl-C: what was acknowledged is there bit for bit, what was not is not half
//! there, work goes on from the packs that were sealed, and nothing stays that gc can't free.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::images::{self, Rng};
use tests::{Vmstore, expect_exit_of};

const KILLS: u32 = 10;
/// Of those, the least that must hit a command that still runs.
const HITS_MIN: u32 = 3;
const IMAGE_BYTES: u64 = 250 << 20;
const FIRST: &str = "20261119T020000Z";
const SECOND: &str = "20261120T020000Z";

/// A directory with a store and a base image in it, which is ingested as `base`.
struct Site {
    dir: TempDir,
    vmstore: Vmstore,
}

impl Site {
    fn new(base_bytes: u64) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let vmstore = Vmstore::init_in(dir.path());
        let site = Self { dir, vmstore };
        images::make(&site.path("base.raw"), base_bytes, 1);
        site.ingest("base.raw", "base", FIRST);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ingest_args(&self, file: &str, image: &str, time: &str) -> [String; 6] {
        let path = self.path(file).into_os_string().into_string().unwrap();
        ["ingest", &path, "--image", image, "--time", time].map(str::to_owned)
    }

    /// Ingests and returns the plain bytes that were new.
    fn ingest(&self, file: &str, image: &str, time: &str) -> u64 {
        self.vmstore.json(self.ingest_args(file, image, time))["new_bytes"].as_u64().unwrap()
    }

    fn assert_sound(&self) {
        self.vmstore.run(["verify"]);
        assert_eq!(self.vmstore.files("packs", ".part"), [""; 0]);
    }

    /// Collects; then nothing is left to collect.
    fn collect_all(&self) {
        self.vmstore.run(["gc"]);
        let again = self.vmstore.json(["gc"]);
        for what in ["freed_bytes", "removed_packs", "rewritten_packs"] {
            assert_eq!(again[what], 0, "{again}");
        }
    }
}

/// How long a command takes that nothing disturbs.
fn duration(command: &mut Command) -> Duration {
    let started = Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", tests::stderr(&output));
    started.elapsed()
}

/// Kills commands at random moments, and counts how many of them were still running.
struct Killer {
    rng: Rng,
    /// How long a command takes that is left alone, or somewhat less.
    whole: Duration,
    hits: u32,
}

/// How a command was found that was to be killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Running,
    /// It had ended, and well.
    Ended,
}

impl Killer {
    fn new(rng: Rng, whole: Duration) -> Self {
        Self { rng, whole, hits: 0 }
    }

    /// Starts a command and kills it after a random part of the whole.
    fn kill(&mut self, command: &mut Command) -> Found {
        let (whole, fraction) = (self.whole, self.rng.fraction());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(whole.mul_f64(fraction));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() || output.status.code().is_none(), "{command:?}: {}", tests::stderr(&output));
        println!("killed after {fraction:.3} of {whole:?}: {}", output.status);
        if output.status.success() {
            // The first run may have been a slow one; if all kills came late, the test would show nothing.
            self.whole = whole.mul_f64(0.7);
            return Found::Ended;
        }
        self.whole = whole.mul_f64(1.1);
        self.hits += 1;
        Found::Running
    }

    /// Fails if so few commands were killed while they ran that the test has shown nothing.
    fn assert_has_hit(&self) {
        assert!(self.hits >= HITS_MIN, "only {} kills hit a command that takes {:?}", self.hits, self.whole);
    }
}

#[test]
fn ingest_killed_at_any_moment_goes_on_from_sealed_packs() {
    let rng = Rng::from_clock();
    let site = Site::new(IMAGE_BYTES / 5);
    images::make(&site.path("new.raw"), IMAGE_BYTES, 2);
    let args = site.ingest_args("new.raw", "new", SECOND);
    let mut killer = Killer::new(rng, duration(&mut site.vmstore.command(&args)));
    let whole_new_bytes = site.vmstore.json(["show", "new"])["new_bytes"].as_u64().unwrap();
    for _ in 0..KILLS {
        site.vmstore.run(["remove", "new"]);
        site.collect_all();
        let packs_before = site.vmstore.files("packs", ".pack").len();

        let found = killer.kill(&mut site.vmstore.command(&args));
        let sealed = site.vmstore.files("packs", ".pack").len() > packs_before;
        let published = site.vmstore.snapshots().iter().any(|snapshot| snapshot.starts_with("new@"));
        assert!(published || found == Found::Running);
        site.assert_sound();
        site.vmstore.assert_holds("base", &site.path("base.raw"));

        if !published {
            let new_bytes = site.ingest("new.raw", "new", SECOND);
            assert!(new_bytes <= whole_new_bytes);
            assert!(new_bytes < whole_new_bytes || !sealed, "{new_bytes} new although packs had been sealed");
        }
        site.vmstore.assert_holds("new", &site.path("new.raw"));
    }
    assert_eq!(site.vmstore.snapshots().len(), 2);
    site.assert_sound();
    site.collect_all();
    site.assert_sound();
    killer.assert_has_hit();
}

#[test]
fn ingest_of_deltas_killed_at_any_moment() {
    let rng = Rng::from_clock();
    let site = Site::new(IMAGE_BYTES / 2);
    images::make_next(&site.path("next.raw"), &site.path("base.raw"), 256 << 10, 3);
    let args = site.ingest_args("next.raw", "base", SECOND);
    let mut killer = Killer::new(rng, duration(&mut site.vmstore.command(&args)));
    for _ in 0..KILLS {
        site.vmstore.run(["remove", "base@20261120"]);
        site.collect_all();
        killer.kill(&mut site.vmstore.command(&args));
        site.assert_sound();
        site.vmstore.assert_holds("base@20261119", &site.path("base.raw"));
        if site.vmstore.snapshots().len() == 1 {
            site.ingest("next.raw", "base", SECOND);
        }
        site.vmstore.assert_holds("base@20261120", &site.path("next.raw"));
    }
    killer.assert_has_hit();
}

#[test]
fn remove_killed_at_any_moment_removes_all_of_a_snapshot_or_nothing() {
    const IMAGES: [&str; 4] = ["a", "b", "c", "d"];
    let rng = Rng::from_clock();
    let site = Site::new(8 << 20);
    for (image, seed) in IMAGES.into_iter().zip(10..) {
        images::make(&site.path(image), 8 << 20, seed);
        site.ingest(image, image, FIRST);
    }
    let remove = || site.vmstore.command(["remove"].iter().chain(&IMAGES));
    let mut killer = Killer::new(rng, duration(&mut remove()));
    for _ in 0..KILLS {
        let there = site.vmstore.snapshots();
        for image in IMAGES.into_iter().filter(|image| !there.contains(&format!("{image}@{FIRST}"))) {
            site.ingest(image, image, FIRST);
        }
        let found = killer.kill(&mut remove());
        site.assert_sound();
        let left = site.vmstore.snapshots();
        assert!(left.len() == 1 || found == Found::Running, "{left:?}");
        for snapshot in left {
            let image = snapshot.split('@').next().unwrap();
            let file = if image == "base" { "base.raw" } else { image };
            site.vmstore.assert_holds(&snapshot, &site.path(file));
        }
        assert!(site.vmstore.snapshots().contains(&format!("base@{FIRST}")));
    }
    site.collect_all();
    site.assert_sound();
    killer.assert_has_hit();
}

/// A site whose gc has to remove packs and to rewrite others, full ones and deltas.
fn site_with_garbage() -> Site {
    let site = Site::new(IMAGE_BYTES);
    let keep = [(0, 20), (100, 140), (200, 220)];
    punch_all_but(&site.path("kept.raw"), &site.path("base.raw"), &keep);
    images::make_next(&site.path("next.raw"), &site.path("base.raw"), 128 << 10, 3);
    punch_all_but(&site.path("kept-next.raw"), &site.path("next.raw"), &keep);
    site.ingest("next.raw", "base", SECOND);
    site.ingest("kept.raw", "kept", FIRST);
    site.ingest("kept-next.raw", "kept", SECOND);
    site.vmstore.run(["remove", "base@20261119", "base@20261120"]);
    site
}

/// Copies some MiB ranges of an image; all else becomes holes.
fn punch_all_but(path: &Path, image: &Path, mib_ranges: &[(usize, usize)]) {
    let bytes = fs::read(image).unwrap();
    let mut kept = vec![0; bytes.len()];
    for &(start, end) in mib_ranges {
        let range = (start << 20).min(bytes.len())..(end << 20).min(bytes.len());
        kept[range.clone()].copy_from_slice(&bytes[range]);
    }
    fs::write(path, kept).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    tests::devices::tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

#[test]
fn gc_killed_at_any_moment_loses_nothing_and_is_repeated() {
    let rng = Rng::from_clock();
    let site = site_with_garbage();
    let fresh = site.path("fresh");
    copy_tree(site.vmstore.store(), &fresh);
    let mut killer = Killer::new(rng, duration(&mut site.vmstore.command(["gc"])));
    let report = Vmstore::new(&fresh).json(["gc", "--dry-run"]);
    assert!(report["rewritten_packs"].as_u64() > Some(0), "this test has nothing to rewrite: {report}");
    for _ in 0..KILLS / 2 {
        copy_tree(&fresh, site.vmstore.store());
        for _ in 0..2 {
            killer.kill(&mut site.vmstore.command(["gc"]));
            site.assert_sound();
        }
        site.collect_all();
        site.assert_sound();
        assert_eq!(site.vmstore.snapshots(), [format!("kept@{FIRST}"), format!("kept@{SECOND}")]);
        site.vmstore.assert_holds("kept@20261119", &site.path("kept.raw"));
        site.vmstore.assert_holds("kept@20261120", &site.path("kept-next.raw"));
    }
    killer.assert_has_hit();
}

#[test]
fn reindex_killed_at_any_moment_is_made_up_for() {
    let rng = Rng::from_clock();
    let site = site_with_garbage();
    let mut killer = Killer::new(rng, (0..3).map(|_| duration(&mut site.vmstore.command(["reindex"]))).min().unwrap());
    for _ in 0..KILLS {
        killer.kill(&mut site.vmstore.command(["reindex"]));
        assert_eq!(site.vmstore.snapshots(), [format!("kept@{FIRST}"), format!("kept@{SECOND}")]);
        site.assert_sound();
        site.vmstore.assert_holds("kept@20261119", &site.path("kept.raw"));
    }
    // What the index knows shows in what is new: nothing.
    assert_eq!(site.ingest("next.raw", "again", FIRST), 0);
    site.vmstore.run(["remove", "again"]);
    site.collect_all();
    site.vmstore.assert_holds("kept@20261120", &site.path("kept-next.raw"));
    site.assert_sound();
    killer.assert_has_hit();
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

fn assert_interrupted(vmstore: &Vmstore, output: &Output) {
    expect_exit_of(output, 130, "an interrupted ingest");
    assert_eq!(output.stdout, b"");
    assert_eq!(vmstore.files("packs", ".part"), [""; 0]);
    assert_eq!(vmstore.snapshots(), [format!("base@{FIRST}")]);
}

#[test]
fn ctrl_c_stops_the_ingest_of_a_stream_that_never_ends() {
    let site = Site::new(8 << 20);
    let args = ["ingest", "-", "--image", "stream"];
    let mut command = site.vmstore.command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut rng = Rng::new(4);
    for mebibyte in 0.. {
        if mebibyte == 100 {
            interrupt(&child);
        }
        if stdin.write_all(&rng.noise(1 << 20)).is_err() {
            break;
        }
    }
    assert_interrupted(&site.vmstore, &child.wait_with_output().unwrap());
    site.assert_sound();
}

#[test]
fn ctrl_c_stops_the_ingest_of_a_file_and_the_next_one_goes_on() {
    let site = Site::new(8 << 20);
    images::make(&site.path("new.raw"), 2 * IMAGE_BYTES, 2);
    let mut command = site.vmstore.command(site.ingest_args("new.raw", "new", SECOND));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while site.vmstore.files("packs", ".part").is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    interrupt(&child);
    assert_interrupted(&site.vmstore, &child.wait_with_output().unwrap());
    site.ingest("new.raw", "new", SECOND);
    site.vmstore.assert_holds("new", &site.path("new.raw"));
    site.assert_sound();
    site.vmstore.run(["remove", "new"]);
    site.collect_all();
}
