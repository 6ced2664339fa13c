//! Hydration: the rest of a partial snapshot is pulled in the background, until it is an ordinary one.
//!
//! It is a pull like any other, with its closure check at the end, over a connection that is slowed down while readers
//! wait for what they demand. What has arrived stays: after a restart, the pull goes on from there.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use chunkstore::catalog::{Selector, SnapshotName};
use chunkstore::{Backoff, Error, Progress, Result};
use parking_lot::Mutex;
use replicate::rpc::transport::RateLimit;
use replicate::transfer::{Direction, Ends, TransferOptions, Wanted, transfer};
use serde::Serialize;
use tokio::time::sleep;

use super::fetch::Fetcher;
use super::merged_names::{MergedCatalog, selector_of};
use super::reconnect::{ReconnectingClient, is_passing};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// While readers wait, hydration gets this part of what it had alone.
const PART: u64 = 8;
/// And so much at least.
const LEAST_BYTES_PER_S: u64 = 256 << 10;
/// The pause after a failure.
const DELAYS: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_mins(1));

/// How far a hydration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HydrationState {
    /// Others come first.
    #[default]
    Waiting,
    /// It is under way.
    Running,
    /// It failed and is tried again.
    Failing,
    /// The snapshot is whole.
    Done,
}

/// State of a hydration, for the status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Hydration {
    /// The selector as given.
    pub snapshot: String,
    /// How far it is.
    pub state: HydrationState,
    /// Bytes of the image that were looked at, and what is there or was fetched.
    pub done_bytes: u64,
    /// Bytes of the image.
    pub total_bytes: u64,
    /// Bytes that were fetched, as stored.
    pub fetched_bytes: u64,
    /// Why it fails, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Hydrates some snapshots, one after another.
pub(super) struct Hydrator {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) merged: MergedCatalog,
    /// These are for this alone.
    pub(super) near: Arc<ReconnectingClient>,
    pub(super) far: Arc<ReconnectingClient>,
    pub(super) limit: Arc<RateLimit>,
    pub(super) hydrations: Mutex<Vec<(Selector, Hydration, Arc<Progress>)>>,
}

impl Hydrator {
    /// Pulls all, again and again until they are there.
    pub(super) async fn run(self: Arc<Self>) {
        let yielding = tokio::spawn(Arc::clone(&self).give_way());
        let count = self.lock().len();
        for at in 0..count {
            let mut delays = DELAYS;
            while let Err(error) = self.hydrate(at).await {
                self.note(at, |hydration| {
                    (hydration.state, hydration.error) = (HydrationState::Failing, Some(error.to_string()));
                });
                if is_passing(&error) {
                    tracing::info!("hydration waits: {error}");
                } else {
                    tracing::warn!("hydration fails, and is tried again: {error}");
                }
                sleep(delays.next_delay()).await;
            }
            self.note(at, |hydration| (hydration.state, hydration.error) = (HydrationState::Done, None));
        }
        yielding.abort();
    }

    /// How far all are.
    pub(super) fn hydrations(&self) -> Vec<Hydration> {
        let told = |(_, hydration, progress): &(Selector, Hydration, Arc<Progress>)| Hydration {
            done_bytes: progress.done_bytes(),
            total_bytes: progress.total_bytes(),
            fetched_bytes: progress.moved_bytes(),
            ..hydration.clone()
        };
        self.lock().iter().map(told).collect()
    }

    async fn hydrate(&self, at: usize) -> Result<()> {
        let (selector, progress) = {
            let hydrations = self.lock();
            (hydrations[at].0.clone(), Arc::clone(&hydrations[at].2))
        };
        self.note(at, |hydration| hydration.state = HydrationState::Running);
        let name = self.resolve(&selector).await?;
        // From now on it means this one, also if a newer comes meanwhile.
        self.lock()[at].0 = selector_of(&name);
        if !self.merged.bring(&name).await?.state.partial {
            return Ok(());
        }
        self.pull(&name, &progress).await?;
        if self.merged.catalog.read(&name)?.state.partial {
            return Err(Error::not_found(format!("snapshot {name} as upstream has it")));
        }
        // The missing chunks are here now.
        self.fetcher.negative_cache.clear();
        tracing::info!("{name} is complete: upstream is no longer needed for it");
        Ok(())
    }

    /// The list of upstream's snapshots may not have come yet.
    async fn resolve(&self, selector: &Selector) -> Result<SnapshotName> {
        if let Ok(name) = self.merged.resolve(selector)
            && self.merged.catalog.read(&name).is_ok_and(|snapshot| !snapshot.state.partial)
            && *selector == selector_of(&name)
        {
            return Ok(name);
        }
        self.merged.far.refresh().await?;
        self.merged.resolve(selector)
    }

    async fn pull(&self, name: &SnapshotName, progress: &Arc<Progress>) -> Result<()> {
        let (near, far) = (self.near.client().await?, self.far.client().await?);
        let ends = Ends { near, catalog: self.merged.catalog.clone(), far: vec![far] };
        let wanted = Wanted::Snapshots(vec![selector_of(name)]);
        let options = TransferOptions { direction: Direction::Pull, wanted, dry_run: false };
        let report = transfer(&ends, &options, progress).await?;
        match report.snapshots_failed.first() {
            Some(_) => Err(Error::damaged(format!("snapshot {name}"), "upstream can't give all of it")),
            None => Ok(()),
        }
    }

    /// Slows hydration down while readers wait.
    async fn give_way(self: Arc<Self>) {
        let (mut before, mut best_per_s) = (0, 0);
        loop {
            sleep(LOOK_EVERY).await;
            let bytes: u64 = self.lock().iter().map(|(_, _, progress)| progress.moved_bytes()).sum();
            let per_s = bytes.saturating_sub(before) * 1000 / LOOK_EVERY.as_millis() as u64;
            before = bytes;
            if self.fetcher.is_demanded() {
                self.limit.set(NonZeroU64::new((best_per_s / PART).max(LEAST_BYTES_PER_S)));
            } else {
                self.limit.set(None);
                // It slowly forgets, because links change.
                best_per_s = per_s.max(best_per_s - best_per_s / 64);
            }
        }
    }

    fn note(&self, at: usize, change: impl FnOnce(&mut Hydration)) {
        change(&mut self.lock()[at].1);
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Vec<(Selector, Hydration, Arc<Progress>)>> {
        self.hydrations.lock()
    }
}
