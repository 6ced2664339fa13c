//! A far store behind a mount that lies: about bytes, records, sizes, names and numbers, or says nothing. Readers get
//! the right bytes or an error, what is here is served on, the memory stays bounded, and the mount can be taken away.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::liar::{Liar, Lie};
use tests::images::{self, Rng};
use tests::torture::Torture;
use tests::{Mounted, Serving, Site, Vmstore, eventually};

const MIB: u64 = 1 << 20;
/// Longest wait for an event.
const PATIENCE: Duration = Duration::from_mins(1);
/// After that no more reads are begun.
const ENOUGH: Duration = Duration::from_secs(4);
/// More than a mount with so small a cache needs.
const MEMORY_BYTES_MAX: u64 = 700 << 20;

/// A store with one night here, and another store with one night behind a liar.
struct World {
    near: Vmstore,
    local: (String, PathBuf),
    far: (String, PathBuf),
    liar: Liar,
    _serving: Serving,
    site: Site,
}

impl World {
    fn new() -> Self {
        let site = Site::new();
        let (near, far) = (site.store("near"), site.store("far"));
        let [here, there] =
            [(7, "here.raw", &near, "web00"), (8, "there.raw", &far, "web01")].map(|(seed, file, store, image)| {
                let path = site.make(file, 24, seed);
                store.run(["ingest", &site.arg(file), "--image", image, "--time", "20261101T020000Z"]);
                (format!("{image}@20261101T020000Z"), path)
            });
        let serving = Serving::start(&far, &["--listen", "tcp://127.0.0.1:0", "--allow-plain"]);
        let address: SocketAddr = serving.listening()[0].address.strip_prefix("tcp://").unwrap().parse().unwrap();
        let token = site.path("token");
        fs::write(&token, far.run(["token", "add", "near", "--role", "admin"])).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        Self { near, local: here, far: there, liar: Liar::start(address), _serving: serving, site }
    }

    fn mount(&self, more: &[&str]) -> Mounted {
        let upstream = format!("tcp://{}", self.liar.address());
        let token = self.site.arg("token");
        let args =
            ["--upstream", &upstream, "--allow-plain", "--token-file", &token, "--timeout", "2s", "--cache", "32MiB"];
        Mounted::with(&self.near, self.site.path("mnt"), &[&args[..], more].concat())
    }

    /// Files in the directory of the test.
    fn files(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.site.path("near").parent().unwrap()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Fails unless all is well with the mount, but for what is far.
    fn assert_serves(&self, mounted: &Mounted, what: &str) {
        images::assert_same(&mounted.snapshot(&self.local.0), &self.local.1);
        assert_eq!(mounted.status()["pid"], mounted.pid(), "{what}");
        let peak = peak_memory_bytes(mounted.pid());
        assert!(peak < MEMORY_BYTES_MAX, "{what}: {peak} bytes of memory");
        let log = fs::read_to_string(self.near.store().join("vmfs.log")).unwrap_or_default();
        assert!(!log.contains("panicked"), "{what}: {log}");
    }
}

fn peak_memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Reads parts at random; whatever comes must be right. Returns how many reads succeeded and failed.
fn read_about(file: &File, image: &File, rng: &mut Rng, reads: u64) -> [u64; 2] {
    let (mut counts, started) = ([0, 0], Instant::now());
    for _ in 0..reads {
        let (at, bytes) = (rng.below(23 * MIB), 1 + rng.below(MIB / 4) as usize);
        let (mut found, mut expected) = (vec![0; bytes], vec![0; bytes]);
        image.read_exact_at(&mut expected, at).unwrap();
        let asked = Instant::now();
        match file.read_exact_at(&mut found, at) {
            Ok(()) => {
                assert!(found == expected, "wrong bytes at {at}");
                counts[0] += 1;
            }
            Err(error) => {
                // The mount may be taken away meanwhile.
                assert!(
                    matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOTCONN | libc::ECONNABORTED)),
                    "{error}"
                );
                counts[1] += 1;
            }
        }
        assert!(asked.elapsed() < PATIENCE, "a read of {bytes} bytes at {at} took {:?}", asked.elapsed());
        if started.elapsed() > ENOUGH {
            break;
        }
    }
    counts
}

