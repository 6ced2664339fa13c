//! How mounts begin and end: the program `vmfs`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::images;
use tests::{Mounted, Running, Site, Vmfs, eventually, is_mounted};

use super::{Viewed, errno};

/// Mounts of one store, one after another; as many as this names.
const ROUNDS_VARIABLE: &str = "VMSTORE_TEST_MOUNTS";

#[test]
fn places_that_are_no_mount_points() {
    let viewed = Viewed::of(1, 1);
    let site = &viewed.site;
    let vmfs = viewed.mounted.vmfs();
    fs::create_dir(site.path("full")).unwrap();
    fs::write(site.path("full/file"), "").unwrap();
    fs::create_dir(site.path("store/mnt")).unwrap();
    std::os::unix::fs::symlink("mnt", site.path("link")).unwrap();
    let mounted = viewed.mounted.arg().to_owned();
    // The mount point, the exit code, and what is said.
    let cases = [
        (site.arg("none"), 5, "not found"),
        (site.arg("none/mnt"), 5, "not found"),
        (site.arg("full/file"), 2, "no directory"),
        (site.arg("full"), 6, "not empty"),
        (site.arg("store/mnt"), 6, "in the store"),
        (mounted.clone(), 6, "already"),
        (site.arg("link"), 6, "already"),
        (format!("{mounted}/clones"), 6, "lies on the vmfs mount"),
        (format!("{mounted}/snapshots/web01"), 6, "lies on the vmfs mount"),
    ];
    for (place, code, words) in cases {
        for foreground in [None, Some("--foreground")] {
            let said = vmfs.expect_exit(code, ["mount", &place].into_iter().chain(foreground));
            assert!(said.starts_with("vmfs: ") && said.contains(words), "{place}: {said}");
        }
    }
    let over = Mounted::with(&viewed.vmstore, site.path("full"), &["--allow-nonempty"]);
    assert!(!site.path("full/file").exists());
    over.unmount();
    assert!(site.path("full/file").exists());
}

#[test]
fn stores_that_can_not_be_mounted() {
    let viewed = Viewed::of(1, 1);
    let site = &viewed.site;
    let place = site.arg("place");
    fs::create_dir(&place).unwrap();
    let on_view = format!("{}/clones", viewed.mounted.arg());
    let mount = |store: &str, code| {
        let mut command = viewed.mounted.vmfs().command(["mount", &place]);
        command.args(["--store", store]);
        let output = command.output().unwrap();
        tests::expect_exit_of(&output, code, &format!("{command:?}"))
    };
    assert!(mount(&site.arg("none"), 5).contains("init"));
    mount(&site.arg("place"), 5);
    let said = viewed.vmstore.command(["init"]).args(["--store", &on_view]).output().unwrap();
    assert!(tests::expect_exit_of(&said, 6, "init on a view").contains("lies on the vmfs mount"));
    assert!(!is_mounted(&site.path("place")));

    let mut without = Command::new(viewed.vmstore.program().with_file_name("vmfs"));
    let output = without.args(["mount", &place]).env_remove("VMSTORE_STORE").output().unwrap();
    assert!(tests::expect_exit_of(&output, 2, "no store").contains("VMSTORE_STORE"));
}

#[test]
fn a_mount_that_is_in_use_says_by_whom() {
    let Viewed { site, snapshots, mounted, .. } = Viewed::of(1, 1);
    let file = File::open(mounted.snapshot(snapshots.keys().next().unwrap())).unwrap();
    let said = mounted.vmfs().expect_exit(4, ["umount", mounted.arg()]);
    let this = format!("process {} ", std::process::id());
    assert!(said.contains("in use") && said.contains(&this) && said.contains("--force"), "{said}");
    assert!(mounted.is_mounted() && mounted.is_served());
    drop(file);
    let said = mounted.vmfs().expect_exit(5, ["umount", &site.arg("elsewhere")]);
    assert!(said.contains("vmfs status"), "{said}");
    mounted.unmount();
}

