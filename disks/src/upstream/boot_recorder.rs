//! Recording what a boot touches: the first touches of each snapshot, in order, for some minutes.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunkstore::catalog::boot_order::{BootOrder, RANGES_MAX};
use chunkstore::catalog::{Catalog, SnapshotName};
use chunkstore::format::EntryId;
use chunkstore::{Error, Result};
use parking_lot::{Mutex, MutexGuard};

use super::ReadObserver;
use super::reconnect::ReconnectingClient;

/// A recording ends so long after the first touch.
pub(super) const RECORDED: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Resolution of a recording: about a chunk.
const GRANULE_BYTES: u64 = 64 << 10;
/// Snapshots recorded at a time.
const RECORDINGS_MAX: usize = 64;
/// Granules of a recording.
const GRANULES_MAX: usize = 4 * RANGES_MAX;

/// Records, and keeps what was recorded with the snapshots.
pub(super) struct BootRecorder {
    catalog: Catalog,
    near: Arc<ReconnectingClient>,
    /// If it lets us, it keeps the orders, too.
    far: Option<Arc<ReconnectingClient>>,
    recordings: Mutex<HashMap<EntryId, Recording>>,
}

struct Recording {
    since: Instant,
    seen: HashSet<u64>,
    granules: Vec<u64>,
    is_saved: bool,
}

impl BootRecorder {
    pub(super) fn new(
        catalog: Catalog,
        near: Arc<ReconnectingClient>,
        far: Option<Arc<ReconnectingClient>>,
    ) -> Arc<Self> {
        Arc::new(Self { catalog, near, far, recordings: Mutex::default() })
    }

    /// Saves what is complete, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.save(|recording| recording.since.elapsed() >= RECORDED).await;
        }
    }

    /// Saves all that is recorded and not saved yet.
    pub(super) async fn finish(&self) {
        self.save(|_| true).await;
    }

    async fn save(&self, is_complete: impl Fn(&Recording) -> bool) {
        let mut complete = Vec::new();
        for (entry, recording) in self.lock().iter_mut() {
            if !recording.is_saved && is_complete(recording) {
                recording.is_saved = true;
                complete.push((*entry, recording.order()));
            }
        }
        for (entry, order) in complete {
            if let Err(error) = self.save_one(entry, &order).await {
                tracing::warn!("the boot order that was recorded can't be saved: {error}");
            }
        }
    }

    async fn save_one(&self, entry: EntryId, order: &BootOrder) -> Result<()> {
        let name = self.name_of(entry)?;
        self.near.client().await?.put_boot_order(&name, order).await?;
        tracing::info!("{name}: recorded what was read first, {} ranges", order.ranges().len());
        if let Some(far) = &self.far {
            let put = async { far.client().await?.put_boot_order(&name, order).await };
            if let Err(error) = put.await {
                tracing::info!("{name}: upstream does not keep the order of its boot: {error}");
            }
        }
        Ok(())
    }

    fn name_of(&self, entry: EntryId) -> Result<SnapshotName> {
        let listed = self.catalog.list(None)?.into_iter();
        let mut found = listed.filter(|listed| listed.snapshot.as_ref().is_ok_and(|it| it.entry_id() == entry));
        found
            .next()
            .map(|listed| listed.name)
            .ok_or_else(|| Error::not_found(format!("the snapshot with entry {entry}")))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EntryId, Recording>> {
        self.recordings.lock()
    }
}

impl Recording {
    fn new(since: Instant) -> Self {
        Self { since, seen: HashSet::new(), granules: Vec::new(), is_saved: false }
    }

    fn touch(&mut self, range: Range<u64>, now: Instant) {
        if self.is_saved || now.duration_since(self.since) >= RECORDED {
            return;
        }
        for granule in range.start / GRANULE_BYTES..range.end.div_ceil(GRANULE_BYTES) {
            if self.granules.len() < GRANULES_MAX && self.seen.insert(granule) {
                self.granules.push(granule);
            }
        }
    }

    fn order(&self) -> BootOrder {
        BootOrder::new(self.granules.iter().map(|granule| granule * GRANULE_BYTES..(granule + 1) * GRANULE_BYTES))
    }
}

impl ReadObserver for BootRecorder {
    fn observe(&self, entry: EntryId, range: Range<u64>) {
        let mut recordings = self.lock();
        if recordings.len() >= RECORDINGS_MAX && !recordings.contains_key(&entry) {
            return;
        }
        let now = Instant::now();
        recordings.entry(entry).or_insert_with(|| Recording::new(now)).touch(range, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_touches_are_recorded_in_order_until_the_time_is_over() {
        let now = Instant::now();
        let mut recording = Recording::new(now);
        let kib = |from: u64, to: u64| from << 10..to << 10;
        for range in [kib(640, 644), kib(0, 4), kib(60, 70), kib(641, 642), kib(128, 256)] {
            recording.touch(range, now);
        }
        recording.touch(kib(1024, 1028), now + RECORDED);
        assert_eq!(recording.order().ranges(), [kib(640, 704), kib(0, 256)]);
    }

    #[test]
    fn a_recording_is_bounded() {
        let now = Instant::now();
        let mut recording = Recording::new(now);
        for n in 0..GRANULES_MAX as u64 + 100 {
            recording.touch(n * 2 * GRANULE_BYTES..n * 2 * GRANULE_BYTES + 1, now);
        }
        assert_eq!(recording.granules.len(), GRANULES_MAX);
        assert_eq!(recording.order().ranges().len(), RANGES_MAX);
    }
}
