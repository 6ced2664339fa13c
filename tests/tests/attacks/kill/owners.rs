//! Owners and their clients that die: the other one goes on or says what happened, repeating works, nothing that was
//! acknowledged is lost, and nothing stays that gc can't free.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tests::images::{self, Rng};
use tests::{Running, Serving, Site, Vmstore, eventually, kill, stderr};

const MIB: u64 = 1 << 20;
const KILLS: u32 = 12;
/// Of those, the least that must hit an owner at work.
const HITS_MIN: u32 = 4;
/// The exit code of a command that lost its connection.
const UNREACHABLE: i32 = 7;
/// How long a push shall take that an owner's end breaks: longer than that lets clients go on.
const PUSH_S: u64 = 25;

/// A store with two nights of `web01`, and those.
fn site() -> (Site, Vmstore, BTreeMap<String, PathBuf>) {
    let site = Site::new();
    let vmstore = site.store("store");
    let nights = site.nights(&vmstore, 24, 2);
    (site, vmstore, nights)
}

/// A collection that puts small packs together while a dying session still protects some records may put them beside
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
    // What a dying connection had brought is still on its way to a pack when the first of these collects.
    eventually("the end of what killed clients left", || {
        vmstore.collect_all();
        vmstore.packs_bytes() <= before + DEAD_BYTES_MAX && vmstore.files("packs", ".part").is_empty()
    });
    assert_eq!(vmstore.files("leases", ""), [""; 0]);
    vmstore.assert_has_all(&nights);
}

/// How long a command takes that nothing disturbs.
fn duration(command: &mut Command) -> Duration {
    let started = Instant::now();
    Running::start(command).succeed();
    started.elapsed()
}

/// Kills the store's owner after a random part of the time that a command takes; returns how the command ended, if
/// the owner was killed while it ran.
fn with_owner_killed(vmstore: &Vmstore, command: &mut Command, after: Duration) -> Option<Output> {
    let mut running = Running::start(command);
    thread::sleep(after);
    let owners = vmstore.owners();
    let hit = running.is_running() && !owners.is_empty();
    owners.into_iter().for_each(kill);
    let output = running.wait();
    let code = output.status.code();
    let said = stderr(&output);
    assert!(
        matches!(code, Some(0 | UNREACHABLE)) && !said.contains("panicked"),
        "{command:?}: {}: {said}",
        output.status
    );
    // Who gives up says why, and what it was about.
    assert!(code == Some(0) || said.lines().any(|line| line.starts_with("vmstore: ")), "{said}");
    println!("owner killed after {after:?}: hit: {hit}, the command ended with {code:?}: {said}");
    hit.then_some(output)
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
    vmstore.owners().into_iter().for_each(kill);
    // It may have given up by now.
    let _ = ingest.child().stdin.take().unwrap().write_all(rest);
    let output = ingest.wait();
    assert_eq!(output.status.code(), Some(UNREACHABLE), "{}", stderr(&output));
    vmstore.assert_has_all(&nights);
}

#[test]
fn a_restore_goes_on_through_the_next_owner() {
    let (site, vmstore, nights) = site();
    let mut rng = Rng::from_clock();
    let (snapshot, image) = nights.first_key_value().unwrap();
    let restored = site.path("restored.raw");
    let restore = || vmstore.command(["restore", snapshot, restored.to_str().unwrap(), "--force"]);
    let mut whole = duration(&mut restore());
    let mut hits = 0;
    for _ in 0..KILLS {
        let _ = fs::remove_file(&restored);
        vmstore.run(["stats"]);
        match with_owner_killed(&vmstore, &mut restore(), whole.mul_f64(rng.fraction())) {
            Some(output) => {
                (hits, whole) = (hits + 1, whole.mul_f64(1.1));
                assert!(output.status.success(), "what only reads need not give up: {}", stderr(&output));
            }
            // The first run may have been a slow one.
            None => whole = whole.mul_f64(0.7),
        }
        images::assert_same(&restored, image);
    }
    assert!(hits >= HITS_MIN, "only {hits} kills hit");
    vmstore.assert_has_all(&nights);
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
