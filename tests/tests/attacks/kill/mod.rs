//! `kill -9` at random moments of commands, and of the owners that they need: acknowledged work is there bit for bit,
//! other work is whole or not there, the command works when it is repeated, and gc can free all that is left.
//!
//! The tests here are a table of works and victims. Kills at a chosen moment, other signals and broken streams are in
//! the files of the works; `mix` kills processes of all kinds while all of them work.

mod commands;
mod mix;
mod owners;
mod pushes;

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use tests::images::Rng;
use tests::{Running, Vmstore, kill, stderr};

use self::commands::{Collect, Ingest, IngestOfDeltas, Reindex, Remove};
use self::owners::Restore;
use self::pushes::Push;

/// The exit code of a command that lost its connection.
const UNREACHABLE: i32 = 7;

/// The process to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The command.
    Command,
    /// The owner of the store that the command works on.
    Owner,
    /// The owner of the store that the command sends to.
    FarOwner,
}

/// How a command ended whose victim was killed.
#[derive(Debug)]
struct Struck {
    output: Output,
}

impl Struck {
    fn succeeded(&self) -> bool {
        self.output.status.success()
    }
}

/// Kills a store's owners; returns whether there was one.
fn kill_owners(vmstore: &Vmstore) -> bool {
    let owners = vmstore.owners();
    let found = !owners.is_empty();
    owners.into_iter().for_each(kill);
    found
}

/// A command and its checks, repeated for each kill.
trait Work {
    /// Makes ready for the next kill.
    fn prepare(&mut self);

    /// The command.
    fn command(&self) -> Command;

    /// Kills a victim other than the command; returns whether there was one.
    fn kill(&mut self, victim: Victim) -> bool {
        unreachable!("{victim:?} has no part in this work")
    }

    /// Fails unless all is right after a kill, and after the command is repeated if it has to be.
    fn check(&mut self, struck: &Struck);

    /// Fails unless all is right after the last kill.
    fn end(&mut self) {}
}

/// Kills the victim so often at random moments of a work. Of a hundred kills, so many must find the command running.
fn kill_at_random_moments(mut work: impl Work, victim: Victim, kills: u32, hits_percent_min: u32) {
    let mut killer = Killer::new(&work);
    for _ in 0..kills {
        work.prepare();
        let struck = killer.strike(&mut work, victim);
        work.check(&struck);
    }
    work.end();
    let hits = killer.hits;
    println!("{hits} of {kills} kills hit a command at work");
    assert!(hits * 100 >= kills * hits_percent_min, "only {hits} of {kills} kills hit a command at work");
}

/// Chooses the moments.
struct Killer {
    rng: Rng,
    /// How long a command takes that nothing disturbs, or somewhat less.
    whole: Duration,
    hits: u32,
}

impl Killer {
    /// Lets the command work undisturbed, as it does before it is prepared.
    fn new(work: &impl Work) -> Self {
        let rng = Rng::from_clock();
        let started = Instant::now();
        Running::start(&mut work.command()).succeed();
        Self { rng, whole: started.elapsed(), hits: 0 }
    }

    /// Starts the command and kills after a random part of the whole. The command must succeed, be the victim, or have
    /// lost its owner and say so.
    fn strike(&mut self, work: &mut impl Work, victim: Victim) -> Struck {
        let mut command = work.command();
        let mut running = Running::start(&mut command);
        let fraction = self.rng.fraction();
        thread::sleep(self.whole.mul_f64(fraction));
        let was_running = running.is_running();
        let found = match victim {
            Victim::Command => running.child().kill().is_ok(),
            _ => work.kill(victim),
        };
        let output = running.wait();
        let hit = if victim == Victim::Command { output.status.code().is_none() } else { was_running && found };
        let said = stderr(&output);
        println!("{victim:?} killed after {fraction:.3} of {:?}: {}: {said}", self.whole, output.status);
        let is_right = match output.status.code() {
            Some(0) => true,
            Some(UNREACHABLE) => victim != Victim::Command && said.lines().any(|line| line.starts_with("vmstore: ")),
            Some(_) => false,
            None => victim == Victim::Command,
        };
        assert!(is_right && !said.contains("panicked"), "{command:?}: {}: {said}", output.status);
        // The first run may have been a slow one; if all kills came late, the test would show nothing.
        self.whole = self.whole.mul_f64(if hit { 1.1 } else { 0.7 });
        self.hits += u32::from(hit);
        Struck { output }
    }
}

#[test]
fn an_ingest_goes_on_from_sealed_packs() {
    kill_at_random_moments(Ingest::new(), Victim::Command, 10, 30);
}

#[test]
fn an_ingest_of_deltas_leaves_its_bases_right() {
    kill_at_random_moments(IngestOfDeltas::new(), Victim::Command, 10, 30);
}

#[test]
fn a_remove_removes_all_of_a_snapshot_or_nothing() {
    kill_at_random_moments(Remove::new(), Victim::Command, 10, 30);
}

#[test]
fn a_gc_loses_nothing_and_is_repeated() {
    kill_at_random_moments(Collect::new(), Victim::Command, 10, 30);
}

#[test]
fn a_reindex_is_made_up_for() {
    kill_at_random_moments(Reindex::new(), Victim::Command, 10, 30);
}

#[test]
fn a_restore_goes_on_through_the_next_owner() {
    kill_at_random_moments(Restore::new(), Victim::Owner, 12, 33);
}

#[test]
fn a_push_is_repeated() {
    kill_at_random_moments(Push::new(), Victim::Command, 36, 33);
}

#[test]
fn a_push_to_a_killed_owner_is_repeated() {
    kill_at_random_moments(Push::new(), Victim::FarOwner, 36, 33);
}

#[test]
fn a_push_from_a_killed_owner_is_repeated() {
    kill_at_random_moments(Push::new(), Victim::Owner, 36, 33);
}
