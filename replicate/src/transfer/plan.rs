//! Which snapshots have to be sent, and the parent of each.

use std::collections::{BTreeMap, HashSet};

use chunkstore::catalog::{Catalog, Entry, ImageName, Selector, Snapshot, SnapshotName, State};
use chunkstore::format::EntryId;
use chunkstore::{Error, Result};

use super::{Direction, Ends, TransferOptions};
use crate::rpc::client::broken;
use crate::rpc::server::prefix_of;
use crate::rpc::wire::{Names, Prefixes};

/// Which snapshots a user wants transferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All.
    All,
    /// Those of an image.
    Image(ImageName),
    /// Some.
    Snapshots(Vec<Selector>),
}

impl Wanted {
    fn names(&self) -> Names {
        match self {
            Self::All => Names::All,
            Self::Image(image) => Names::Image(image.to_string()),
            Self::Snapshots(selectors) => Names::Selectors(selectors.iter().map(ToString::to_string).collect()),
        }
    }

    /// Whether a snapshot can be among them.
    fn includes(&self, name: &SnapshotName) -> bool {
        match self {
            Self::All => true,
            Self::Image(wanted) => *wanted == name.image,
            Self::Snapshots(selectors) => {
                let is_meant =
                    |selector: &Selector| selector.image == name.image && selector.resolve(&[name.time]).is_ok();
                selectors.iter().any(is_meant)
            }
        }
    }

    fn concerns(&self, image: &ImageName) -> bool {
        match self {
            Self::All => true,
            Self::Image(wanted) => wanted == image,
            Self::Snapshots(selectors) => selectors.iter().any(|selector| selector.image == *image),
        }
    }
}

/// A snapshot that has to be sent.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) name: SnapshotName,
    pub(super) entry: Entry,
    pub(super) encoding: Vec<u8>,
    /// The newest older snapshot of the image that both stores have, or would have, or else the oldest newer one.
    pub(super) parent: Option<Entry>,
    /// Whether the receiver would have the parent only after this dry run.
    pub(super) parent_is_planned: bool,
}

impl Item {
    /// The parent, if the receiver has it.
    pub(super) fn parent_there(&self) -> Option<SnapshotName> {
        self.parent.as_ref().filter(|_| !self.parent_is_planned).map(Entry::name)
    }

    /// The same without a parent.
    pub(super) fn alone(self) -> Self {
        Self { parent: None, parent_is_planned: false, ..self }
    }
}

/// Everything that has to be sent, in order.
pub(super) struct Plan {
    pub(super) items: Vec<Item>,
    /// Wanted snapshots that the receiver has already.
    pub(super) present: u64,
    /// By image: snapshots that both stores have, or would have.
    common: BTreeMap<ImageName, Vec<Entry>>,
    /// Of these: those that the receiver would have.
    planned: HashSet<SnapshotName>,
}

impl Plan {
    /// Compares the stores' snapshots: one round trip.
    pub(super) async fn make(ends: &Ends, options: &TransferOptions) -> Result<Self> {
        let here = snapshots(&ends.catalog, &options.wanted)?;
        let prefixes = Prefixes(here.iter().map(|snapshot| prefix_of(snapshot.entry_id())).collect());
        match options.direction {
            Direction::Push => {
                let chosen = chosen(&ends.catalog, &options.wanted, &here)?;
                let lacks = ends.far[0].lacks(prefixes).await?;
                let is_missing = |at: usize| lacks.has(at);
                let common = here.iter().enumerate().filter(|(at, _)| !is_missing(*at)).map(|(_, there)| there);
                let common: Vec<Entry> = common.map(|snapshot| snapshot.entry().clone()).collect();
                let wanted = here.iter().enumerate().filter(|(_, snapshot)| chosen.contains(&snapshot.name()));
                let (missing, present): (Vec<_>, Vec<_>) = wanted.partition(|(at, _)| is_missing(*at));
                let encodings = missing.into_iter().map(|(_, snapshot)| snapshot.entry_encoding().to_vec());
                Self::of(encodings.collect(), common, present.len() as u64)
            }
            Direction::Pull => {
                let selected = ends.far[0].select(options.wanted.names(), prefixes).await?;
                let common = here.iter().enumerate().filter(|(at, _)| selected.common.has(*at));
                let common = common.map(|(_, snapshot)| snapshot.entry().clone()).collect();
                let present = u64::from(selected.selected).saturating_sub(selected.entries.len() as u64);
                let plan = Self::of(selected.entries, common, present)?;
                match plan.items.iter().find(|item| !options.wanted.includes(&item.name)) {
                    Some(item) => Err(broken(format!("it sends snapshot {}, which was not asked for", item.name))),
                    None => Ok(plan),
                }
            }
        }
    }

