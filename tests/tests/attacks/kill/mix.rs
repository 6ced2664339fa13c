//! `kill -9` of whoever works at two sites, in a mix that does not stop for it: owners, ingests, removals, gc, pushes,
//! and a mount that is read. What was acknowledged is there bit for bit, what was not is whole or not there, and
//! nothing stays that gc can't free.

mod ledger;
mod slot;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use tests::images::{self, Rng};
use tests::torture::Torture;
use tests::{Mounted, Site, Vmstore, eventually, kill};

use self::ledger::Ledger;
use self::slot::Slot;

/// In the short form; each kind is killed once a round.
const ROUNDS: u64 = 6;
/// Of the kills of each kind, those that must hit one at work.
const HITS_PERCENT_MIN: u64 = 80;
/// How often a kill that came too late is tried again.
const TRIES: u32 = 20;
const IMAGE_MIB: u64 = 16;
/// Snapshots that removals leave, of all images.
const KEPT: usize = 6;
/// Before an owner or a mount is killed, up to so many milliseconds.
const PAUSE_MS_MAX: u64 = 500;
/// The exit code of a push that could not send all snapshots.
const DAMAGE_FOUND: i32 = 3;
/// 2026-01-01, the first snapshot's time; later ones follow a second apart.
const FIRST_TIME_S: u64 = 1_767_225_600;

/// The process to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    NearOwner,
    FarOwner,
    Ingest,
    Removal,
    Gc,
    Push,
    Mount,
}

const VICTIMS: [Victim; 7] =
    [Victim::NearOwner, Victim::FarOwner, Victim::Ingest, Victim::Removal, Victim::Gc, Victim::Push, Victim::Mount];

/// Two sites, and all that works there.
struct Mix {
    near: Vmstore,
    far: Vmstore,
    ingests: [Slot; 2],
    removal: Slot,
    gc: Slot,
    push: Slot,
    view: Mutex<View>,
    reads: AtomicU64,
    ledger: Mutex<Ledger>,
    snapshots: AtomicU64,
    stop: AtomicBool,
    // Last, so that mounts are taken down before.
    site: Site,
}

/// The mount that is read, which the reader mounts again after a kill.
struct View {
    /// None while it is being mounted.
    mounted: Option<Mounted>,
    is_killed: bool,
}

