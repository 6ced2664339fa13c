//! A mount when the store is damaged, its owner ends, or it is killed itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tests::images::{self, Rng};
use tests::{Mounted, eventually, kill};

use super::{MIB, Viewed, errno, forget_pages, read_at};

#[test]
fn damage_costs_only_the_range_that_it_hurts() {
    let viewed = Viewed::of(1, 1);
    let source = viewed.site.path("noise.raw");
    let expected = Rng::new(8).noise(16 * MIB as usize);
    fs::write(&source, &expected).unwrap();
    let before = viewed.vmstore.files("packs", ".pack");
    let name = viewed.ingest(&source, "noise", "20261115T020000Z");
    let mut packs = viewed.vmstore.files("packs", "");
    packs.retain(|pack| !before.contains(pack));
    let largest = packs.iter().map(|pack| viewed.vmstore.store().join("packs").join(pack));
    let largest = largest.max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let pack = File::options().read(true).write(true).open(&largest).unwrap();
    let middle = pack.metadata().unwrap().len() / 2;
    let byte = read_at(&pack, middle, 1).unwrap()[0];
    pack.write_all_at(&[byte ^ 1], middle).unwrap();

    let file = File::open(viewed.mounted.snapshot(&name)).unwrap();
    // Random order, so that nothing is read ahead across it.
    let mut hurt = Vec::new();
    for page in (0..expected.len() as u64 / 4096).rev() {
        match read_at(&file, page * 4096, 4096) {
            Ok(part) => assert!(part == expected[page as usize * 4096..][..4096], "page {page}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                hurt.push(page);
            }
        }
    }
    assert!((1..=66).contains(&hurt.len()), "one chunk of at most 256 KiB: {hurt:?}");
    assert!(hurt.windows(2).all(|pair| pair[0] == pair[1] + 1), "in one piece: {hurt:?}");
    let log = fs::read_to_string(viewed.vmstore.store().join("vmfs.log")).unwrap();
    let line = log.lines().find(|line| line.contains("damaged")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(&name) && line.contains("reading bytes"), "{line}");
    images::assert_same(&viewed.first().0, &viewed.first().1);
}

#[test]
fn reads_go_on_after_the_owner_was_killed() {
    let viewed = Viewed::of(16, 2);
    let files: Vec<_> =
        viewed.snapshots.keys().map(|name| File::open(viewed.mounted.snapshot(name)).unwrap()).collect();
    let sources: Vec<_> = viewed.snapshots.values().map(|source| fs::read(source).unwrap()).collect();
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut rng = Rng::new(9);
            for round in 0..600 {
                let which = rng.below(2) as usize;
                let offset = rng.below(15 * MIB);
                let part = read_at(&files[which], offset, 100_000).unwrap();
                assert!(part == sources[which][offset as usize..][..100_000], "round {round}");
                forget_pages(&files[which]);
            }
        });
        for _ in 0..5 {
            viewed.vmstore.owners().into_iter().for_each(kill);
            eventually("another owner, or the end", || !viewed.vmstore.owners().is_empty() || reading.is_finished());
            thread::sleep(std::time::Duration::from_millis(150));
        }
    });
    assert_eq!(viewed.mounted.status()["requests"]["failures"], 0);
}

#[test]
fn a_mount_whose_process_was_killed_is_known_as_dead_and_can_be_taken_away() {
    let viewed = Viewed::of(1, 1);
    let Viewed { site: _site, vmstore, snapshots, mounted } = viewed;
    let file = File::open(mounted.snapshot(snapshots.keys().next().unwrap())).unwrap();
    mounted.kill();
    assert!(mounted.is_mounted());
    assert_eq!(errno(fs::read_dir(mounted.path())), libc::ENOTCONN);
    let status = mounted.vmfs().command(["status", mounted.arg()]).output().unwrap();
    assert_eq!(status.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&status.stdout).contains("dead"), "{status:?}");
    assert_eq!(mounted.vmfs().json(["status", mounted.arg()])["state"], "dead");
    mounted.vmfs().run(["umount", "--force", mounted.arg()]);
    assert!(!mounted.is_mounted());
    drop(file);
    assert_eq!(vmstore.files("leases", ".lease").len(), 1, "left behind without a holder");
    vmstore.run(["gc"]);
    assert_eq!(vmstore.files("leases", ".lease").len(), 0);

    // A new mount takes the place of a dead one.
    let again = Mounted::start(&vmstore, mounted.path());
    again.kill();
    let again = Mounted::start(&vmstore, mounted.path());
    let (name, source) = snapshots.first_key_value().unwrap();
    images::assert_same(&again.snapshot(name), source);
    again.unmount();
}

