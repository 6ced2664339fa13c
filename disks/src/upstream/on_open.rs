//! What is done for a partial snapshot when it is first opened: its manifest is fetched, and then what a boot will touch.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chunkstore::catalog::boot_order::{self, BootOrder};
use chunkstore::catalog::{Catalog, Entry, Snapshot, SnapshotName};
use chunkstore::format::ChunkId;
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::Leaf;
use chunkstore::storage::LocalDir;
use chunkstore::{Error, Progress, Result};
use parking_lot::Mutex;
use replicate::rpc::client::{Client, ClientSession};
use replicate::rpc::wire::{Job, Purpose};
use tokio::sync::mpsc;

use super::Urgency;
use super::fetch::Fetcher;
use super::manifest_walk;

/// Most segments of an image whose whole manifest is fetched: 32 GiB, and at most 20 MB of nodes.
const SEGMENTS_MAX: u64 = 8 << 10;
/// Chunks that are looked up and wanted together.
const BATCH: usize = 1024;
/// Snapshots that are kept at the far store.
const HELD_MAX: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Attends to snapshots that are opened.
pub(super) struct OpenHandler {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) catalog: Catalog,
    pub(super) storage: LocalDir,
    /// Those that were handled, with what keeps them at the far store.
    pub(super) handled: Mutex<BTreeMap<SnapshotName, Option<ClientSession>>>,
}

impl OpenHandler {
    /// Attends to what is opened, for ever.
    pub(super) async fn run(self: Arc<Self>, mut opened: mpsc::UnboundedReceiver<Snapshot>) {
        let mut kept_before = 0;
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                snapshot = opened.recv() => {
                    let Some(snapshot) = snapshot else { return };
                    if self.lock().contains_key(&snapshot.name()) {
                        continue;
                    }
                    self.lock().insert(snapshot.name(), None);
                    let this = Arc::clone(&self);
                    tokio::spawn(async move { this.handle_open(&snapshot).await });
                }
                _ = look.tick() => {
                    self.hold_all().await;
                    let records = self.fetcher.intake.counters.records.get();
                    if std::mem::replace(&mut kept_before, records) != records {
                        self.note_presence().await;
                    }
                }
            }
        }
    }

    async fn handle_open(&self, snapshot: &Snapshot) {
        let name = snapshot.name();
        self.hold(&name).await;
        if let Err(error) = self.replay(snapshot).await {
            tracing::warn!("{name}: nothing is fetched ahead: {error}");
        }
        if let Err(error) = self.fetch_manifest(snapshot.entry()).await {
            tracing::warn!("{name}: its manifest is not fetched ahead: {error}");
        }
    }

    /// Keeps the far store's gc from a snapshot, as long as the connection lasts.
    async fn hold(&self, name: &SnapshotName) {
        let held = async {
            let client = self.fetcher.link().client().await?;
            ClientSession::begin(&client, Purpose::Read, Some(name)).await
        };
        match held.await {
            Ok(session) => drop(self.lock().insert(name.clone(), Some(session))),
            Err(error) => tracing::debug!("{name} is not held upstream: {error}"),
        }
    }

    /// Holds again what a lost connection has let go.
    async fn hold_all(&self) {
        let is_lost = |session: &Option<ClientSession>| session.as_ref().is_none_or(|it| it.client().has_ended());
        let lost: Vec<SnapshotName> =
            self.lock().iter().filter(|(_, it)| is_lost(it)).map(|(name, _)| name.clone()).take(HELD_MAX).collect();
        for name in lost {
            self.hold(&name).await;
        }
    }

    /// Has the store note how much is here now.
    pub(super) async fn note_presence(&self) {
        let names: Vec<SnapshotName> = self.lock().keys().cloned().collect();
        for name in names {
            let noted = async {
                let client = self.fetcher.near().client().await?;
                let job = Job::NotePresence { snapshot: name.to_string() };
                client.run(job, &Progress::default()).await
            };
            match noted.await {
                Ok(_) => {}
                Err(Error::NotFound { .. }) => drop(self.lock().remove(&name)),
                Err(error) => tracing::debug!("{name}: {error}"),
            }
        }
    }

    /// Fetches all nodes, so that no reader waits for one, and so that it is known how much is missing.
    async fn fetch_manifest(&self, entry: &Entry) -> Result<()> {
        if manifest_walk::all_segments(entry) > SEGMENTS_MAX {
            return Ok(());
        }
        let segments = (0..manifest_walk::all_segments(entry)).collect();
        manifest_walk::leaves(&self.fetcher, entry, &segments).await.map(drop)
    }

    /// Fetches what a boot touches, in its order.
    async fn replay(&self, snapshot: &Snapshot) -> Result<()> {
        let Some(order) = self.order(snapshot).await? else { return Ok(()) };
        let (entry, ranges) = (snapshot.entry(), order.ranges());
        let segments: BTreeSet<u64> = ranges.iter().flat_map(segments_of).collect();
        let leaves = manifest_walk::leaves(&self.fetcher, entry, &segments).await?;
        let ids = touched(ranges, &leaves);
        tracing::info!("{}: {} chunks are fetched in the order of an earlier boot", snapshot.name(), ids.len());
        for ids in ids.chunks(BATCH) {
            let lacking = self.fetcher.lacking(ids.to_vec()).await?;
            self.fetcher.prefetch(&lacking, Urgency::Later);
        }
        Ok(())
    }

    /// The order that was recorded of this snapshot, here or there, or of another night.
    async fn order(&self, snapshot: &Snapshot) -> Result<Option<BootOrder>> {
        if let Some(order) = boot_order::read(&self.storage, snapshot.entry_id())? {
            return Ok(Some(order));
        }
        let name = snapshot.name();
        let far = match self.fetcher.link().client().await {
            Ok(client) => far_order(&client, &name).await,
            Err(error) => Err(error),
        };
        match far {
            Ok(Some(order)) => return Ok(Some(order)),
            Ok(None) => {}
            Err(error) => tracing::debug!("{name}: upstream gives no boot order: {error}"),
        }
        boot_order::nearest(&self.storage, &self.catalog, snapshot)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, BTreeMap<SnapshotName, Option<ClientSession>>> {
        self.handled.lock()
    }
}

