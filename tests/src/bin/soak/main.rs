//! The soak: nights of several machines at three sites, as many as the time allows (half an hour is about a year), by a
//! simulated calendar. Each night all machines are ingested, pushed to the second site and pulled by the third; then
//! each site prunes by one policy, and now and then collects. Meanwhile eight mounts are read and verified, and two
//! clones are written, verified and committed. The resources of processes are plotted, and must be flat after warming
//! up.
//!
//! `soak [--seconds 1800] [--seed N] [--picture FILE]`; the exit code is 1 if anything failed, differed or grew.

#![allow(clippy::unwrap_used, reason = "it fails as a test does, by a panic that says what is missing")]

mod clones;
mod machine;
mod nights;
mod picture;
mod readers;
mod samples;
mod verdict;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use blake3::Hash;
use clap::Parser;
use tests::images::Rng;
use tests::{Mounted, Serving, Site, Vmstore};

use crate::nights::Nights;
use crate::samples::Samples;

/// Mounts of each site, in the order of [`SITES`].
const MOUNTS: [usize; 3] = [4, 2, 2];
/// The stores' names.
const SITES: [&str; 3] = ["first", "second", "third"];
const CLONES: usize = 2;
/// The cache of each mount.
const CACHE: &str = "16MiB";
/// The index cache of each store.
const INDEX_CACHE_BYTES: u64 = 2 << 20;

/// Simulated nights of three sites.
#[derive(Parser)]
struct Options {
    /// How long it lasts, without its end, which verifies everything
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
    /// Repeats what machines, readers and writers did in an earlier run [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Where the picture goes
    #[arg(long, default_value_os_t = std::env::temp_dir().join("vmstore-soak.svg"))]
    picture: PathBuf,
    /// Where the stores and images go
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    work: PathBuf,
}

/// Shared by all threads.
struct Soak {
    stores: Vec<Vmstore>,
    /// The hash of each mebibyte of each snapshot that was ever made, by its name.
    digests: Mutex<BTreeMap<String, Arc<Vec<Hash>>>>,
    /// Errors so far.
    trouble: Mutex<Vec<String>>,
    stop: AtomicBool,
    /// How many nights there were.
    nights: AtomicU64,
    read_mib: AtomicU64,
    commits: AtomicU64,
    /// Of the first store: bytes in packs and distinct plain bytes of its snapshots, after each collection.
    collected: Mutex<Vec<Collected>>,
    started: Instant,
    // Last, so that everything in it has ended before.
    site: Site,
}

/// The first store after a collection.
#[derive(Clone, Copy)]
struct Collected {
    at_s: f64,
    packs_bytes: u64,
    live_bytes: u64,
}

/// A store whose index has a cache that is soon full: also of what was deleted, which grows until then and looks like a
/// leak.
fn small_store(site: &Site, name: &str) -> Vmstore {
    let store = site.store(name);
    let path = store.store().join("config.toml");
    let (config, usual) = (fs::read_to_string(&path).unwrap(), "index_cache_bytes = 33554432");
    assert!(config.contains(usual), "{config}");
    fs::write(path, config.replace(usual, &format!("index_cache_bytes = {INDEX_CACHE_BYTES}"))).unwrap();
    store
}

impl Soak {
    fn new(work: &Path) -> Self {
        let site = Site::below(work);
        Self {
            stores: SITES.map(|name| small_store(&site, name)).into(),
            digests: Mutex::default(),
            trouble: Mutex::default(),
            stop: AtomicBool::new(false),
            nights: AtomicU64::new(0),
            read_mib: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            collected: Mutex::default(),
            started: Instant::now(),
            site,
        }
    }

    fn digests(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Vec<Hash>>>> {
        self.digests.lock().unwrap()
    }

    /// Notes what went wrong, and ends the soak.
    fn fail(&self, what: String) {
        eprintln!("soak: {what}");
        self.trouble.lock().unwrap().push(what);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// Sleeps, but not past the end.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while self.goes_on() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Repeats a step until the end; a panic is trouble.
    fn repeat(&self, what: &str, mut step: impl FnMut()) {
        while self.goes_on() {
            self.attempt(what, &mut step);
        }
    }

    /// Takes a step; a panic is trouble.
    fn attempt(&self, what: &str, step: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(step)) {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            self.fail(format!("{what}: {said}"));
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut rng = options.seed.map_or_else(Rng::from_clock, |seed| {
        println!("seed: VMSTORE_TEST_SEED={seed}");
        Rng::new(seed)
    });
    let soak = Soak::new(&options.work);
    let owners: Vec<_> = soak.stores.iter().map(|store| Serving::start::<&str>(store, &[])).collect();
    let mounts = soak.mount();
    let mut samples = Samples::new(&owners, &mounts);
    let mut nights = Nights::new(&soak, &mut rng);
    // The first night before all else, so that there is something to read.
    soak.attempt("the first night", || nights.next(&soak));
    thread::scope(|scope| {
        let _ends = Ends(&soak.stop);
        for (number, mounted) in mounts.iter().enumerate() {
            let mut rng = Rng::new(rng.number());
            let soak = &soak;
            scope.spawn(move || soak.repeat(&format!("reader {number}"), || readers::read(soak, mounted, &mut rng)));
        }
        for (number, mounted) in mounts.iter().enumerate().take(CLONES) {
            let mut rng = Rng::new(rng.number());
            let soak = &soak;
            scope.spawn(move || {
                soak.repeat(&format!("clone {number}"), || clones::write(soak, mounted, number, &mut rng));
            });
        }
        scope.spawn(|| soak.repeat("a night", || nights.next(&soak)));
        let duration = Duration::from_secs(options.seconds);
        while soak.goes_on() && soak.started.elapsed() < duration {
            samples.take(&soak);
            soak.pause(samples::every(duration));
        }
    });
    fs::write(&options.picture, picture::draw(&samples.panels(&soak))).unwrap();
    println!("picture: {}", options.picture.display());
    soak.attempt("the end", || nights::end(&soak));
    drop(mounts);
    drop(owners);
    let trouble = [std::mem::take(&mut *soak.trouble.lock().unwrap()), verdict::judge(&soak, &samples)].concat();
    soak.report(&trouble);
    ExitCode::from(u8::from(!trouble.is_empty()))
}

impl Soak {
    fn mount(&self) -> Vec<Mounted> {
        let mut mounts = Vec::new();
        for ((store, site), count) in self.stores.iter().zip(SITES).zip(MOUNTS) {
            for number in 0..count {
                let mountpoint = self.site.path(&format!("{site}-{number}.mnt"));
                mounts.push(Mounted::with(store, mountpoint, &["--cache", CACHE]));
            }
        }
        mounts
    }

    fn report(&self, trouble: &[String]) {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let (nights, commits, read_mib) = (count(&self.nights), count(&self.commits), count(&self.read_mib));
        println!(
            "soak: {nights} nights, {commits} commits of clones, {read_mib} MiB read and verified tried, \
            {} failed, {:.1} s",
            trouble.len(),
            self.started.elapsed().as_secs_f64()
        );
        for what in trouble {
            println!("FAILED: {what}");
        }
    }
}

/// Ends the soak with the scope that it is in.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