#[test]
fn by_force_it_ends_whoever_uses_it() {
    let Viewed { site, snapshots, mounted, .. } = Viewed::of(1, 1);
    let file = File::open(mounted.snapshot(snapshots.keys().next().unwrap())).unwrap();
    mounted.vmfs().run(["umount", "--force", mounted.arg()]);
    assert!(!mounted.is_mounted());
    eventually("the end of vmfs", || !mounted.is_served());
    let code = errno(super::read_at(&file, 0, 4096));
    assert!([libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].contains(&code), "{code}");
    assert_eq!(fs::read_dir(site.path("mnt")).unwrap().count(), 0);
    let said = mounted.vmfs().expect_exit(5, ["umount", "--force", mounted.arg()]);
    assert!(said.contains("not found"), "{said}");
}

/// A mount in the foreground.
fn in_foreground(vmfs: &Vmfs, place: &str) -> Running {
    fs::create_dir(place).unwrap();
    let running = Running::start(&mut vmfs.command(["mount", "--foreground", "-v", place]));
    eventually("a mount", || is_mounted(place.as_ref()));
    running
}

fn signal(running: &mut Running, signal: Signal) {
    kill_process(Pid::from_child(running.child()), signal).unwrap();
}

#[test]
fn signals_end_it_well() {
    let site = Site::new();
    let vmstore = site.store("store");
    let (name, source) = site.nights(&vmstore, 1, 1).pop_first().unwrap();
    let (image, time) = name.split_once('@').unwrap();
    let vmfs = Vmfs::beside(&vmstore);
    for (n, which) in [Signal::TERM, Signal::INT, Signal::HUP].into_iter().enumerate() {
        let place = site.arg(&format!("mnt{n}"));
        let mut running = in_foreground(&vmfs, &place);
        let path = format!("{place}/snapshots/{image}/{time}.raw");
        images::assert_same(path.as_ref(), &source);
        let file = File::open(&path).unwrap();
        signal(&mut running, which);
        let mut said = String::new();
        // It is in use, so it goes on.
        let mut stderr = BufReader::new(running.child().stderr.take().unwrap());
        while !said.contains("in use") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        assert!(running.is_running() && is_mounted(place.as_ref()));
        images::assert_same(path.as_ref(), &source);
        drop(file);
        let output = running.wait();
        assert!(output.status.success(), "{}: {said}", output.status);
        assert!(!is_mounted(place.as_ref()));
    }
}

#[test]
fn a_second_signal_does_not_wait() {
    let site = Site::new();
    let vmstore = site.store("store");
    let (name, _) = site.nights(&vmstore, 1, 1).pop_first().unwrap();
    let (image, time) = name.split_once('@').unwrap();
    let place = site.arg("mnt");
    let mut running = in_foreground(&Vmfs::beside(&vmstore), &place);
    let file = File::open(format!("{place}/snapshots/{image}/{time}.raw")).unwrap();
    // Two that come at once may be told as one.
    eventually("its end", || {
        let is_running = running.is_running();
        if is_running {
            signal(&mut running, Signal::TERM);
        }
        !is_running
    });
    let output = running.wait();
    assert!(output.status.success(), "{}: {}", output.status, tests::stderr(&output));
    assert!(!is_mounted(place.as_ref()));
    drop(file);
}

#[test]
fn unmounting_by_hand_ends_it_too() {
    let Viewed { site, mounted, .. } = Viewed::of(1, 1);
    tests::devices::tool("umount", &[mounted.path().as_os_str()]);
    eventually("the end of vmfs", || !mounted.is_served());
    let log = fs::read_to_string(site.path("store/vmfs.log")).unwrap();
    assert!(log.contains("is mounted at") && log.contains("is unmounted"), "{log}");
}

#[test]
fn descriptors_are_given_back() {
    let viewed = Viewed::of(2, 2);
    let pid = viewed.mounted.pid();
    let used = || {
        let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
        count("fd")
    };
    let read_all = || {
        for (name, source) in &viewed.snapshots {
            images::assert_same(&viewed.mounted.snapshot(name), source);
        }
    };
    read_all();
    eventually("the end of all handles", || viewed.mounted.status()["open_files"] == 0);
    let before = used();
    for _ in 0..200 {
        read_all();
    }
    eventually("as many descriptors as before", || used() <= before);
    eventually("the end of all leases", || viewed.vmstore.files("leases", "").is_empty());
}

