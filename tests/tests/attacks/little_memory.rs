//! Commands, owners and mounts that may have little memory: they work, or what the kernel kills for it loses nothing
//! that was acknowledged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tests::images::{self, Rng};
use tests::memory_limit::MemoryLimit;
use tests::torture::Torture;
use tests::{Running, Site, Vmstore, eventually, is_mounted, kill, stderr};

const MIB: u64 = 1 << 20;
/// Of which seven tenths are data.
const DENSE_MIB: u64 = 320;
const SPARSE_BYTES: u64 = 3 << 30;
/// The data in the sparse image.
const SPARSE_DATA_BYTES: u64 = 150 * MIB;
/// Memory that is enough for everything.
const ENOUGH_MIB: [u64; 2] = [256, 128];
/// Cases in the short form of the attack.
const CASES: u64 = 8;
/// Memory that may be too little.
const LITTLE_MIB: std::ops::Range<u64> = 6..40;
const FIRST: &str = "20261119T020000Z";
const SECOND: &str = "20261120T020000Z";

/// A store and another, and images much larger than the memory.
struct Sites {
    near: Vmstore,
    far: Vmstore,
    // Last, so that owners have ended before.
    site: Site,
}

impl Sites {
    fn new() -> Self {
        let site = Site::below(env!("CARGO_TARGET_TMPDIR"));
        let (near, far) = (site.store("near"), site.store("far"));
        site.make("dense", DENSE_MIB, 1);
        images::make_next(&site.path("next"), &site.path("dense"), MIB, 2);
        make_sparse(&site.path("sparse"));
        Self { near, far, site }
    }

    fn ingest(&self, file: &str, image: &str, time: &str) -> Command {
        self.near.command(["ingest", &self.site.arg(file), "--image", image, "--time", time])
    }

    fn push(&self) -> Command {
        self.near.command(["push", self.far.store().to_str().unwrap(), "--all"])
    }

    fn restore(&self, snapshot: &str) -> Command {
        self.near.command(["restore", snapshot, &self.site.arg("restored"), "--force"])
    }

    /// Removes all snapshots, and what they had.
    fn empty(&self) {
        for vmstore in [&self.near, &self.far] {
            let snapshots = vmstore.snapshots();
            if !snapshots.is_empty() {
                vmstore.run(["remove"].into_iter().chain(snapshots.iter().map(String::as_str)));
                vmstore.collect_all();
            }
        }
        self.end_owners();
    }

    /// Ends the owners, so that the next command starts one where it runs itself.
    fn end_owners(&self) {
        for vmstore in [&self.near, &self.far] {
            eventually("the end of an owner", || {
                let owners = vmstore.owners();
                let is_over = owners.is_empty();
                owners.into_iter().for_each(kill);
                is_over
            });
        }
    }
}

/// Data in parts of a mebibyte, far from one another.
fn make_sparse(path: &std::path::Path) {
    let file = File::create(path).unwrap();
    file.set_len(SPARSE_BYTES).unwrap();
    let mut rng = Rng::new(3);
    let parts = SPARSE_DATA_BYTES / MIB;
    for part in 0..parts {
        let start = SPARSE_BYTES / parts * part + rng.below(4 * MIB);
        file.write_all_at(&rng.noise(MIB as usize), start).unwrap();
    }
}

/// A limit; none where the machine has none to offer, which is said, and a failure in CI.
fn limit(mib: u64) -> Option<MemoryLimit> {
    match MemoryLimit::new(mib * MIB) {
        Ok(limit) => Some(limit),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "{why}: this test needs root and control groups of memory");
            println!("not tried: {why}: this test needs root and control groups of memory");
            None
        }
    }
}

/// Runs a command in a group, where it must succeed.
fn succeed_in(limit: &MemoryLimit, command: &Command) {
    let output = limit.command(command).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{command:?}: {}, {} killed: {said}", output.status, limit.kills());
}

/// Processes that this thread starts from now on see two processors: each has threads of its own, with memory of their
/// own.
fn on_two_processors() {
    let may_use = sched_getaffinity(None).unwrap();
    let mut two = CpuSet::new();
    (0..CpuSet::MAX_CPU).filter(|cpu| may_use.is_set(*cpu)).take(2).for_each(|cpu| two.set(cpu));
    sched_setaffinity(None, &two).unwrap();
}