/// Stops the mix when one of its threads ends, however that ends.
struct StopsAll<'a>(&'a AtomicBool);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Mix {
    fn new() -> Self {
        let site = Site::new();
        let (near, far) = (site.store("near"), site.store("far"));
        (0..2).for_each(|number| drop(site.make(&image_file(number), IMAGE_MIB, number as u64)));
        let view = Mutex::new(View { mounted: Some(near.mount(&[])), is_killed: false });
        Self {
            near,
            far,
            ingests: Default::default(),
            removal: Slot::default(),
            gc: Slot::default(),
            push: Slot::default(),
            view,
            reads: AtomicU64::new(0),
            ledger: Mutex::default(),
            snapshots: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            site,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Lets all work, kills each kind once, stops all and looks; counts the hits.
    fn round(&self, rng: &mut Rng, hits: &mut BTreeMap<Victim, u64>) {
        let mut victims = VICTIMS.to_vec();
        let order: Vec<_> = (0..victims.len()).map(|_| rng.number()).collect();
        victims.sort_by_key(|victim| order[*victim as usize]);
        self.stop.store(false, Ordering::SeqCst);
        let [mut first, mut second, mut reader] = [(); 3].map(|()| Rng::new(rng.number()));
        thread::scope(|scope| {
            scope.spawn(|| self.work(|| self.ingest(0, &mut first)));
            scope.spawn(|| self.work(|| self.ingest(1, &mut second)));
            scope.spawn(|| self.work(|| self.remove()));
            scope.spawn(|| self.work(|| self.collect()));
            scope.spawn(|| self.work(|| self.push()));
            scope.spawn(|| self.work(|| self.read(&mut reader)));
            let _stops = StopsAll(&self.stop);
            for victim in victims {
                *hits.entry(victim).or_default() += u64::from(self.kill(victim, rng));
            }
        });
        self.assert_sound();
    }

    /// Repeats a step until all stop.
    fn work(&self, mut step: impl FnMut()) {
        let _stops = StopsAll(&self.stop);
        while !self.stop.load(Ordering::SeqCst) {
            step();
        }
    }

    /// Kills one of a kind at a random moment of its work; returns whether it was at work.
    fn kill(&self, victim: Victim, rng: &mut Rng) -> bool {
        match victim {
            Victim::NearOwner => self.kill_owner(&self.near, rng),
            Victim::FarOwner => self.kill_owner(&self.far, rng),
            Victim::Ingest => self.kill_command(&self.ingests[rng.below(2) as usize], rng),
            Victim::Removal => self.kill_command(&self.removal, rng),
            Victim::Gc => self.kill_command(&self.gc, rng),
            Victim::Push => self.kill_command(&self.push, rng),
            Victim::Mount => self.kill_mount(rng),
        }
    }

    fn kill_owner(&self, vmstore: &Vmstore, rng: &mut Rng) -> bool {
        thread::sleep(Duration::from_millis(rng.below(PAUSE_MS_MAX)));
        let mut owners = Vec::new();
        eventually("an owner", || {
            owners = vmstore.owners();
            !owners.is_empty() || self.stop.load(Ordering::SeqCst)
        });
        let hit = !owners.is_empty();
        owners.into_iter().for_each(kill);
        hit
    }

    /// If it ended before, tries the next one.
    fn kill_command(&self, slot: &Slot, rng: &mut Rng) -> bool {
        (0..TRIES).any(|_| {
            eventually("the next command", || slot.is_busy() || self.stop.load(Ordering::SeqCst));
            thread::sleep(slot.whole().mul_f64(rng.fraction()));
            slot.kill()
        })
    }

    fn kill_mount(&self, rng: &mut Rng) -> bool {
        thread::sleep(Duration::from_millis(rng.below(PAUSE_MS_MAX)));
        let reads = self.reads.load(Ordering::SeqCst);
        eventually("a read", || self.reads.load(Ordering::SeqCst) > reads || self.stop.load(Ordering::SeqCst));
        let mut view = self.view.lock().unwrap();
        let hit = view.mounted.as_ref().inspect(|mounted| mounted.kill()).is_some();
        view.is_killed |= hit;
        hit
    }

    /// Ingests the next night of an image.
    fn ingest(&self, number: usize, rng: &mut Rng) {
        let path = self.site.path(&image_file(number));
        change(&path, rng);
        let time = time(self.snapshots.fetch_add(1, Ordering::SeqCst));
        let image = format!("web{number}");
        let name = format!("{image}@{time}");
        self.ledger().begin(&name, images::digest(&path));
        let args = ["ingest", path.to_str().unwrap(), "--image", &image, "--time", &time];
        if self.ingests[number].run(&mut self.near.command(args), |_| false).status.success() {
            self.ledger().ingested(&name);
        }
    }

    /// Removes what is old, if there is any.
    fn remove(&self) {
        let names = self.ledger().begin_removal(KEPT);
        if names.is_empty() {
            thread::sleep(Duration::from_millis(10));
            return;
        }
        let args = ["remove"].into_iter().chain(names.iter().map(String::as_str));
        if self.removal.run(&mut self.near.command(args), |_| false).status.success() {
            self.ledger().removed(&names);
        }
    }

    fn collect(&self) {
        for vmstore in [&self.near, &self.far] {
            self.gc.run(&mut vmstore.command(["gc"]), |_| false);
        }
    }

    fn push(&self) {
        let there = self.ledger().there();
        let mut push = self.near.command([OsStr::new("push"), self.far.store().as_os_str(), OsStr::new("--all")]);
        if self.push.run(&mut push, |output| self.only_removed_are_missing(output)).status.success() {
            let far = self.far.snapshots();
            self.ledger().pushed(&there, &far);
        }
    }

    /// Whether a push failed because snapshots were removed meanwhile, and for nothing else.
    fn only_removed_are_missing(&self, output: &std::process::Output) -> bool {
        let printed = String::from_utf8_lossy(&output.stdout);
        let mut failed = printed.lines().filter_map(|line| line.strip_prefix("failed: ")).peekable();
        let ledger = self.ledger();
        output.status.code() == Some(DAMAGE_FOUND) && failed.peek().is_some() && failed.all(|name| !ledger.has(name))
    }

    /// Reads one of the snapshots in the mount, and mounts again if that was killed.
    fn read(&self, rng: &mut Rng) {
        let snapshots = self.near.store().with_extension("mnt").join("snapshots");
        match self.read_any(&snapshots, rng) {
            Ok(has_read) => drop(self.reads.fetch_add(u64::from(has_read), Ordering::SeqCst)),
            Err(error) => {
                let mut view = self.view.lock().unwrap();
                assert!(view.is_killed, "{}: {error}", snapshots.display());
                self.mount_again(&mut view);
            }
        }
    }

    /// Returns whether there was one.
    fn read_any(&self, snapshots: &Path, rng: &mut Rng) -> io::Result<bool> {
        let image = format!("web{}", rng.below(2));
        let files = match files_in(&snapshots.join(&image)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            files => files?,
        };
        let Some(file) = files.get(rng.below(files.len().max(1) as u64) as usize) else { return Ok(false) };
        let name = format!("{image}@{}", file.file_stem().unwrap().to_str().unwrap());
        match images::try_digest(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.ledger().has(&name) => Ok(false),
            digest => {
                assert!(digest? == self.ledger().digest(&name), "{name} has other bytes in the mount");
                Ok(true)
            }
        }
    }

    /// Takes down a mount that was killed, and mounts again. Owners may be killed meanwhile.
    fn mount_again(&self, view: &mut View) {
        // Dropped, it is unmounted.
        view.mounted = None;
        eventually("a mount", || {
            let mounted = Mounted::try_with::<&str>(&self.near, self.near.store().with_extension("mnt"), &[]);
            view.mounted = mounted.ok();
            view.mounted.is_some()
        });
        view.is_killed = false;
    }

    /// Without other work: both sites are sound, have what they must, bit for bit, and nothing else but what gc frees.
    fn assert_sound(&self) {
        // An owner finishes the request of a killed client; a killed owner does not.
        for vmstore in [&self.near, &self.far] {
            vmstore.owners().into_iter().for_each(kill);
            eventually("the end of the owners", || vmstore.owners().is_empty());
        }
        let (near, far) = (self.near.snapshots(), self.far.snapshots());
        self.ledger().settle(&near, &far);
        for (vmstore, names) in [(&self.near, &near), (&self.far, &far)] {
            vmstore.run(["verify"]);
            for name in names {
                self.assert_restores(vmstore, name);
            }
        }
        let outdated = self.ledger().take_outdated();
        if !outdated.is_empty() {
            self.far.run(["remove"].into_iter().chain(outdated.iter().map(String::as_str)));
        }
        for vmstore in [&self.near, &self.far] {
            vmstore.collect_all();
            let is_clean = || [vmstore.files("packs", ".part"), vmstore.files("leases", "")].iter().all(Vec::is_empty);
            eventually("an end of unfinished packs and leases", || {
                vmstore.run(["gc"]);
                is_clean()
            });
        }
        println!("near {}, far {} snapshots, {} reads", near.len(), far.len(), self.reads.load(Ordering::SeqCst));
    }

    fn assert_restores(&self, vmstore: &Vmstore, name: &str) {
        let restored = self.site.path("restored.raw");
        vmstore.run(["restore", name, restored.to_str().unwrap(), "--force", "--no-sync"]);
        let digest = images::digest(&restored);
        assert!(digest == self.ledger().digest(name), "{name} has other bytes in {}", vmstore.store().display());
    }
}

fn image_file(number: usize) -> String {
    format!("web{number}.raw")
}

/// The time of a snapshot by its number.
fn time(number: u64) -> String {
    let time = jiff::Timestamp::from_second((FIRST_TIME_S + number) as i64).unwrap();
    chunkstore::catalog::SnapshotTime::new(time).unwrap().to_string()
}

/// Writes pages here and there, and every fourth time a quarter of the image anew.
fn change(path: &Path, rng: &mut Rng) {
    let file = File::options().write(true).open(path).unwrap();
    let pages = IMAGE_MIB * 256;
    for _ in 0..pages / 64 {
        file.write_all_at(&rng.noise(4096), rng.below(pages) * 4096).unwrap();
    }
    if rng.below(4) == 0 {
        let quarter = (IMAGE_MIB << 20) / 4;
        file.write_all_at(&rng.noise(quarter as usize), rng.below(4) * quarter).unwrap();
    }
}

/// The snapshots' files in a directory of a mount.
fn files_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.file_stem().is_some_and(|stem| stem != "latest"));
    files.sort();
    Ok(files)
}

#[test]
fn kills_of_all_kinds_lose_nothing_acknowledged() {
    let torture = Torture::begin("kill_mix");
    let mix = Mix::new();
    let mut hits = BTreeMap::new();
    let mut rounds = 0;
    while torture.goes_on(rounds, ROUNDS) {
        mix.round(&mut torture.rng(rounds), &mut hits);
        rounds += 1;
    }
    println!("of {rounds} kills of each kind these hit one at work: {hits:?}");
    for (victim, hits) in hits {
        assert!(hits * 100 >= rounds * HITS_PERCENT_MIN, "only {hits} of {rounds} kills hit {victim:?} at work");
    }
    assert!(mix.reads.load(Ordering::SeqCst) > rounds, "hardly a read in {rounds} rounds: nothing was tested");
    torture.end(rounds * VICTIMS.len() as u64, "kills");
}
