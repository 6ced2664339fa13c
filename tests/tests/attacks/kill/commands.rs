//! Works of commands that open the store themselves, and Ctrl-C.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::images::{self, Rng};
use tests::{Vmstore, expect_exit_of};

use super::{Struck, Work};

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

    /// Of a [`site_with_garbage`].
    fn assert_keeps_the_kept(&self) {
        assert_eq!(self.vmstore.snapshots(), [format!("kept@{FIRST}"), format!("kept@{SECOND}")]);
        self.vmstore.assert_holds("kept@20261119", &self.path("kept.raw"));
    }
}

/// The ingest of an image that has packs of its own.
pub(super) struct Ingest {
    site: Site,
    /// Plain bytes that are new in it as a whole; known once it has been ingested.
    whole_new_bytes: u64,
    packs_before: usize,
}

impl Ingest {
    pub(super) fn new() -> Self {
        let site = Site::new(IMAGE_BYTES / 5);
        images::make(&site.path("new.raw"), IMAGE_BYTES, 2);
        Self { site, whole_new_bytes: 0, packs_before: 0 }
    }
}

impl Work for Ingest {
    fn prepare(&mut self) {
        let Self { site, .. } = self;
        if self.whole_new_bytes == 0 {
            self.whole_new_bytes = site.vmstore.json(["show", "new"])["new_bytes"].as_u64().unwrap();
        }
        site.vmstore.run(["remove", "new"]);
        site.collect_all();
        self.packs_before = site.vmstore.files("packs", ".pack").len();
    }

    fn command(&self) -> Command {
        self.site.vmstore.command(self.site.ingest_args("new.raw", "new", SECOND))
    }

    fn check(&mut self, struck: &Struck) {
        let Self { site, .. } = self;
        let sealed = site.vmstore.files("packs", ".pack").len() > self.packs_before;
        let published = site.vmstore.snapshots().iter().any(|snapshot| snapshot.starts_with("new@"));
        assert!(published || !struck.succeeded());
        site.assert_sound();
        site.vmstore.assert_holds("base", &site.path("base.raw"));

        if !published {
            let (new_bytes, whole) = (site.ingest("new.raw", "new", SECOND), self.whole_new_bytes);
            assert!(new_bytes <= whole);
            assert!(new_bytes < whole || !sealed, "{new_bytes} new although packs had been sealed");
        }
        site.vmstore.assert_holds("new", &site.path("new.raw"));
    }

    fn end(&mut self) {
        assert_eq!(self.site.vmstore.snapshots().len(), 2);
        self.site.assert_sound();
        self.site.collect_all();
        self.site.assert_sound();
    }
}

/// The ingest of an image's next night, most of which are deltas.
pub(super) struct IngestOfDeltas(Site);

impl IngestOfDeltas {
    pub(super) fn new() -> Self {
        let site = Site::new(IMAGE_BYTES / 2);
        images::make_next(&site.path("next.raw"), &site.path("base.raw"), 256 << 10, 3);
        Self(site)
    }
}

impl Work for IngestOfDeltas {
    fn prepare(&mut self) {
        self.0.vmstore.run(["remove", "base@20261120"]);
        self.0.collect_all();
    }

    fn command(&self) -> Command {
        self.0.vmstore.command(self.0.ingest_args("next.raw", "base", SECOND))
    }

    fn check(&mut self, _: &Struck) {
        let Self(site) = self;
        site.assert_sound();
        site.vmstore.assert_holds("base@20261119", &site.path("base.raw"));
        if site.vmstore.snapshots().len() == 1 {
            site.ingest("next.raw", "base", SECOND);
        }
        site.vmstore.assert_holds("base@20261120", &site.path("next.raw"));
    }
}

/// The removal of several snapshots.
pub(super) struct Remove(Site);

impl Remove {
    const IMAGES: [&str; 4] = ["a", "b", "c", "d"];

    pub(super) fn new() -> Self {
        let site = Site::new(8 << 20);
        for (image, seed) in Self::IMAGES.into_iter().zip(10..) {
            images::make(&site.path(image), 8 << 20, seed);
            site.ingest(image, image, FIRST);
        }
        Self(site)
    }
}

impl Work for Remove {
    fn prepare(&mut self) {
        let there = self.0.vmstore.snapshots();
        for image in Self::IMAGES.into_iter().filter(|image| !there.contains(&format!("{image}@{FIRST}"))) {
            self.0.ingest(image, image, FIRST);
        }
    }

    fn command(&self) -> Command {
        self.0.vmstore.command(["remove"].iter().chain(&Self::IMAGES))
    }

    fn check(&mut self, struck: &Struck) {
        let Self(site) = self;
        site.assert_sound();
        let left = site.vmstore.snapshots();
        assert!(left.len() == 1 || !struck.succeeded(), "{left:?}");
        for snapshot in left {
            let image = snapshot.split('@').next().unwrap();
            let file = if image == "base" { "base.raw" } else { image };
            site.vmstore.assert_holds(&snapshot, &site.path(file));
        }
        assert!(site.vmstore.snapshots().contains(&format!("base@{FIRST}")));
    }

    fn end(&mut self) {
        self.0.collect_all();
        self.0.assert_sound();
    }
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

/// A collection, which is killed twice before it is repeated.
pub(super) struct Collect {
    site: Site,
    strikes: u32,
}

impl Collect {
    pub(super) fn new() -> Self {
        let site = site_with_garbage();
        let fresh = site.path("fresh");
        copy_tree(site.vmstore.store(), &fresh);
        let report = Vmstore::new(&fresh).json(["gc", "--dry-run"]);
        assert!(report["rewritten_packs"].as_u64() > Some(0), "this test has nothing to rewrite: {report}");
        Self { site, strikes: 0 }
    }
}

impl Work for Collect {
    fn prepare(&mut self) {
        if self.strikes.is_multiple_of(2) {
            copy_tree(&self.site.path("fresh"), self.site.vmstore.store());
        }
        self.strikes += 1;
    }

    fn command(&self) -> Command {
        self.site.vmstore.command(["gc"])
    }

    fn check(&mut self, _: &Struck) {
        let Self { site, .. } = self;
        site.assert_sound();
        if self.strikes.is_multiple_of(2) {
            site.collect_all();
            site.assert_sound();
            site.assert_keeps_the_kept();
            site.vmstore.assert_holds("kept@20261120", &site.path("kept-next.raw"));
        }
    }
}

/// The rebuilding of the index.
pub(super) struct Reindex(Site);

impl Reindex {
    pub(super) fn new() -> Self {
        let site = site_with_garbage();
        // The first ones read what is in no cache.
        (0..2).for_each(|_| drop(site.vmstore.run(["reindex"])));
        Self(site)
    }
}

impl Work for Reindex {
    fn prepare(&mut self) {}

    fn command(&self) -> Command {
        self.0.vmstore.command(["reindex"])
    }

    fn check(&mut self, _: &Struck) {
        self.0.assert_sound();
        self.0.assert_keeps_the_kept();
    }

    fn end(&mut self) {
        let Self(site) = self;
        // The index knows everything, so nothing is new.
        assert_eq!(site.ingest("next.raw", "again", FIRST), 0);
        site.vmstore.run(["remove", "again"]);
        site.collect_all();
        site.vmstore.assert_holds("kept@20261120", &site.path("kept-next.raw"));
        site.assert_sound();
    }
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
