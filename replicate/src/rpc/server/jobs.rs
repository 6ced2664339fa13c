//! Jobs on the whole store, run by its owner for a client.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chunkstore::catalog::{SnapshotName, State};
use chunkstore::maintenance::gc;
use chunkstore::maintenance::repair;
use chunkstore::maintenance::stats;
use chunkstore::maintenance::verify;
use chunkstore::store::Store;
use chunkstore::store::partial;
use chunkstore::store::reserve;
use chunkstore::{Backoff, Error, Progress, Result};
use serde::Serialize;

use super::Server;
use super::connection::Connection;
use crate::rpc::wire::{ForStream, Job, Kind, Reply};

/// Interval of a job's progress messages.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How soon, and how often at least, an owner that is asked to end looks whether others still use it.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(5);
const LOOK_AGAIN_LONGEST: Duration = Duration::from_millis(100);
/// An ended command's connection has ended by then, on a busy machine, too.
const CONNECTION_ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of a report in one frame.
const REPORT_PART_BYTES: usize = 1 << 20;

impl Connection {
    /// Runs a job on a thread of its own and sends its progress. When the client disconnects, the job is asked to stop.
    pub(super) async fn run(self: Arc<Self>, number: u32, job: Job) -> Result<Reply> {
        let progress = Arc::new(Progress::default());
        let _stop = StopOnDrop(Arc::clone(&progress));
        let (store, watched) = (Arc::clone(&self.server.store), Arc::clone(&progress));
        let mut running = tokio::task::spawn_blocking(move || run(&store, &job, &watched));
        loop {
            tokio::select! {
                done = &mut running => {
                    let report = self.server.room_made(done.map_err(|_| super::failed())?)?;
                    return self.report(number, report).await;
                }
                () = tokio::time::sleep(TELL_EVERY) => {
                    let counters = (progress.done_bytes(), progress.total_bytes());
                    self.part(Kind::Progress, number, counters.to_bytes()).await?;
                }
            }
        }
    }

    /// Sends a report: all but its end as parts, so that it may be longer than a frame.
    pub(super) async fn report(&self, number: u32, mut report: Vec<u8>) -> Result<Reply> {
        while report.len() > REPORT_PART_BYTES {
            let rest = report.split_off(REPORT_PART_BYTES);
            self.part(Kind::Part, number, Reply::Report(report).to_bytes()).await?;
            report = rest;
        }
        Ok(Reply::Report(report))
    }
}

struct StopOnDrop(Arc<Progress>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs a job on a store that this process owns. Returns its report as JSON.
///
/// # Errors
/// As the job.
pub fn run(store: &Arc<Store>, job: &Job, progress: &Progress) -> Result<Vec<u8>> {
    match job {
        Job::Collect { dry_run, threads } => {
            if !dry_run {
                reserve::give_up_if_low(store.dir());
            }
            let report = gc::collect(store, *dry_run, *threads as usize, progress)?;
            if !dry_run {
                reserve::restore(store.dir());
            }
            json(&report)
        }
        Job::Verify { snapshots, threads } => {
            let names = snapshots.iter().map(|name| name.parse()).collect::<Result<Vec<SnapshotName>>>()?;
            json(&verify::verify(store, &names, *threads as usize, progress)?)
        }
        Job::Repair { dry_run, threads } => {
            if !dry_run {
                reserve::give_up_if_low(store.dir());
            }
            let report = repair::repair(store, *dry_run, *threads as usize, progress)?;
            if !dry_run {
                reserve::restore(store.dir());
            }
            json(&report)
        }
        Job::Stats { threads } => json(&stats::stats(store, *threads as usize, progress)?),
        Job::Metrics => json(&store.metrics().snapshot()),
        Job::Remove { snapshot } => {
            store.catalog().remove(&snapshot.parse()?)?;
            json(&())
        }
        Job::NotePresence { snapshot } => json(&partial::note_presence(store, &snapshot.parse()?)?),
        Job::Hold { snapshot, reason } => change(store, snapshot, |_, state| state.hold(reason).map(drop)),
        Job::Release { snapshot, reason } => {
            change(store, snapshot, |name, state| state.release_hold(name, reason.as_deref()))
        }
    }
}

/// Changes a snapshot's state; the report is its catalog file.
fn change(
    store: &Store,
    snapshot: &str,
    change: impl FnOnce(&SnapshotName, &mut State) -> Result<()>,
) -> Result<Vec<u8>> {
    let name: SnapshotName = snapshot.parse()?;
    store.update_state(&name, |state| change(&name, state))?;
    Ok(store.catalog().read(&name)?.encode())
}

fn json(report: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(report).map_err(|error| Error::invalid(format!("a report can't be written: {error}")))
}

impl Server {
    /// An index that was opened on a full disk can't be changed. The owner ends then, and the next one, started by a
    /// command that frees space, releases the store's reserve before it opens the index.
    fn room_made<T>(&self, done: Result<T>) -> Result<T> {
        match done {
            Err(Error::OutOfSpace { .. }) if self.store.is_read_only() && self.options.is_temporary => {
                self.leave();
                Err(Error::unreachable("the store's owner had started on a full disk and ends for another one"))
            }
            done => done,
        }
    }

    /// Whether a client may end this owner. Waits a little for others: the connection of a command that has just ended
    /// may still be counted.
    ///
    /// # Errors
    /// [`Error::Busy`] if an operator started it, or others use it.
    pub(super) async fn allow_leaving(&self) -> Result<()> {
        if !self.options.is_temporary {
            return Err(Error::busy("the store", "a service; stop it first"));
        }
        let (mut backoff, asked) = (Backoff::new(LOOK_AGAIN_FIRST, LOOK_AGAIN_LONGEST), Instant::now());
        loop {
            match self.connections.load(Ordering::SeqCst) - 1 {
                0 => return Ok(()),
                others => match backoff.next_within(CONNECTION_ENDS_WITHIN.saturating_sub(asked.elapsed())) {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(Error::busy("the store", format!("other commands ({others})"))),
                },
            }
        }
    }
}