    fn of(encodings: Vec<Vec<u8>>, common: Vec<Entry>, present: u64) -> Result<Self> {
        let mut by_image: BTreeMap<ImageName, Vec<Entry>> = BTreeMap::new();
        for entry in common {
            by_image.entry(entry.image.clone()).or_default().push(entry);
        }
        let mut items = encodings.into_iter().map(item).collect::<Result<Vec<_>>>()?;
        items.sort_by(|a, b| a.name.cmp(&b.name));
        let mut plan = Self { items, present, common: by_image, planned: HashSet::new() };
        for at in 0..plan.items.len() {
            plan.choose_parent(at);
        }
        Ok(plan)
    }

    /// Notes that both stores have a snapshot now, or would have it after a dry run, and lets the next of its image
    /// build on it.
    pub(super) fn add_common(&mut self, item: &Item, dry_run: bool) {
        if dry_run {
            self.planned.insert(item.name.clone());
        }
        self.common.entry(item.name.image.clone()).or_default().push(item.entry.clone());
        for at in 0..self.items.len() {
            if self.items[at].name.image == item.name.image {
                self.choose_parent(at);
            }
        }
    }

    /// The newest that is older than the snapshot is most like it; failing that, the oldest that is newer.
    fn choose_parent(&mut self, at: usize) {
        let item = &mut self.items[at];
        let Some(common) = self.common.get(&item.name.image) else { return };
        let time = item.name.time;
        let before = common.iter().filter(|entry| entry.time < time).max_by_key(|entry| entry.time);
        let after = || common.iter().filter(|entry| entry.time > time).min_by_key(|entry| entry.time);
        item.parent = before.or_else(after).cloned();
        item.parent_is_planned = item.parent.as_ref().is_some_and(|parent| self.planned.contains(&parent.name()));
    }
}

fn item(encoding: Vec<u8>) -> Result<Item> {
    let snapshot = Snapshot::from_entry(EntryId::of(&encoding), encoding, State::default())?;
    let (name, entry) = (snapshot.name(), snapshot.entry().clone());
    Ok(Item { name, entry, encoding: snapshot.entry_encoding().to_vec(), parent: None, parent_is_planned: false })
}

/// The whole local snapshots of these images.
fn snapshots(catalog: &Catalog, wanted: &Wanted) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    for listed in catalog.list(None)?.into_iter().filter(|listed| wanted.concerns(&listed.name.image)) {
        match listed.snapshot {
            Ok(snapshot) if !snapshot.state.partial => snapshots.push(snapshot),
            Ok(_) => {}
            // An unreadable entry must not keep the other snapshots from being copied.
            Err(error) => tracing::error!("left out: {error}"),
        }
    }
    Ok(snapshots)
}

/// The names of those that are to be pushed.
fn chosen(catalog: &Catalog, wanted: &Wanted, here: &[Snapshot]) -> Result<HashSet<SnapshotName>> {
    let all: HashSet<_> = here.iter().map(Snapshot::name).collect();
    let Wanted::Snapshots(selectors) = wanted else {
        if let (Wanted::Image(image), true) = (wanted, all.is_empty()) {
            return Err(Error::not_found(format!("image {image}")));
        }
        return Ok(all);
    };
    let mut chosen = HashSet::new();
    for selector in selectors {
        let name = catalog.resolve(selector)?;
        if !all.contains(&name) {
            catalog.read(&name)?.check_whole()?;
            return Err(Error::refused(format!("snapshot {name} changed meanwhile; retry")));
        }
        chosen.insert(name);
    }
    Ok(chosen)
}
