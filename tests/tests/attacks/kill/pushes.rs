//! Pushes to another site, whose owner, whose client or whose other owner dies.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tests::{Listening, Running, Serving, Site, Vmstore, eventually};

use super::{Killer, Struck, Victim, Work, kill_owners};

/// Kills in pushes to one empty site, before the push that must succeed.
const KILLS_A_ROUND: u32 = 3;
const IMAGE_MIB: u64 = 28;

/// A push of all nights of a store, to one empty store after the other.
pub(super) struct Push {
    // First, because its owner ends before its directory goes.
    far: Far,
    near: Vmstore,
    nights: BTreeMap<String, PathBuf>,
    site: Site,
    strikes: u32,
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

    /// Removes it, so that the next one finds room.
    fn end(self) {
        drop(self.serving);
        fs::remove_dir_all(self.vmstore.store()).unwrap();
    }
}

impl Push {
    pub(super) fn new() -> Self {
        let site = Site::new();
        let near = site.store("near");
        let nights = site.nights(&near, IMAGE_MIB, 2);
        let far = Far::new(&site, "first");
        Self { far, near, nights, site, strikes: 0 }
    }

    fn renew_far(&mut self) {
        let far = Far::new(&self.site, &format!("far{}", self.strikes));
        std::mem::replace(&mut self.far, far).end();
    }

    fn to(&self, far: &Far) -> Command {
        let pin = far.listening.fingerprint.as_deref().expect("TLS has keys");
        let mut push = self.near.command(["push", &far.listening.address, "--all", "--retries", "0", "--pin", pin]);
        push.env("VMSTORE_TOKEN", &far.token);
        push
    }

    fn assert_arrived(&self) {
        let names: Vec<_> = self.nights.keys().cloned().collect();
        assert_eq!(self.far.vmstore.snapshots(), names, "what was acknowledged is lost");
    }
}

impl Work for Push {
    fn prepare(&mut self) {
        if self.strikes.is_multiple_of(KILLS_A_ROUND) {
            self.renew_far();
        }
        self.strikes += 1;
    }

    fn command(&self) -> Command {
        self.to(&self.far)
    }

    fn kill(&mut self, victim: Victim) -> bool {
        match victim {
            Victim::Command => unreachable!("whoever runs it kills it"),
            Victim::Owner => kill_owners(&self.near),
            Victim::FarOwner => {
                self.far.kill();
                true
            }
        }
    }

    fn check(&mut self, struck: &Struck) {
        self.far.serve();
        if struck.succeeded() {
            self.assert_arrived();
        }
        if self.strikes.is_multiple_of(KILLS_A_ROUND) {
            Running::start(&mut self.command()).succeed();
            self.assert_arrived();
            self.far.vmstore.assert_has_all(&self.nights);
            assert_eq!(self.far.vmstore.files("packs", ".part"), [""; 0]);
        }
    }

    fn end(&mut self) {
        self.near.assert_has_all(&self.nights);
    }
}

#[test]
fn a_site_that_was_killed_all_the_time_has_no_garbage_in_the_end() {
    let mut push = Push::new();
    let mut killer = Killer::new(&push);
    let clean = std::mem::replace(&mut push.far, Far::new(&push.site, "far"));
    for victim in [Victim::Command, Victim::FarOwner, Victim::Owner] {
        let struck = killer.strike(&mut push, victim);
        push.far.serve();
        if struck.succeeded() {
            push.assert_arrived();
        }
    }
    Running::start(&mut push.command()).succeed();
    let far = &push.far;
    far.vmstore.collect_all();
    clean.vmstore.collect_all();
    far.vmstore.assert_has_all(&push.nights);
    // Packs have heads and tables: what came in many small ones is a little more than what came in one.
    eventually("an end of what broken pushes left", || {
        let (bytes, clean_bytes) = (far.vmstore.packs_bytes(), clean.vmstore.packs_bytes());
        assert_eq!(far.vmstore.json(["stats"])["records"], clean.vmstore.json(["stats"])["records"]);
        bytes < clean_bytes + clean_bytes / 10
    });
}