#[test]
fn many_mounts_leave_nothing_behind() {
    let rounds: usize = std::env::var(ROUNDS_VARIABLE).map_or(50, |rounds| rounds.parse().unwrap());
    let Viewed { site, vmstore, mounted, .. } = Viewed::of(1, 1);
    // It keeps the owner alive, whose descriptors and threads are counted.
    let owner = vmstore.owners();
    let used = || {
        let count = |dir: &str| fs::read_dir(format!("/proc/{}/{dir}", owner[0])).unwrap().count();
        (count("fd"), count("task"))
    };
    let processes = || -> BTreeSet<u32> {
        let entries = fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| tests::command_line(*pid).contains(site.dir().to_str().unwrap())).collect()
    };
    Mounted::start(&vmstore, site.path("other")).unmount();
    let (before, alive) = (used(), processes());
    for _ in 0..rounds {
        let other = Mounted::start(&vmstore, site.path("other"));
        fs::read_dir(other.path().join("snapshots/web01")).unwrap().count();
        other.unmount();
    }
    eventually("as many descriptors and threads as before", || used().0 <= before.0 && used().1 <= before.1 + 2);
    eventually("as many processes as before", || processes() == alive);
    assert_eq!(vmstore.owners(), owner);
    mounted.unmount();
}

#[test]
fn help_and_pages() {
    let site = Site::new();
    let vmfs = Vmfs::beside(&site.store("store"));
    assert!(vmfs.run(["completions", "bash"]).contains("_vmfs"));
    assert!(vmfs.run(["man"]).contains("vmfs"));
    vmfs.run(["man", "--dir", &site.arg("man")]);
    assert!(site.path("man/vmfs-mount.1").exists());
    for words in [&["mount"][..], &["umount"], &["mount", "x", "--cache", "lots"], &["mount", "x", "--timeout", "2"]] {
        vmfs.expect_exit(2, words);
    }
}

#[test]
fn the_status_is_for_people_and_for_programs() {
    let viewed = Viewed::of(2, 1);
    let (path, source) = viewed.first();
    let file = File::open(&path).unwrap();
    images::assert_same(&path, &source);
    eventually("the end of the second handle", || viewed.mounted.status()["open_files"] == 1);
    let vmfs = viewed.mounted.vmfs();
    let text = vmfs.run(["status", viewed.mounted.arg()]);
    for line in ["mounted", "1 file", "2.0 MiB in", "cache", "256.0 MiB", "latency", "0 requests"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json = vmfs.json(["status", viewed.mounted.arg()]);
    assert_eq!((&json["state"], &json["open_files"]), (&"mounted".into(), &1.into()));
    assert_eq!(json["mountpoint"], viewed.mounted.arg());
    assert!(json["reading"]["reads"].as_u64().unwrap() > 0 && json["uptime_s"].as_f64().unwrap() > 0.0, "{json}");
    drop(file);
}

/// Takes a minute, which is how often a mount looks at its log.
#[test]
fn a_long_log_of_several_mounts_is_put_aside_once_and_all_go_on_in_the_new_one() {
    let viewed = Viewed::of(1, 1);
    let (log, older) = (viewed.vmstore.store().join("vmfs.log"), viewed.vmstore.store().join("vmfs.log.1"));
    let is_open = |pid: u32| fs::read_link(format!("/proc/{pid}/fd/2")).unwrap() == log;
    assert!(is_open(viewed.mounted.pid()));
    fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(&b"an old line\n".repeat(100_000)).unwrap();
    let others = ["second", "third"].map(|name| Mounted::start(&viewed.vmstore, viewed.site.path(name)));
    assert!(fs::read_to_string(&older).unwrap().contains("an old line"), "it is replaced by nothing newer");
    let new = || fs::read_to_string(&log).unwrap();
    eventually("a word of each new mount", || new().matches("is mounted at").count() == 2);
    assert!(!new().contains("an old line"), "{}", new());
    assert!(others.iter().all(|mounted| is_open(mounted.pid())));
    let until = Instant::now() + Duration::from_secs(90);
    while !is_open(viewed.mounted.pid()) {
        assert!(Instant::now() < until, "it still writes to the old one");
        thread::sleep(Duration::from_millis(200));
    }
    others.into_iter().for_each(Mounted::unmount);
}
