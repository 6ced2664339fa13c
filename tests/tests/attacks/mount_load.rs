//! Mounts under load: right bytes and bounded memory under many readers, nothing left behind by many mounts.
//!
//! `VMSTORE_LOAD_SECONDS` and `VMSTORE_LOAD_MOUNTS` make the short forms that always run long.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::devices::Mount;
use tests::images::Rng;
use tests::{Mounted, Serving, Site, eventually};

const MIB: u64 = 1 << 20;
const READERS: u64 = 8;
const CACHE_BYTES: u64 = 64 * MIB;
/// Memory of vmfs in addition to its cache.
const MEMORY_BESIDES_BYTES_MAX: u64 = 150_000_000;

/// A number that the environment may change.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn below_build() -> Site {
    Site::below(env!("CARGO_TARGET_TMPDIR"))
}

#[test]
fn many_readers_read_right_in_bounded_memory() {
    let site = below_build();
    let vmstore = site.store("store");
    let nights = site.nights(&vmstore, 192, 4);
    let mounted = vmstore.mount(&["--cache", &CACHE_BYTES.to_string()]);
    let until = Instant::now() + Duration::from_secs(number("VMSTORE_LOAD_SECONDS", 60));
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (mounted, nights, reads) = (&mounted, &nights, &reads);
            scope.spawn(move || read_until(until, mounted, nights, &mut Rng::new(reader), reads));
        }
    });
    let memory_bytes = memory_bytes_max(mounted.pid());
    println!("{} reads, {} MB at most in memory", reads.load(Ordering::Relaxed), memory_bytes / 1_000_000);
    assert!(memory_bytes <= CACHE_BYTES + MEMORY_BESIDES_BYTES_MAX, "{memory_bytes} bytes in memory");
    mounted.unmount();
}

/// Reads here and there in one snapshot after another, each opened anew.
fn read_until(until: Instant, mounted: &Mounted, nights: &BTreeMap<String, PathBuf>, rng: &mut Rng, reads: &AtomicU64) {
    while Instant::now() < until {
        let (snapshot, source) = nights.iter().nth(rng.below(nights.len() as u64) as usize).unwrap();
        let (shown, source) = (File::open(mounted.snapshot(snapshot)).unwrap(), File::open(source).unwrap());
        let size = source.metadata().unwrap().len();
        // Some read a little in many places, some much in a row.
        let (bytes, run) = [(4096, 1), (4096, 64), (128 << 10, 64)][rng.below(3) as usize];
        for _ in 0..50 {
            let start = rng.below(size - bytes * run);
            for offset in (0..run).map(|n| start + n * bytes) {
                same(&shown, &source, offset, bytes as usize);
            }
            reads.fetch_add(run, Ordering::Relaxed);
        }
    }
}

fn same(shown: &File, source: &File, offset: u64, bytes: usize) {
    let [one, other] = [shown, source].map(|file| {
        let mut buffer = vec![0; bytes];
        file.read_exact_at(&mut buffer, offset).unwrap();
        buffer
    });
    assert!(one == other, "the {bytes} bytes at {offset} differ");
}

/// `VmHWM` of proc(5).
fn memory_bytes_max(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// A process's open descriptors, and its threads.
fn has(pid: u32) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("fd"), count("task"))
}

#[test]
fn mounts_leave_nothing_behind() {
    let site = below_build();
    let vmstore = site.store("store");
    let serving = Serving::start::<&str>(&vmstore, &[]);
    site.nights(&vmstore, 1, 2);
    let mount = || {
        let mounted = vmstore.mount(&[]);
        read_all(&mounted);
        mounted.unmount();
    };
    mount();
    let before = has(serving.pid());
    (0..number("VMSTORE_LOAD_MOUNTS", 50)).for_each(|_| mount());
    // Its last client's end may still be on its way.
    eventually("an owner that has no more than before", || {
        let now = has(serving.pid());
        now.0 <= before.0 && now.1 <= before.1
    });
    assert_eq!(vmstore.files("leases", ""), [""; 0]);
}

fn read_all(mounted: &Mounted) {
    for file in fs::read_dir(mounted.path().join("snapshots/web01")).unwrap() {
        fs::read(file.unwrap().path()).unwrap();
    }
}

#[test]
fn opening_and_closing_leaves_nothing_behind() {
    let site = below_build();
    let vmstore = site.store("store");
    site.nights(&vmstore, 1, 2);
    let mounted = vmstore.mount(&[]);
    let pid = mounted.pid();
    read_all(&mounted);
    let before = has(pid);
    (0..500).for_each(|_| read_all(&mounted));
    eventually("a vmfs that has no more than before", || {
        let now = has(pid);
        // Threads of its pools may come and go.
        now.0 <= before.0 && now.1 <= before.1 + 16
    });
    mounted.unmount();
}

#[test]
fn a_hundred_snapshots_are_listed_and_begin_right() {
    let site = below_build();
    let vmstore = site.store("store");
    let mut first_bytes = BTreeMap::new();
    for night in 0..100_u8 {
        let time = format!("202611{:02}T{:02}0000Z", 1 + night / 10, night % 10);
        fs::write(site.path("image"), vec![night; 8192]).unwrap();
        vmstore.run(["ingest", &site.arg("image"), "--image", "web01", "--time", &time]);
        first_bytes.insert(format!("{time}.raw"), night);
    }
    let mounted = vmstore.mount(&[]);
    let dir = mounted.path().join("snapshots/web01");
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found = names.filter(|name| name != "latest.raw").map(|name| {
        let mut byte = [0];
        File::open(dir.join(&name)).unwrap().read_exact_at(&mut byte, 0).unwrap();
        (name, byte[0])
    });
    assert_eq!(found.collect::<BTreeMap<_, _>>(), first_bytes);
    mounted.unmount();
}

#[test]
fn a_writer_sees_that_the_disk_is_full_and_loses_nothing_synced() {
    let device = Mount::tmpfs(128);
    let site = Site::below(device.path());
    let vmstore = site.store("store");
    site.make("image", 32, 1);
    vmstore.run(["ingest", &site.arg("image"), "--image", "web01", "--time", "20261101T020000Z"]);
    vmstore.run_vmfs(["clone", "create", "work", "web01@20261101T020000Z"]);
    let mut mounted = vmstore.mount(&[]);
    let disk = mounted.clone_file("work");
    let block = Rng::new(1).noise(64 << 10);
    write_synced(&disk, &block);
    device.fill("full", 2 * MIB);
    let file = File::options().write(true).open(&disk).unwrap();
    let error = (1..IMAGE_BLOCKS).find_map(|n| file.write_all_at(&block, n * block.len() as u64).err());
    assert_eq!(error.expect("2 MiB hold an image of 32").kind(), ErrorKind::StorageFull);
    fs::remove_file(device.path().join("full")).unwrap();
    file.write_all_at(&block, MIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mounted.kill();
    mounted = vmstore.mount_again(mounted);
    for offset in [0, MIB] {
        has_at(&disk, offset, &block);
    }
    mounted.unmount();
}

/// 64 KiB each.
const IMAGE_BLOCKS: u64 = 512;

fn write_synced(disk: &Path, block: &[u8]) {
    let file = File::options().write(true).open(disk).unwrap();
    file.write_all_at(block, 0).unwrap();
    file.sync_all().unwrap();
}

fn has_at(disk: &Path, offset: u64, expected: &[u8]) {
    let mut found = vec![0; expected.len()];
    File::open(disk).unwrap().read_exact_at(&mut found, offset).unwrap();
    assert!(found == expected, "what was synced at {offset} is lost");
}
