//! `kill -9` of either side of a push, at random moments, a hundred times in all: the push is repeated, and then the
//! other site has everything, bit for bit, and is sound.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tests::images::Rng;
use tests::{Listening, Running, Serving, Site, Vmstore, eventually, kill, stderr};

/// Pushes to one empty site, of which all but the last are broken.
const ROUNDS: u32 = 17;
const KILLS_A_ROUND: u32 = 2;
/// Of a hundred kills, those that hit a push at least.
const HITS_PERCENT_MIN: u32 = 33;
const IMAGE_MIB: u64 = 28;
/// The exit code of a command that lost its connection.
const UNREACHABLE: i32 = 7;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The command `push`.
    Client,
    /// The owner of the store that is pushed to.
    FarOwner,
    /// The owner of the store that is pushed from.
    NearOwner,
}

/// A store with nights to push, and where they are pushed to: one store after the other.
struct Sites {
    site: Site,
    near: Vmstore,
    nights: BTreeMap<String, PathBuf>,
    rng: Rng,
    /// How long a push takes that nothing disturbs, or somewhat less.
    whole: Duration,
    kills: u32,
    hits: u32,
}

/// A store to push to, and its owner.
struct Far {
    vmstore: Vmstore,
    token: String,
    /// None once it has been killed.
    serving: Option<Serving>,
    listening: Listening,
}

impl Far {
    fn new(site: &Site, name: &str) -> Self {
        let vmstore = site.store(name);
        let token = vmstore.run(["token", "add", "site-a", "--role", "push"]).trim().to_owned();
        let serving = Serving::start(&vmstore, &["--listen", "tls://127.0.0.1:0"]);
        let listening = serving.listening()[0].clone();
        Self { vmstore, token, serving: Some(serving), listening }
    }

    /// Kills its owner, and has another listen where that did.
    fn kill(&mut self) {
        self.serving.take().expect("it is started anew after each kill").kill();
    }

    fn serve(&mut self) {
        if self.serving.is_none() {
            self.serving = Some(Serving::start(&self.vmstore, &["--listen", &self.listening.address]));
        }
    }

    /// Gives up, so that the next of its kind finds room.
    fn end(self) {
        drop(self.serving);
        fs::remove_dir_all(self.vmstore.store()).unwrap();
    }
}

impl Sites {
    fn new() -> Self {
        let rng = Rng::from_clock();
        let site = Site::new();
        let near = site.store("near");
        let nights = site.nights(&near, IMAGE_MIB, 2);
        let mut sites = Self { site, near, nights, rng, whole: Duration::ZERO, kills: 0, hits: 0 };
        let far = Far::new(&sites.site, "first");
        let started = Instant::now();
        Running::start(&mut sites.push(&far)).succeed();
        sites.whole = started.elapsed();
        far.end();
        sites
    }

    fn push(&self, far: &Far) -> Command {
        let pin = far.listening.fingerprint.as_deref().expect("TLS has keys");
        let mut push = self.near.command(["push", &far.listening.address, "--all", "--retries", "0", "--pin", pin]);
        push.env("VMSTORE_TOKEN", &far.token);
        push
    }

    /// Starts a push and kills after a random part of the time that one takes.
    fn break_push(&mut self, far: &mut Far, victim: Victim) {
        let mut push = Running::start(&mut self.push(far));
        let fraction = self.rng.fraction();
        thread::sleep(self.whole.mul_f64(fraction));
        self.kills += 1;
        if push.is_running() {
            self.hits += 1;
            self.whole = self.whole.mul_f64(1.1);
        } else {
            // The first push may have been a slow one, and a repeated one has less to do.
            self.whole = self.whole.mul_f64(0.7);
        }
        match victim {
            Victim::Client => push.child().kill().unwrap(),
            Victim::FarOwner => far.kill(),
            Victim::NearOwner => self.near.owners().into_iter().for_each(kill),
        }
        let output = push.wait();
        let (code, said) = (output.status.code(), stderr(&output));
        println!("{victim:?} killed after {fraction:.3} of {:?}: the push ended with {code:?}: {said}", self.whole);
        let expected = [Some(0), if victim == Victim::Client { None } else { Some(UNREACHABLE) }];
        assert!(expected.contains(&code) && !said.contains("panicked"), "{}: {said}", output.status);
        if code == Some(0) {
            far.serve();
            self.assert_arrived(far);
        }
    }

    fn assert_arrived(&self, far: &Far) {
        let names: Vec<_> = self.nights.keys().cloned().collect();
        assert_eq!(far.vmstore.snapshots(), names, "what was acknowledged is lost");
    }

    fn round(&mut self, number: u32, victim: Victim) {
        let mut far = Far::new(&self.site, &format!("far{number}"));
        for _ in 0..KILLS_A_ROUND {
            self.break_push(&mut far, victim);
            far.serve();
        }
        Running::start(&mut self.push(&far)).succeed();
        self.assert_arrived(&far);
        far.vmstore.assert_has_all(&self.nights);
        assert_eq!(far.vmstore.files("packs", ".part"), [""; 0]);
        far.end();
    }
}

fn assert_survives(victim: Victim) {
    let mut sites = Sites::new();
    (0..ROUNDS).for_each(|number| sites.round(number, victim));
    sites.near.assert_has_all(&sites.nights);
    let (hits, kills) = (sites.hits, sites.kills);
    println!("{hits} of {kills} kills hit a push");
    assert!(hits * 100 >= kills * HITS_PERCENT_MIN, "only {hits} of {kills} kills hit a push");
}

#[test]
fn a_killed_push_is_repeated() {
    assert_survives(Victim::Client);
}

#[test]
fn a_push_to_a_killed_owner_is_repeated() {
    assert_survives(Victim::FarOwner);
}

#[test]
fn a_push_from_a_killed_owner_is_repeated() {
    assert_survives(Victim::NearOwner);
}

#[test]
fn a_site_that_was_killed_all_the_time_has_no_garbage_in_the_end() {
    let mut sites = Sites::new();
    let mut far = Far::new(&sites.site, "far");
    let clean = Far::new(&sites.site, "clean");
    Running::start(&mut sites.push(&clean)).succeed();
    for victim in [Victim::Client, Victim::FarOwner, Victim::NearOwner] {
        sites.break_push(&mut far, victim);
        far.serve();
    }
    Running::start(&mut sites.push(&far)).succeed();
    far.vmstore.collect_all();
    clean.vmstore.collect_all();
    far.vmstore.assert_has_all(&sites.nights);
    // Packs have heads and tables: what came in many small ones is a little more than what came in one.
    eventually("an end of what broken pushes left", || {
        let (bytes, clean_bytes) = (far.vmstore.packs_bytes(), clean.vmstore.packs_bytes());
        assert_eq!(far.vmstore.json(["stats"])["records"], clean.vmstore.json(["stats"])["records"]);
        bytes < clean_bytes + clean_bytes / 10
    });
}
