//! A directory with stores, images, and processes that use them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Vmstore, images};

const MIB: u64 = 1 << 20;

/// Dropped, it takes down what is in it, and ends the owners that commands started there.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

impl Site {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one in `dir`, for more than a temporary directory may have room for.
    pub fn below(dir: impl AsRef<Path>) -> Self {
        Self { dir: TempDir::new_in(dir).unwrap() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A file in it, as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// A new store, whose commands go through its owner.
    pub fn store(&self, name: &str) -> Vmstore {
        let vmstore = Vmstore::new(self.path(name)).through_owner();
        vmstore.run(["init", "--no-reserve"]);
        vmstore
    }

    /// Makes an image.
    pub fn make(&self, name: &str, mib: u64, seed: u64) -> PathBuf {
        images::make(&self.path(name), mib * MIB, seed);
        self.path(name)
    }

    /// Makes the next night of an image: about one page in sixteen is changed.
    pub fn make_next(&self, name: &str, before: &str, seed: u64) -> PathBuf {
        images::make_next(&self.path(name), &self.path(before), 64 << 10, seed);
        self.path(name)
    }

    /// Makes `nights` of an image of so many MiB, and ingests them as `web01` into a store; returns the snapshots, each
    /// with its file.
    pub fn nights(&self, vmstore: &Vmstore, mib: u64, nights: u8) -> BTreeMap<String, PathBuf> {
        let name = |night| format!("web01-{night}.raw");
        self.make(&name(1), mib, 1);
        (2..=nights).for_each(|night| drop(self.make_next(&name(night), &name(night - 1), night.into())));
        let ingest = |night| {
            let time = format!("202611{night:02}T020000Z");
            vmstore.run(["ingest", &self.arg(&name(night)), "--image", "web01", "--time", &time]);
            (format!("web01@{time}"), self.path(&name(night)))
        };
        (1..=nights).map(ingest).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        owners_below(self.dir()).into_iter().for_each(kill);
    }
}

impl Vmstore {
    /// The processes that own this store, or are about to try.
    pub fn owners(&self) -> Vec<u32> {
        owners_below(self.store())
    }

    /// Fails unless it holds exactly these snapshots, bit for bit, and is sound.
    pub fn assert_has_all(&self, snapshots: &BTreeMap<String, PathBuf>) {
        assert_eq!(self.snapshots(), snapshots.keys().cloned().collect::<Vec<_>>());
        for (snapshot, image) in snapshots {
            self.assert_holds(snapshot, image);
        }
        self.run(["verify"]);
    }

    /// Collects until nothing is left to; what connections left behind may still be on its way to the disk before.
    pub fn collect_all(&self) {
        crate::eventually("an end of garbage", || {
            let report = self.json(["gc"]);
            ["freed_bytes", "removed_packs", "rewritten_packs"].iter().all(|what| report[what] == 0)
        });
    }

    /// Bytes of all files in `packs/`.
    pub fn packs_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.store().join("packs")).unwrap();
        entries.map(|entry| entry.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum()
    }
}

/// Kills a process that the test, or one of its commands, has started. It may have ended.
pub fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("no process has the number 0");
    let _ = kill_process(pid, Signal::KILL);
}

/// Every `vmstore serve` whose command line names something in `dir`, which is the test's own.
fn owners_below(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let dir = dir.to_str().expect("the tests' paths are text");
    entries.filter_map(|name| name.parse().ok()).filter(|pid| is_owner(*pid, dir)).collect()
}

fn is_owner(pid: u32, dir: &str) -> bool {
    let line = command_line(pid);
    let mut arguments = line.split('\0');
    let is_vmstore = arguments.next().is_some_and(|program| program.ends_with("vmstore"));
    let arguments: Vec<_> = arguments.collect();
    is_vmstore && arguments.contains(&"serve") && arguments.iter().any(|argument| Path::new(argument).starts_with(dir))
}

/// A process's arguments, each ended by a zero byte; nothing, if it has ended.
pub fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).into_owned()
}
