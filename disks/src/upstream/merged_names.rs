//! The snapshots of the local and the far store in one list. Of two with the same name, the local one is shown.
//!
//! The far list is refreshed every few seconds; while the far store is away, the last one stays. Opening a far snapshot
//! first publishes it here as a partial one, so that gc keeps what is fetched of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chunkstore::catalog::{At, Catalog, ImageName, Selector, Snapshot, SnapshotName, SnapshotTime, State};
use chunkstore::format::EntryId;
use chunkstore::{Error, Result};
use parking_lot::{RwLock, RwLockReadGuard};
use replicate::rpc::client::Selected;
use replicate::rpc::wire::{ENTRY_PREFIX_BYTES, Names as Which, Prefixes};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::reconnect::{ReconnectingClient, is_passing};
use super::wait_for;
use crate::names::{LocalNames, Names, Opened};

/// Attempts to publish a snapshot while the local owner is replaced.
const ATTEMPTS: usize = 5;
const REFRESH_EVERY: Duration = Duration::from_secs(5);
/// Most snapshots of a far store: their names fit into one request.
const SNAPSHOTS_MAX: usize = 150_000;
/// Most bytes of their entries: some hundred thousand typical ones.
const ENTRIES_BYTES_MAX: usize = 64 << 20;

/// Snapshots by image and time.
type Snapshots = BTreeMap<ImageName, BTreeMap<SnapshotTime, FarSnapshot>>;

/// A far snapshot in little memory: there may be very many.
#[derive(Clone)]
struct FarSnapshot {
    id: EntryId,
    /// Known to decode.
    encoding: Arc<[u8]>,
}

/// The last list of the far store's snapshots.
pub(super) struct FarList {
    link: Arc<ReconnectingClient>,
    snapshots: RwLock<Snapshots>,
}

impl FarList {
    pub(super) fn new(link: Arc<ReconnectingClient>) -> Arc<Self> {
        Arc::new(Self { link, snapshots: RwLock::default() })
    }

    /// Keeps the list up to date for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!("the list of upstream's snapshots is not refreshed: {error}");
            }
            tokio::time::sleep(REFRESH_EVERY).await;
        }
    }

    /// Refreshes the list; only new entries travel.
    pub(super) async fn refresh(&self) -> Result<()> {
        let known = self.known();
        let have = Prefixes(known.iter().map(|(_, snapshot)| prefix_of(snapshot.id)).collect());
        let Selected { entries, common, .. } = self.link.client().await?.select(Which::All, have).await?;
        let there = known.into_iter().enumerate().filter(|(at, _)| common.has(*at)).map(|(_, snapshot)| snapshot);
        let new = entries.into_iter().filter_map(|encoding| {
            let snapshot = snapshot_of(&encoding)?;
            Some((snapshot.name(), FarSnapshot { id: snapshot.entry_id(), encoding: encoding.into() }))
        });
        let snapshots = bounded(there.chain(new));
        *self.snapshots.write() = snapshots;
        Ok(())
    }

    pub(super) fn get(&self, name: &SnapshotName) -> Option<Snapshot> {
        let encoding = Arc::clone(&self.read().get(&name.image)?.get(&name.time)?.encoding);
        snapshot_of(&encoding)
    }

    fn known(&self) -> Vec<(SnapshotName, FarSnapshot)> {
        let snapshots = self.read();
        let all = snapshots.iter().flat_map(|(image, times)| times.iter().map(move |of| (image, of)));
        all.map(|(image, (time, snapshot))| (SnapshotName::new(image.clone(), *time), snapshot.clone())).collect()
    }

    fn images(&self) -> Vec<ImageName> {
        self.read().keys().cloned().collect()
    }

    fn times(&self, image: &ImageName) -> Vec<SnapshotTime> {
        self.read().get(image).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Snapshots> {
        self.snapshots.read()
    }
}

/// Bounds the list: a far store must not fill the memory.
fn bounded(all: impl Iterator<Item = (SnapshotName, FarSnapshot)>) -> Snapshots {
    let (mut snapshots, mut count, mut bytes) = (Snapshots::new(), 0, 0);
    for (SnapshotName { image, time }, snapshot) in all {
        count += 1;
        bytes += snapshot.encoding.len();
        if count > SNAPSHOTS_MAX || bytes > ENTRIES_BYTES_MAX {
            tracing::warn!("upstream has too many snapshots; some are not shown");
            break;
        }
        snapshots.entry(image).or_default().insert(time, snapshot);
    }
    snapshots
}

