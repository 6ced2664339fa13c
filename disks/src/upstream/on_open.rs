//! Handles the first open of a partial snapshot: fetches its manifest, then the chunks that a boot will read.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
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

/// Largest image, in segments, whose whole manifest is fetched: 32 GiB, at most 20 MB of nodes.
const SEGMENTS_MAX: u64 = 8 << 10;
/// Chunks that are looked up and wanted together.
const BATCH: usize = 1024;
/// Snapshots that are held at the far store at a time: the ones that were opened last.
const HELD_MAX: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Handles snapshots that are opened.
pub(super) struct OpenHandler {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) catalog: Catalog,
    pub(super) storage: LocalDir,
    /// The handled snapshots, each with the session that holds it at the far store.
    pub(super) handled: Mutex<Handled<ClientSession>>,
}

/// The snapshots that were opened last, at most [`HELD_MAX`], the latest at the end. One that drops out is not held any
/// longer, and is handled anew when it is next opened.
pub(super) struct Handled<S> {
    entries: VecDeque<(SnapshotName, Option<S>)>,
}

impl<S> Default for Handled<S> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<S> Handled<S> {
    /// Notes that a snapshot is opened; whether it is to be handled.
    fn open(&mut self, name: &SnapshotName) -> bool {
        let known = self.take(name);
        let is_new = known.is_none();
        self.entries.push_back(known.unwrap_or_else(|| (name.clone(), None)));
        if self.entries.len() > HELD_MAX {
            self.entries.pop_front();
        }
        is_new
    }

    /// Keeps what holds a snapshot, unless it dropped out meanwhile.
    fn hold(&mut self, name: &SnapshotName, session: S) {
        if let Some((_, held)) = self.entries.iter_mut().find(|(known, _)| known == name) {
            *held = Some(session);
        }
    }

    fn take(&mut self, name: &SnapshotName) -> Option<(SnapshotName, Option<S>)> {
        let at = self.entries.iter().position(|(known, _)| known == name)?;
        self.entries.remove(at)
    }

    /// Those that are not held, or whose hold `has_ended`.
    fn lost(&self, has_ended: impl Fn(&S) -> bool) -> Vec<SnapshotName> {
        let lost = self.entries.iter().filter(|(_, session)| session.as_ref().is_none_or(&has_ended));
        lost.map(|(name, _)| name.clone()).collect()
    }

    fn names(&self) -> Vec<SnapshotName> {
        self.entries.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl OpenHandler {
    /// Handles opened snapshots for ever.
    pub(super) async fn run(self: Arc<Self>, mut opened: mpsc::UnboundedReceiver<Snapshot>) {
        let mut kept_before = 0;
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                snapshot = opened.recv() => {
                    let Some(snapshot) = snapshot else { return };
                    if !self.lock().open(&snapshot.name()) {
                        continue;
                    }
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

    /// Holds a snapshot at the far store, so that its gc keeps it, as long as the connection lasts.
    async fn hold(&self, name: &SnapshotName) {
        let held = async {
            let client = self.fetcher.link().client().await?;
            ClientSession::begin(&client, Purpose::Read, Some(name)).await
        };
        match held.await {
            Ok(session) => self.lock().hold(name, session),
            Err(error) => tracing::debug!("{name} is not held upstream: {error}"),
        }
    }

    /// Renews the holds that ended with their connection.
    async fn hold_all(&self) {
        let lost = self.lock().lost(|session| session.client().has_ended());
        for name in lost {
            self.hold(&name).await;
        }
    }

    /// Lets the store note how much of each snapshot is here now.
    pub(super) async fn note_presence(&self) {
        let names = self.lock().names();
        for name in names {
            let noted = async {
                let client = self.fetcher.near().client().await?;
                let job = Job::NotePresence { snapshot: name.to_string() };
                client.run(job, &Progress::default()).await
            };
            match noted.await {
                Ok(_) => {}
                Err(Error::NotFound { .. }) => drop(self.lock().take(&name)),
                Err(error) => tracing::debug!("{name}: {error}"),
            }
        }
    }

    /// Fetches all nodes, so that no reader waits for one and the missing bytes are known.
    async fn fetch_manifest(&self, entry: &Entry) -> Result<()> {
        if manifest_walk::all_segments(entry) > SEGMENTS_MAX {
            return Ok(());
        }
        let segments = (0..manifest_walk::all_segments(entry)).collect();
        manifest_walk::leaves(&self.fetcher, entry, &segments).await.map(drop)
    }

    /// Fetches the chunks of a recorded boot, in its order.
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

    /// The recorded order of this snapshot, from either store, or that of another night.
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

    fn lock(&self) -> parking_lot::MutexGuard<'_, Handled<ClientSession>> {
        self.handled.lock()
    }
}

async fn far_order(client: &Client, name: &SnapshotName) -> Result<Option<BootOrder>> {
    client.boot_order(name, true).await
}

fn segments_of(range: &Range<u64>) -> Range<u64> {
    range.start / SEGMENT_BYTES as u64..range.end.div_ceil(SEGMENT_BYTES as u64)
}

/// The chunks in these ranges, in their order, each once.
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
    fn no_more_snapshots_are_held_than_the_bound_and_the_latest_stay() {
        let name = |n: usize| format!("web{n}@20261120T020000Z").parse::<SnapshotName>().unwrap();
        let session = Arc::new(());
        let mut handled = Handled::default();
        for n in 0..3 * HELD_MAX {
            assert!(handled.open(&name(n)));
            handled.hold(&name(n), Arc::clone(&session));
            // One that is opened again and again stays, and is handled once.
            assert!(!handled.open(&name(0)), "{n}");
            assert!(Arc::strong_count(&session) - 1 <= HELD_MAX, "{n}");
        }
        assert_eq!(handled.names().len(), HELD_MAX);
        handled.hold(&name(1), Arc::clone(&session));
        assert_eq!(Arc::strong_count(&session) - 1, HELD_MAX, "what dropped out is not held again");
        assert!(handled.open(&name(1)), "it is handled anew");
        assert_eq!(handled.lost(|_| false), [name(1)]);
        assert!(handled.take(&name(1)).is_some() && handled.names().contains(&name(0)));
    }

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
