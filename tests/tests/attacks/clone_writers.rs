//! Clones under load: what was synced is there after vmfs was killed, and fio reads what it wrote.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use tests::devices::{Loop, tool};
use tests::images::Rng;
use tests::writers::Written;
use tests::{Mounted, Running, Site, Vmfs, Vmstore};

/// How often vmfs is killed.
const KILLS: u32 = 50;
/// Round by round, a kill comes after up to so many milliseconds.
const ROUND_MS_MAX: u64 = 600;
/// Commits while writers are at work.
const COMMITS: u32 = 5;
const IMAGE_MIB: u64 = 32;
const THREADS: u32 = 4;
const SNAPSHOT: &str = "web01@20261101T020000Z";

/// A mount with a clone `work` of an image, whose file is `image`.
fn clone_in(site: &Site) -> (Vmstore, Mounted) {
    let vmstore = site.store("store");
    site.make("image", IMAGE_MIB, 1);
    vmstore.run(["ingest", &site.arg("image"), "--image", "web01", "--time", "20261101T020000Z"]);
    vmstore.run_vmfs(["clone", "create", "work", SNAPSHOT]);
    let mounted = vmstore.mount(&[]);
    (vmstore, mounted)
}

/// In every fifth round the clone is committed again and again, so that writers go on over new layers and a new base.
#[test]
fn synced_writes_survive_every_kill() {
    let site = Site::below(env!("CARGO_TARGET_TMPDIR"));
    let (vmstore, mut mounted) = clone_in(&site);
    let mut rng = Rng::from_clock();
    let mut written = Written::new(&site.path("image"), THREADS, rng.number());
    let (mut syncs, mut commits) = (0, Commits::new(&vmstore));
    // On a slow disk a round may be over before the first sync returns.
    for round in 1..=10 * KILLS {
        if round > KILLS && syncs > KILLS as usize && commits.succeeded > 0 {
            break;
        }
        let writers = written.start(&mounted.clone_file("work"));
        thread::sleep(Duration::from_millis(rng.below(ROUND_MS_MAX)));
        let commit = round.is_multiple_of(5).then(|| commits.go_on_for(rng.below(3 * ROUND_MS_MAX)));
        mounted.kill();
        let ended = writers.end_by_error();
        match commit {
            // It now has the clone to itself.
            Some(commit) if rng.below(2) == 0 => commits.note(&commit.wait()),
            // Killed with the mount, however far it came.
            commit => drop(commit),
        }
        mounted = vmstore.mount_again(mounted);
        syncs += written.judge(&mounted.clone_file("work"), &ended);
    }
    println!("{syncs} syncs, {} commits", commits.succeeded);
    assert!(syncs > KILLS as usize, "only {syncs} syncs returned: nothing was tested");
    assert!(commits.succeeded > 0, "no commit succeeded");
    mounted.unmount();
    keep_only_a_last_commit(&vmstore);
    written.judge_unwritten(&vmstore.mount(&[]).clone_file("work"));
}

/// Commits of the clone, one after another.
struct Commits<'a> {
    vmstore: &'a Vmstore,
    begun: u32,
    succeeded: u32,
}

impl<'a> Commits<'a> {
    fn new(vmstore: &'a Vmstore) -> Self {
        Self { vmstore, begun: 0, succeeded: 0 }
    }

    fn start(&mut self) -> Running {
        self.begun += 1;
        let time = format!("20261201T{:02}{:02}{:02}Z", self.begun / 3600, self.begun / 60 % 60, self.begun % 60);
        Running::start(&mut self.vmstore.vmfs(["clone", "commit", "work", "--time", &time]))
    }

    /// Starts one after another for so long; returns the one that runs then.
    fn go_on_for(&mut self, milliseconds: u64) -> Running {
        let until = Instant::now() + Duration::from_millis(milliseconds);
        let mut commit = self.start();
        while Instant::now() < until {
            if !commit.is_running() {
                self.note(&commit.wait());
                commit = self.start();
            }
            thread::sleep(Duration::from_millis(5));
        }
        commit
    }

    fn note(&mut self, output: &Output) {
        self.succeeded += u32::from(output.status.success());
    }
}

/// Removes all snapshots but that of a last commit: killed commits hold none, and the store stays sound.
fn keep_only_a_last_commit(vmstore: &Vmstore) {
    let committed = Vmfs::beside(vmstore).json(["clone", "commit", "work"]);
    for snapshot in vmstore.snapshots() {
        if committed["snapshot"] != snapshot.as_str() {
            vmstore.run(["remove", &snapshot]);
        }
    }
    vmstore.run(["gc"]);
    vmstore.run(["verify"]);
}

/// A commit shows what was synced before it began, and of what the writers did meanwhile, any part.
#[test]
fn commits_under_writers_show_what_was_synced() {
    let site = Site::below(env!("CARGO_TARGET_TMPDIR"));
    let (vmstore, mounted) = clone_in(&site);
    let disk = mounted.clone_file("work");
    let mut written = Written::new(&site.path("image"), THREADS, 3);
    for round in 0..COMMITS {
        let writers = written.start(&disk);
        thread::sleep(Duration::from_millis(ROUND_MS_MAX / 2));
        let synced = writers.synced();
        let time = format!("20261102T0200{round:02}Z");
        vmstore.run_vmfs(["clone", "commit", "work", "--time", &time]);
        let ended = writers.stop();
        written.judge_copy(&mounted.snapshot(&format!("web01@{time}")), &synced, &ended);
        written.judge(&disk, &ended);
    }
    mounted.unmount();
}

#[test]
fn fio_reads_what_it_wrote() {
    let site = Site::below(env!("CARGO_TARGET_TMPDIR"));
    let (_vmstore, mounted) = clone_in(&site);
    let disk = mounted.clone_file("work");
    fio(&disk, &["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--ioengine=psync"]);
    let at_once = ["--rw=randrw", "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=8", "--ioengine=libaio"];
    fio(&disk, &[&at_once[..], &["--direct=1"]].concat());
    // fio trims devices only; a loop device makes holes in its file.
    let device = Loop::attach(&disk);
    fio(device.device(), &["--rw=randtrimwrite", "--bs=4k", "--direct=1", "--ioengine=psync"]);
    drop(device);
    assert_eq!(fs::metadata(&disk).unwrap().len(), IMAGE_MIB << 20, "fio changed the size");
    mounted.unmount();
}

/// Shared by all of fio's jobs.
const FIO: &str = "--name=clone --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fsync=16 --randseed=7";

/// Runs fio over a disk, which verifies what it has written, or fails.
fn fio(disk: &Path, options: &[&str]) {
    let (file, size) = (format!("--filename={}", disk.display()), format!("--size={IMAGE_MIB}m"));
    let args = FIO.split(' ').chain([file.as_str(), size.as_str()]).chain(options.iter().copied());
    tool("fio", &args.map(OsStr::new).collect::<Vec<_>>());
}