async fn far_order(client: &Client, name: &SnapshotName) -> Result<Option<BootOrder>> {
    client.boot_order(name, true).await
}

fn segments_of(range: &Range<u64>) -> Range<u64> {
    range.start / SEGMENT_BYTES as u64..range.end.div_ceil(SEGMENT_BYTES as u64)
}

/// The chunks that lie in these ranges, in their order, each once.
fn touched(ranges: &[Range<u64>], leaves: &BTreeMap<u64, Leaf>) -> Vec<ChunkId> {
    let (mut ids, mut seen) = (Vec::new(), HashSet::new());
    for range in ranges {
        for segment in segments_of(range) {
            let start = segment * SEGMENT_BYTES as u64;
            let chunks = leaves.get(&segment).into_iter().flat_map(Leaf::chunks);
            let overlaps = |at: usize, bytes: u32| {
                let at = start + at as u64;
                at < range.end && range.start < at + u64::from(bytes)
            };
            let chunks = chunks.filter(|(at, _, bytes)| overlaps(*at, *bytes));
            ids.extend(chunks.map(|(_, id, _)| id).filter(|id| seen.insert(*id)));
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use chunkstore::format::manifest::Entry;

    use super::*;

    #[test]
    fn chunks_are_touched_in_the_order_of_the_ranges_each_once() {
        let id = |n: u8| ChunkId::of(&[n]);
        let chunk = |n| Entry::Chunk { id: id(n), bytes: 1000 };
        let leaf = |entries| Leaf::new(entries).unwrap();
        let segment = SEGMENT_BYTES as u64;
        let leaves = BTreeMap::from([
            (0, leaf(vec![chunk(1), chunk(2), Entry::Zero { bytes: 4096 }, chunk(3)])),
            (2, leaf(vec![chunk(4), chunk(2)])),
        ]);
        // (ranges, chunks)
        let cases: [(Vec<Range<u64>>, Vec<u8>); 5] = [
            (vec![0..1], vec![1]),
            (vec![999..1001, 0..10], vec![1, 2]),
            (vec![2000..6096], vec![]),
            (vec![2 * segment..2 * segment + 2000, 0..segment], vec![4, 2, 1, 3]),
            (vec![segment - 5..2 * segment + 1, segment..segment + 9], vec![4]),
        ];
        for (ranges, expected) in cases {
            let expected: Vec<ChunkId> = expected.into_iter().map(id).collect();
            assert_eq!(touched(&ranges, &leaves), expected, "{ranges:?}");
        }
    }
}