#[test]
fn everything_works_in_little_memory() {
    on_two_processors();
    let sites = Sites::new();
    let images: BTreeMap<String, PathBuf> =
        [("dense", FIRST, "dense"), ("dense", SECOND, "next"), ("sparse", FIRST, "sparse")]
            .map(|(image, time, file)| (format!("{image}@{time}"), sites.site.path(file)))
            .into();
    let digests: BTreeMap<_, _> = images.iter().map(|(name, path)| (name.as_str(), images::digest(path))).collect();
    for mib in ENOUGH_MIB {
        let Some(limit) = limit(mib) else { return };
        sites.empty();
        let run = |command: Command| succeed_in(&limit, &command);
        for (snapshot, path) in &images {
            let (image, time) = snapshot.split_once('@').unwrap();
            run(sites.ingest(path.file_name().unwrap().to_str().unwrap(), image, time));
        }
        run(sites.push());
        run(sites.near.command(["verify"]));
        for (snapshot, digest) in &digests {
            run(sites.restore(snapshot));
            assert!(images::digest(&sites.site.path("restored")) == *digest, "{snapshot} restores to other bytes");
        }
        run(sites.near.command(["stats"]));
        read_in_mount(&sites, &limit, &digests);
        run(sites.far.command(["remove", &format!("dense@{FIRST}")]));
        run(sites.far.command(["gc"]));
        run(sites.far.command(["verify"]));
        run(sites.far.command(["reindex"]));
        assert_eq!(limit.kills(), 0, "in {mib} MiB");
        println!("all works in {mib} MiB");
    }
}

/// Reads all snapshots in a mount that has the group's memory.
fn read_in_mount(sites: &Sites, limit: &MemoryLimit, digests: &BTreeMap<&str, blake3::Hash>) {
    let mountpoint = sites.site.path("mnt");
    fs::create_dir_all(&mountpoint).unwrap();
    let mount = sites.near.vmfs(["mount", mountpoint.to_str().unwrap(), "--foreground", "--cache", "32MiB"]);
    let vmfs = Running::start(&mut limit.command(&mount));
    eventually("a mount", || is_mounted(&mountpoint));
    for (snapshot, digest) in digests {
        let (image, time) = snapshot.split_once('@').unwrap();
        let file = mountpoint.join(format!("snapshots/{image}/{time}.raw"));
        assert!(images::digest(&file) == *digest, "{snapshot} has other bytes in the mount");
    }
    sites.near.run_vmfs(["umount", mountpoint.to_str().unwrap()]);
    vmfs.succeed();
}

/// One thing that may be killed.
#[derive(Clone, Copy, Debug)]
enum Work {
    Ingest,
    Push,
    Restore,
    Collect,
    Verify,
}

impl Sites {
    /// Fails unless what was acknowledged is so.
    fn assert_done(&self, work: Work) {
        match work {
            Work::Ingest => self.near.assert_holds(&format!("next@{SECOND}"), &self.site.path("next")),
            Work::Push => {
                self.far.run(["verify"]);
                self.far.assert_holds(&format!("dense@{FIRST}"), &self.site.path("dense"));
                self.far.run(["remove", "dense"]);
                self.far.run(["gc"]);
            }
            Work::Restore => images::assert_same(&self.site.path("restored"), &self.site.path("dense")),
            Work::Collect | Work::Verify => (),
        }
    }
}

#[test]
fn a_kill_for_lack_of_memory_loses_nothing() {
    let torture = Torture::begin("memory_limit");
    let sites = Sites::new();
    let dense = format!("dense@{FIRST}");
    assert!(sites.ingest("dense", "dense", FIRST).status().unwrap().success());
    let (mut cases, mut kills) = (0, 0);
    while torture.goes_on(cases, CASES) {
        let mut rng = torture.rng(cases);
        let work = [Work::Ingest, Work::Push, Work::Restore, Work::Collect, Work::Verify][(cases % 5) as usize];
        let mib = LITTLE_MIB.start + rng.below(LITTLE_MIB.end - LITTLE_MIB.start);
        let Some(limit) = limit(mib) else { return };
        let next = format!("next@{SECOND}");
        if sites.near.snapshots().contains(&next) {
            sites.near.run(["remove", &next]);
        }
        let command = || match work {
            Work::Ingest => sites.ingest("next", "next", SECOND),
            Work::Push => sites.push(),
            Work::Restore => sites.restore(&dense),
            Work::Collect => sites.near.command(["gc"]),
            Work::Verify => sites.near.command(["verify"]),
        };
        sites.end_owners();
        let output = limit.command(&command()).output().unwrap();
        limit.end();
        let (code, killed) = (output.status.code(), limit.kills());
        println!("{work:?} in {mib} MiB: {}, {killed} killed: {}", output.status, stderr(&output).trim());
        kills += u64::from(killed > 0);
        let said = stderr(&output);
        // A command that was not killed says what happened.
        assert!(
            code.is_none_or(|code| code == 0 || said.contains("vmstore: ")) && !said.contains("panicked"),
            "{said}"
        );
        if code == Some(0) {
            sites.assert_done(work);
        }
        // Without the limit it works, and all is sound.
        Running::start(&mut command()).succeed();
        sites.assert_done(work);
        assert!(sites.near.snapshots().contains(&dense), "what was acknowledged is lost");
        sites.near.run(["verify"]);
        sites.near.assert_holds(&dense, &sites.site.path("dense"));
        cases += 1;
    }
    assert!(kills * 3 >= cases, "only in {kills} of {cases} cases was anything killed: nothing was tested");
    torture.end(cases, "commands");
}
