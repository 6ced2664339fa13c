//! A file system that is full: said by name, nothing lost, and the reserve lets remove, gc and reindex run. Needs root.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tests::devices::Mount;
use tests::{Vmstore, images};

const MIB: u64 = 1 << 20;
const KEPT_BYTES: u64 = 60 * MIB;
const BALLAST: &str = "ballast";

/// A store on a small file system, and images elsewhere.
struct Site {
    // First, because fields are dropped in order and the mount must be free of the store by then.
    vmstore: Vmstore,
    disk: Mount,
    images: TempDir,
}

impl Site {
    /// With a snapshot of `kept` and two of `drop`.
    fn new(disk_mib: u64, init: &[&str]) -> Self {
        let disk = Mount::tmpfs(disk_mib);
        let images = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let site = Self { vmstore: Vmstore::new(disk.path().join("store")), disk, images };
        site.vmstore.run(["init"].iter().chain(init));
        images::make(&site.image("kept"), KEPT_BYTES, 1);
        images::make(&site.image("drop"), KEPT_BYTES, 2);
        images::make(&site.image("large"), 20 * KEPT_BYTES, 3);
        site.vmstore.run(site.ingest("kept"));
        site.vmstore.run(site.ingest("drop"));
        site
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.path().join(name)
    }

    fn ingest(&self, name: &str) -> [String; 4] {
        ["ingest", self.image(name).to_str().unwrap(), "--image", name].map(str::to_owned)
    }

    fn fill(&self) {
        self.disk.fill(BALLAST, 0);
        assert_eq!(self.disk.free_bytes(), 0);
    }

    fn free(&self) {
        fs::remove_file(self.disk.path().join(BALLAST)).unwrap();
    }

    /// Runs a command that must fail because the file system, which it must name, is full.
    fn assert_full(&self, args: &[String]) {
        let said = self.vmstore.expect_exit(1, args);
        let disk = self.vmstore.store().to_str().unwrap();
        assert!(said.contains("no space left on the file system of") && said.contains(disk), "{args:?}: {said}");
        assert!(said.contains("hint: ") && said.contains("gc"), "{args:?}: {said}");
    }

    fn assert_kept(&self) {
        self.vmstore.assert_holds("kept", &self.image("kept"));
    }

    fn images_listed(&self) -> Vec<String> {
        let names = self.vmstore.snapshots();
        names.iter().map(|name| name.split('@').next().unwrap().to_owned()).collect()
    }

    fn reserve_bytes(&self) -> u64 {
        fs::metadata(self.vmstore.store().join("reserve")).unwrap().len()
    }
}

/// Everything that only reads, on a disk without a free byte.
fn assert_reads_work(site: &Site) {
    assert_eq!(site.images_listed(), ["drop", "kept"]);
    site.vmstore.run(["show", "kept"]);
    site.vmstore.run(["stats"]);
    site.vmstore.run(["diff", "kept", "drop"]);
    site.assert_kept();
    site.vmstore.run(["verify"]);
}

#[test]
fn ingest_that_fills_the_disk_fails_by_name_and_leaves_nothing() {
    let site = Site::new(300, &["--no-reserve"]);
    site.assert_full(&site.ingest("large"));
    assert_eq!(site.vmstore.files("packs", ".part"), [""; 0]);
    assert_eq!(site.images_listed(), ["drop", "kept"]);
    site.assert_kept();
    site.vmstore.run(["verify"]);
    let freed = site.vmstore.json(["gc"]);
    assert!(freed["freed_bytes"].as_u64().unwrap() > 100 * MIB, "the packs that were sealed: {freed}");
    site.vmstore.run(["verify"]);
    site.assert_kept();
}

#[test]
fn reading_commands_work_on_a_full_disk() {
    for init in [&["--no-reserve"][..], &[]] {
        let site = Site::new(512, init);
        site.fill();
        assert_reads_work(&site);
        site.assert_full(&site.ingest("large"));
        assert_reads_work(&site);
        site.free();
        site.vmstore.run(["verify"]);
    }
}

#[test]
fn the_reserve_lets_remove_and_gc_run() {
    let site = Site::new(700, &[]);
    site.assert_full(&site.ingest("large"));
    site.fill();
    assert_eq!(site.reserve_bytes(), 256 * MIB, "an ingest does not touch the reserve");
    site.vmstore.run(["remove", "drop"]);
    assert_eq!(site.reserve_bytes(), 0, "it was given up");
    // Others may have taken the space that the reserve freed.
    site.disk.fill("more", 16 * MIB);
    let freed = site.vmstore.json(["gc"]);
    assert!(freed["freed_bytes"].as_u64().unwrap() > 100 * MIB, "{freed}");
    assert_eq!(site.images_listed(), ["kept"]);
    site.vmstore.run(["verify"]);
    site.assert_kept();
    site.vmstore.run(site.ingest("drop"));
    site.vmstore.assert_holds("drop", &site.image("drop"));
}

#[test]
fn the_reserve_lets_reindex_run() {
    let site = Site::new(700, &[]);
    site.fill();
    site.vmstore.run(["reindex"]);
    assert_reads_work(&site);
}

#[test]
fn without_a_reserve_nothing_is_lost_and_room_brings_all_back() {
    let site = Site::new(400, &["--no-reserve"]);
    site.fill();
    for command in [&["remove", "drop"][..], &["gc"], &["reindex"]] {
        // Some may need no room at all; what does says so.
        let output = site.vmstore.command(command).output().unwrap();
        let said = tests::stderr(&output);
        let full = output.status.code() == Some(1) && said.contains("no space left on the file system of");
        assert!(output.status.success() || full, "{command:?}: {said}");
        assert_eq!(site.vmstore.snapshots().last().unwrap().split('@').next(), Some("kept"));
        let index = |name: &str| site.vmstore.store().join(name).exists();
        assert!(
            index("index/CURRENT") && !index("index.new"),
            "{command:?}: the old index stays until there is another"
        );
    }
    site.free();
    site.vmstore.run(["verify"]);
    site.assert_kept();
    let new_bytes = &site.vmstore.json([&site.ingest("kept")[..], &["--base=none".into()]].concat())["new_bytes"];
    assert_eq!(*new_bytes, 0, "the index knows all that the packs have");
    site.vmstore.run(site.ingest("drop"));
    site.vmstore.assert_holds("drop", &site.image("drop"));
    site.vmstore.run(["verify"]);
}