#[test]
fn with_any_answer_of_a_far_store_no_byte_is_wrong_and_the_mount_lives() {
    let torture = Torture::begin("a far store that lies");
    let mut tried = 0;
    let lies = Lie::of_records();
    while torture.goes_on(tried, lies.len() as u64) {
        let lie = lies[tried as usize % lies.len()];
        let mut rng = torture.rng(tried);
        let world = World::new();
        let before = world.files();
        // Connected while it is honest, or lied to from the beginning.
        let mounted = if tried.is_multiple_of(2) {
            let mounted = world.mount(&[]);
            world.liar.tell(lie);
            mounted
        } else {
            world.liar.tell(lie);
            world.mount(&["--record", "--hydrate", "web01@latest"])
        };
        let image = File::open(&world.far.1).unwrap();
        let mut counts = [0, 0];
        // Where not even the list comes there is no such file.
        match File::open(mounted.snapshot(&world.far.0)) {
            Ok(file) => counts = read_about(&file, &image, &mut rng, 6),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EIO)), "{lie:?}: {error}"),
        }
        world.assert_serves(&mounted, &format!("{lie:?}"));
        assert!(!lie.hides_all() || counts[0] == 0, "{lie:?}: {counts:?}, and nothing true was said");
        println!("{lie:?}: {} reads succeeded, {} failed, told {} times", counts[0], counts[1], world.liar.told());
        eventually(&format!("{lie:?}"), || world.liar.told() > 0);
        if tried % 3 == 2 {
            // While it lies, and while a reader waits for it.
            let file = File::open(mounted.snapshot(&world.far.0));
            thread::scope(|scope| {
                let reading = scope.spawn(|| file.map(|file| read_about(&file, &image, &mut rng, 1)));
                thread::sleep(Duration::from_millis(100));
                mounted.vmfs().run(["umount", "--force", mounted.arg()]);
                let _ = reading.join().unwrap_or_else(|_| panic!("{lie:?}: a reader"));
            });
            assert!(!mounted.is_mounted());
        } else {
            world.liar.tell(Lie::Nothing);
            eventually("the truth", || {
                let file = File::open(mounted.snapshot(&world.far.0));
                file.is_ok_and(|file| read_whole(&file, 24 * MIB).is_ok())
            });
            images::assert_same(&mounted.snapshot(&world.far.0), &world.far.1);
            mounted.unmount();
        }
        let mut after = world.files();
        after.remove("mnt");
        assert_eq!(after, before, "{lie:?}: files outside the store");
        assert_eq!(world.near.json(["verify"])["sound"], true, "{lie:?}");
        tried += 1;
    }
    torture.end(tried, "lies");
}

fn read_whole(file: &File, bytes: u64) -> io::Result<()> {
    file.read_exact_at(&mut vec![0; bytes as usize], 0)
}

#[test]
fn any_snapshots_that_a_far_store_claims_can_be_listed_and_opened() {
    let world = World::new();
    let before = world.files();
    world.liar.tell(Lie::Entries);
    let mounted = world.mount(&[]);
    let names = |image: &str| -> Vec<String> {
        let entries = fs::read_dir(mounted.path().join("snapshots").join(image)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let images = names("");
    assert!(
        images.iter().all(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))),
        "{images:?}"
    );
    let mut looked_at = 0;
    for image in images.iter().filter(|image| image.starts_with("liar")) {
        for name in names(image) {
            let path = mounted.path().join("snapshots").join(image).join(&name);
            let size = fs::metadata(&path).unwrap().len();
            let asked = Instant::now();
            let Ok(file) = File::open(&path) else { continue };
            for at in [0, 4096, size / 2, size.saturating_sub(4096)] {
                let mut part = [0; 4096];
                if let Err(error) = file.read_at(&mut part, at) {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{}: {error}", path.display());
                }
            }
            assert!(asked.elapsed() < PATIENCE, "{} took {:?}", path.display(), asked.elapsed());
            looked_at += 1;
        }
    }
    assert!(looked_at > 5, "{images:?}");
    println!("{} images, {looked_at} files looked at", images.len());
    world.assert_serves(&mounted, "entries");
    mounted.unmount();
    let mut after = world.files();
    after.remove("mnt");
    assert_eq!(after, before);
    // A snapshot that was read is here as a partial one, and is not what it claims to be.
    let is_lie = |name: &str| name.starts_with("liar");
    let verified = world.near.command(["verify", "--json"]).output().unwrap();
    let damage = serde_json::from_slice::<serde_json::Value>(&verified.stdout).unwrap()["damage"].clone();
    let damaged = damage.as_array().unwrap().iter().map(|hurt| hurt["snapshot"].as_str().unwrap().to_owned());
    let lies: Vec<String> = world.near.snapshots().into_iter().filter(|name| is_lie(name)).collect();
    assert!(damaged.clone().all(|name| is_lie(&name)), "{damage}");
    println!("{} of {} lies are found by verify", damaged.collect::<BTreeSet<_>>().len(), lies.len());
    for name in &lies {
        world.near.run(["remove", name]);
    }
    world.near.run(["gc"]);
    assert_eq!(world.near.json(["verify"])["sound"], true);
    world.near.assert_holds(&world.local.0, &world.local.1);
}

#[test]
fn a_hundred_thousand_far_snapshots_are_listed() {
    let world = World::new();
    world.liar.tell(Lie::Crowd);
    let started = Instant::now();
    let mounted = world.mount(&[]);
    let listed = || fs::read_dir(mounted.path().join("snapshots")).unwrap().count();
    eventually("a long list", || listed() > 50_000);
    let one = fs::read_dir(mounted.path().join("snapshots/crowd-77")).unwrap().count();
    assert!(one > 0);
    println!("{} images listed, {:?} after the start", listed(), started.elapsed());
    world.assert_serves(&mounted, "a crowd");
    mounted.unmount();
}