fn prefix_of(id: EntryId) -> [u8; ENTRY_PREFIX_BYTES] {
    *id.as_bytes().first_chunk().expect("an id is longer than its beginning")
}

fn snapshot_of(encoding: &[u8]) -> Option<Snapshot> {
    // A snapshot that is not published here is at most partially here.
    let state = State { partial: true, ..State::default() };
    let snapshot = Snapshot::from_entry(EntryId::of(encoding), encoding.to_vec(), state);
    snapshot.inspect_err(|error| tracing::warn!("a snapshot of upstream is left out: {error}")).ok()
}

/// The catalogs of both stores.
#[derive(Clone)]
pub(super) struct MergedCatalog {
    pub(super) catalog: Catalog,
    pub(super) near: Arc<ReconnectingClient>,
    pub(super) far: Arc<FarList>,
}

impl MergedCatalog {
    /// Resolves a selector against both stores.
    pub(super) fn resolve(&self, selector: &Selector) -> Result<SnapshotName> {
        let image = &selector.image;
        let times: Vec<SnapshotTime> = self.catalog.times(image)?.into_iter().chain(self.far.times(image)).collect();
        Ok(SnapshotName::new(image.clone(), selector.resolve(&times)?))
    }

    /// Ensures that a snapshot is in the local catalog.
    ///
    /// # Errors
    /// [`Error::NotFound`] if neither store has it.
    pub(super) async fn bring(&self, name: &SnapshotName) -> Result<Snapshot> {
        match self.catalog.read(name) {
            Err(Error::NotFound { .. }) => {}
            read => return read,
        }
        let far = self.far.get(name).ok_or_else(|| Error::not_found(format!("snapshot {name}")))?;
        for _ in 1..ATTEMPTS {
            match self.publish(&far).await {
                // The local owner is being replaced.
                Err(error) if is_passing(&error) => {}
                published => return published,
            }
        }
        self.publish(&far).await
    }

    async fn publish(&self, far: &Snapshot) -> Result<Snapshot> {
        self.near.client().await?.publish_partial(far.entry_encoding().to_vec()).await
    }
}

/// The selector that means exactly this snapshot.
pub(super) fn selector_of(name: &SnapshotName) -> Selector {
    Selector { image: name.image.clone(), at: At::Prefix(name.time.to_string()) }
}

/// [`Names`] of both stores.
pub(super) struct MergedNames {
    pub(super) runtime: Handle,
    pub(super) local: LocalNames,
    pub(super) merged: MergedCatalog,
    /// Receives the partial snapshots that are opened.
    pub(super) opened: mpsc::UnboundedSender<Snapshot>,
}

impl Names for MergedNames {
    fn images(&self) -> Result<Vec<ImageName>> {
        let mut images: BTreeSet<ImageName> = self.local.images()?.into_iter().collect();
        images.extend(self.merged.far.images());
        Ok(images.into_iter().collect())
    }

    fn snapshots(&self, image: &ImageName) -> Result<Vec<SnapshotName>> {
        let mut names: BTreeSet<SnapshotName> = self.local.snapshots(image)?.into_iter().collect();
        names.extend(self.merged.far.times(image).into_iter().map(|time| SnapshotName::new(image.clone(), time)));
        Ok(names.into_iter().collect())
    }

    fn read(&self, name: &SnapshotName) -> Result<Snapshot> {
        match self.local.read(name) {
            Err(error @ Error::NotFound { .. }) => self.merged.far.get(name).ok_or(error),
            read => read,
        }
    }

    fn open(&self, name: &SnapshotName) -> Result<Opened> {
        let opened = match self.local.open(name) {
            Err(Error::NotFound { .. }) => {
                let (merged, wanted) = (self.merged.clone(), name.clone());
                wait_for(&self.runtime, async move { merged.bring(&wanted).await })?;
                self.local.open(name)?
            }
            opened => opened?,
        };
        if opened.snapshot.state.partial {
            // The receiver is gone when the mount ends.
            let _ = self.opened.send(opened.snapshot.clone());
        }
        Ok(opened)
    }
}
