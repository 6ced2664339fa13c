//! Owners and their clients that die: the other one goes on or says what happened, repeating works, nothing that was
//! acknowledged is lost, and nothing stays that gc can't free.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tests::images::{self, Rng};
use tests::{Running, Serving, Site, Vmstore, eventually, stderr};

use super::{Struck, UNREACHABLE, Victim, Work, kill_owners};

const MIB: u64 = 1 << 20;
/// How long a push shall take that an owner's end breaks: longer than that lets clients go on.
const PUSH_S: u64 = 25;

/// A store with two nights of `web01`, and those.
fn site() -> (Site, Vmstore, BTreeMap<String, PathBuf>) {
    let site = Site::new();
    let vmstore = site.store("store");
    let nights = site.nights(&vmstore, 24, 2);
    (site, vmstore, nights)
}

/// A collection that puts small packs together while a dying session still pins some records may put them next to
/// what snapshots need, and a pack is not rewritten while most of it is needed. Each client sends ten times as much.
const DEAD_BYTES_MAX: u64 = 4 * MIB;

#[test]
fn a_client_killed_in_the_middle_of_an_ingest_leaves_nothing_behind() {
    let (_site, vmstore, nights) = site();
    vmstore.collect_all();
    let before = vmstore.packs_bytes();
    for seed in 0..4 {
        let mut command = vmstore.command(["ingest", "-", "--image", "stream"]);
        let mut ingest = Running::start(command.stdin(Stdio::piped()));
        // More than a pipe and the ingest's buffers hold: when it is gone, some of it is at the owner.
        let noise = Rng::new(50 + seed).noise(40 * MIB as usize);
        ingest.child().stdin.as_mut().unwrap().write_all(&noise).unwrap();
        let output = ingest.kill();
        assert!(output.status.code().is_none(), "it had ended: {}", stderr(&output));
    }
    // Records of a closing connection may still be on their way to a pack during the first collection.
    eventually("the end of what killed clients left", || {
        vmstore.collect_all();
        vmstore.packs_bytes() <= before + DEAD_BYTES_MAX && vmstore.files("packs", ".part").is_empty()
    });
    assert_eq!(vmstore.files("leases", ""), [""; 0]);
    vmstore.assert_has_all(&nights);
}

#[test]
fn a_stream_is_ingested_whole_or_not_at_all() {
    let (site, vmstore, nights) = site();
    let image = site.make("stream.raw", 64, 9);
    let bytes = fs::read(&image).unwrap();
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    let mut command = vmstore.command(["ingest", "-", "--image", "stream"]);
    let mut ingest = Running::start(command.stdin(Stdio::piped()));
    ingest.child().stdin.as_mut().unwrap().write_all(first).unwrap();
    kill_owners(&vmstore);
    // It may have given up by now.
    let _ = ingest.child().stdin.take().unwrap().write_all(rest);
    let output = ingest.wait();
    assert_eq!(output.status.code(), Some(UNREACHABLE), "{}", stderr(&output));
    vmstore.assert_has_all(&nights);
}

/// A restore through an owner.
pub(super) struct Restore {
    site: Site,
    vmstore: Vmstore,
    nights: BTreeMap<String, PathBuf>,
}

impl Restore {
    pub(super) fn new() -> Self {
        let (site, vmstore, nights) = site();
        Self { site, vmstore, nights }
    }

    fn restored(&self) -> PathBuf {
        self.site.path("restored.raw")
    }
}

impl Work for Restore {
    fn prepare(&mut self) {
        let _ = fs::remove_file(self.restored());
        self.vmstore.run(["stats"]);
    }

    fn command(&self) -> Command {
        let (snapshot, _) = self.nights.first_key_value().unwrap();
        self.vmstore.command(["restore", snapshot, self.restored().to_str().unwrap(), "--force"])
    }

    fn kill(&mut self, victim: Victim) -> bool {
        assert_eq!(victim, Victim::Owner);
        kill_owners(&self.vmstore)
    }

    fn check(&mut self, struck: &Struck) {
        assert!(struck.succeeded(), "what only reads need not give up: {struck:?}");
        let (_, image) = self.nights.first_key_value().unwrap();
        images::assert_same(&self.restored(), image);
    }

    fn end(&mut self) {
        self.vmstore.assert_has_all(&self.nights);
    }
}

#[test]
fn an_owner_that_is_asked_to_end_ends_and_a_push_goes_on_at_the_next() {
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    let nights = site.nights(&near, 24, 1);
    let address = "tcp://127.0.0.1:0";
    let token = far.run(["token", "add", "site-a", "--role", "push"]);
    let serving = Serving::start(&far, &["--listen", address, "--allow-plain"]);
    let address = serving.listening()[0].address.clone();

    let rate = (near.packs_bytes() / PUSH_S).to_string();
    let args = ["push", &address, "--all", "--allow-plain", "--limit-rate", &rate, "--retries", "20"];
    let mut push = near.command(args);
    let mut push = Running::start(push.env("VMSTORE_TOKEN", token.trim()));
    eventually("the first of the push", || far.packs_bytes() > 0);
    let ended = serving.terminate();
    assert!(ended.success(), "the owner ended with {ended}");
    assert!(push.is_running(), "the push was over before the owner was asked to end");
    let sent = far.packs_bytes();
    assert!(sent > 0, "what had arrived was thrown away");

    let _serving = Serving::start(&far, &["--listen", &address, "--allow-plain"]);
    push.succeed();
    far.assert_has_all(&nights);
    far.collect_all();
    far.assert_has_all(&nights);
}