#[test]
fn a_mount_that_hangs_does_not_hang_those_who_ask_for_it() {
    let viewed = Viewed::of(1, 1);
    let stop = |signal| {
        let pid = viewed.mounted.pid().to_string();
        assert!(Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap().success());
    };
    stop("STOP");
    let status = viewed.mounted.vmfs().json(["status", viewed.mounted.arg()]);
    stop("CONT");
    assert_eq!(status["state"], "hangs");
    assert_eq!(viewed.mounted.vmfs().json(["status", viewed.mounted.arg()])["state"], "mounted");

    stop("STOP");
    viewed.mounted.vmfs().run(["umount", "--force", viewed.mounted.arg()]);
    assert!(!viewed.mounted.is_mounted());
    stop("CONT");
    eventually("the end of vmfs", || !viewed.mounted.is_served());
}

#[test]
fn a_read_waits_for_an_owner_until_its_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let viewed = Viewed::of(40, 1);
    let Viewed { site, vmstore, snapshots, mounted: _patient } = viewed;
    let mounted = Mounted::with(&vmstore, site.path("hasty"), &["--timeout", "3s"]);
    let (name, source) = snapshots.first_key_value().unwrap();
    let expected = fs::read(source).unwrap();
    let file = File::open(mounted.snapshot(name)).unwrap();
    let lock = File::options().read(true).write(true).open(vmstore.store().join("lock")).unwrap();
    // Owners that start from now on find the store taken.
    vmstore.owners().into_iter().for_each(kill);
    lock.lock().unwrap();
    // Cached data is read without an owner.
    let mut failed = 0;
    for at in (0..40).rev() {
        let asked = Instant::now();
        let read = read_at(&file, at * MIB, 4096);
        let took = asked.elapsed();
        match read {
            Ok(part) => assert!(part == expected[(at * MIB) as usize..][..4096]),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                assert!(took + Duration::from_millis(100) > TIMEOUT, "after {took:?} already");
                assert!(took < 4 * TIMEOUT, "after {took:?} only");
                failed += 1;
                break;
            }
        }
    }
    assert_eq!(failed, 1, "all was known from before");
    lock.unlock().unwrap();
    eventually("another owner", || file.read_exact_at(&mut vec![0; 40 * MIB as usize], 0).is_ok());
    images::assert_same(&mounted.snapshot(name), source);
}

/// Most descriptors that a process may have.
fn limit_descriptors(pid: u32, most: &str) {
    let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={most}")]).status().unwrap();
    assert!(set.success());
}

#[test]
fn without_descriptors_it_says_so_and_goes_on_when_there_are_some() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let viewed = Viewed::of(4, 2);
    viewed.mounted.vmfs().run(["clone", "create", "vm", "web01"]);
    let (pid, path) = (viewed.mounted.pid(), viewed.mounted.clone_file("vm"));
    let names: Vec<_> = viewed.snapshots.keys().map(|name| viewed.mounted.snapshot(name)).collect();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let largest = descriptors.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap()).max();
    let use_all = |round: u8| -> io::Result<()> {
        let clone = File::options().read(true).write(true).open(&path)?;
        clone.write_all_at(&[round; 9000], 5000)?;
        clone.sync_all()?;
        names.iter().try_for_each(|name| {
            let file = File::open(name)?;
            forget_pages(&file);
            read_at(&file, 0, 4096).map(drop)
        })
    };
    let mut failures = Vec::new();
    for more in 0..12 {
        limit_descriptors(pid, &format!("{}:", largest.unwrap() + 1 + more));
        let asked = Instant::now();
        failures.extend(use_all(more as u8 + 1).err().map(|error| error.raw_os_error().unwrap()));
        assert!(asked.elapsed() < PATIENCE, "{more} descriptors: {:?}", asked.elapsed());
    }
    assert!(failures.contains(&libc::EMFILE), "{failures:?}");
    assert!(failures.iter().all(|errno| [libc::EMFILE, libc::EIO].contains(errno)), "{failures:?}");
    limit_descriptors(pid, "4096:");
    use_all(77).unwrap();
    assert_eq!(read_at(&File::open(&path).unwrap(), 5000, 9000).unwrap(), [77; 9000]);
    images::assert_same(&viewed.first().0, &viewed.first().1);
}
