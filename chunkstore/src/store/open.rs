//! Creating and opening a store, and reconciling its index with its packs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::format::limits::PACK_BYTES_TARGET;
use crate::format::{ChunkParams, PackId};
use crate::metrics::Metrics;
use crate::pack::{self, Inventory, PackReader, PackSet, ScanOutcome};
use crate::pack::{PackRow, RecordLocation};
use crate::storage::{LocalDir, Storage, private_dir};
use crate::store::claims::{Claims, Clock};
use crate::store::config::Config;
use crate::store::damaged::Damaged;
use crate::store::index::{self, Index};
use crate::store::lock::StoreLock;
use crate::store::pins::CollectionLock;
use crate::store::reserve;
use crate::store::{Adoption, Store, pack_row};
use crate::truth_lock::{TruthMutex, TruthRwLock};

/// How to create a store.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Where chunks are cut.
    pub params: ChunkParams,
    /// Whether to reserve 256 MiB for a full disk.
    pub reserve: bool,
}

/// How to open a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// How long to wait for another process that holds the store.
    pub wait: Duration,
    /// Whether the operation frees space: on a full disk it may use up the reserve.
    pub frees_space: bool,
    /// Makes the tags of new packs; should be random.
    pub seed: u64,
    /// The storage under packs and catalog, instead of the directory itself: for tests.
    pub storage: Option<Arc<dyn Storage>>,
    /// The size at which packs are sealed, in bytes.
    pub pack_bytes: u64,
    /// The clock by which claims lapse.
    pub clock: Clock,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            wait: Duration::ZERO,
            frees_space: false,
            seed: 0,
            storage: None,
            pack_bytes: PACK_BYTES_TARGET,
            clock: Clock::default(),
        }
    }
}

/// The result of rebuilding the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reindexed {
    /// Packs read.
    pub packs: u64,
    /// Records found in them.
    pub records: u64,
    /// Packs of which only some records could be found, or none.
    pub damaged_packs: u64,
}

impl Store {
    /// Creates a store in `dir`, which must be empty or not exist. `seed` names the store and should be random.
    pub fn init(dir: &Path, options: &InitOptions, seed: [u8; 16], now: jiff::Timestamp) -> Result<()> {
        let config = Config::new(seed, now, options.params)?;
        create_private(dir).map_err(|error| Error::io("creating", dir, error))?;
        let mut entries = fs::read_dir(dir).map_err(|error| Error::io("reading", dir, error))?;
        if entries.next().is_some() {
            let kind = if dir.join("config.toml").exists() { "already holds a store" } else { "is not empty" };
            return Err(Error::refused(format!("{} {kind}", dir.display())));
        }
        let storage: Arc<dyn Storage> = Arc::new(LocalDir::new(dir));
        make_dirs(&storage)?;
        if options.reserve {
            reserve::create(dir)?;
        }
        // Last: a directory with a configuration is a store.
        config.store(&*storage)?;
        sync_parent(dir)
    }

    /// Opens the store in `dir` for this process alone. Unfinished packs of a dead process are removed, and the index
    /// is rebuilt, or completed with what only the packs have.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self> {
        let (storage, config) = open_config(dir, options)?;
        let lock = StoreLock::acquire(dir, options.wait)?;
        if options.frees_space {
            reserve::give_up_if_low(dir);
        }
        let catalog = Catalog::open(Arc::clone(&storage))?;
        catalog.clean()?;
        if let Err(error) = Config::repeat(&*storage) {
            // Most likely the disk is full, and freeing space must remain possible.
            tracing::warn!("the copy of the configuration can't be written: {error}");
        }
        Damaged::clean(&*storage)?;
        let damaged = Damaged::load(&*storage)?;
        let inventory = Inventory::read(&*storage)?;
        remove_parts(&*storage, &inventory)?;
        let reconciled = reconcile(dir, &*storage, &config, &damaged, &inventory)?;
        if inventory.sealed.is_empty() && catalog.images()?.is_empty() {
            reconciled.index.set_complete(true)?;
        }
        let packs = PackSet::new(Arc::clone(&storage), reconciled.there, reconciled.next_number, options.seed);
        Ok(Self {
            dir: dir.to_path_buf(),
            storage,
            codec: config.record_codec(),
            config,
            catalog,
            index: reconciled.index,
            packs,
            missing: TruthRwLock::new("the list of missing packs", Arc::new(reconciled.missing)),
            damaged: TruthRwLock::new("the list of damaged records", Arc::new(damaged)),
            open_packs: Arc::default(),
            claims: Claims::new(options.clock.clone()),
            pin_sets: Arc::default(),
            collection_lock: CollectionLock::default(),
            index_changes: TruthMutex::new("the index", ()),
            maintenance: Mutex::default(),
            forgotten: TruthMutex::new("the list of forgotten packs", Vec::new()),
            pack_bytes: options.pack_bytes,
            metrics: Metrics::default(),
            _lock: lock,
        })
    }

    /// Opens only the catalog, without taking the store's lock.
    pub fn open_catalog(dir: &Path) -> Result<(Config, Catalog)> {
        let (storage, config) = open_config(dir, &OpenOptions::default())?;
        Ok((config, Catalog::open(storage)?))
    }

    /// Deletes the index and builds it from the packs.
    pub fn reindex(dir: &Path, options: &OpenOptions) -> Result<Reindexed> {
        let (storage, config) = open_config(dir, options)?;
        let _lock = StoreLock::acquire(dir, options.wait)?;
        if options.frees_space {
            reserve::give_up_if_low(dir);
        }
        let damaged = Damaged::load(&*storage)?;
        let inventory = Inventory::read(&*storage)?;
        // In another directory, so that the old index stays in use if the disk is too full for a second one.
        let aside = dir.join(format!("{}.new", index::DIR));
        wipe(&aside)?;
        let built =
            build_index(&aside, &*storage, &config, &damaged, &inventory).inspect_err(|_| drop(wipe(&aside)))?;
        let path = index_path(dir);
        wipe(&path)?;
        fs::rename(&aside, &path).map_err(|error| Error::io("renaming", &aside, error))?;
        Ok(built)
    }
}

/// Creates a directory for its user alone, and its parents with the usual mode. An existing one is left as it is.
fn create_private(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match private_dir().create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    }
}

/// Creates the directories of a store.
pub(super) fn make_dirs(storage: &Arc<dyn Storage>) -> Result<()> {
    Catalog::create(Arc::clone(storage))?;
    for name in [pack::DIR, "leases"] {
        storage.create_dir(name).map_err(|error| Error::io("creating", name, error))?;
    }
    Ok(())
}

fn open_config(dir: &Path, options: &OpenOptions) -> Result<(Arc<dyn Storage>, Config)> {
    let storage: Arc<dyn Storage> = match &options.storage {
        Some(storage) => Arc::clone(storage),
        None => Arc::new(LocalDir::new(dir)),
    };
    if let Err(error) = storage.list(pack::DIR) {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("store {}", dir.display())),
            io::ErrorKind::PermissionDenied => Error::denied(format!("store {} is another user's", dir.display())),
            _ => Error::io("listing", dir.join(pack::DIR), error),
        });
    }
    let config = Config::load(&*storage)?;
    Ok((storage, config))
}

fn sync_parent(dir: &Path) -> Result<()> {
    let absolute = fs::canonicalize(dir).map_err(|error| Error::io("opening", dir, error))?;
    let parent = absolute.parent().unwrap_or(&absolute);
    fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| Error::io("syncing", parent, error))
}

fn remove_parts(storage: &dyn Storage, inventory: &Inventory) -> Result<()> {
    for name in &inventory.parts {
        let path = format!("{}/{name}", pack::DIR);
        storage.remove(&path).map_err(|error| Error::io("removing", &path, error))?;
        tracing::info!("removed {path}, left unfinished by a process that was interrupted");
    }
    Ok(())
}

struct Reconciled {
    index: Index,
    there: HashMap<u32, PackRow>,
    missing: Vec<PackRow>,
    next_number: u32,
}

fn index_path(dir: &Path) -> PathBuf {
    dir.join(index::DIR)
}

fn open_index(path: &Path, config: &Config) -> Result<Index> {
    Index::open(path, config.format.store_id_bytes(), config.defaults.index_cache_bytes as usize)
}

/// Builds an index of all packs where there is none.
fn build_index(
    path: &Path,
    storage: &dyn Storage,
    config: &Config,
    damaged: &Damaged,
    inventory: &Inventory,
) -> Result<Reindexed> {
    let index = open_index(path, config)?;
    let reindexed = add_packs(&index, storage, damaged, inventory.sealed.values(), &mut HashMap::new())?;
    index.flush()?;
    Ok(reindexed)
}

fn wipe(path: &Path) -> Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, error)),
        _ => Ok(()),
    }
}

/// Opens the index, rebuilds it if it is damaged or stale, and adds the packs that it lacks.
fn reconcile(
    dir: &Path,
    storage: &dyn Storage,
    config: &Config,
    damaged: &Damaged,
    inventory: &Inventory,
) -> Result<Reconciled> {
    let usable = open_index(&index_path(dir), config).and_then(|index| Ok((index.packs()?, index)));
    let (known, index) = match usable {
        Ok((known, index)) if is_of_these_packs(&known, inventory) => (known, index),
        Ok((_, index)) => {
            drop(index);
            rebuilt_empty(dir, config, "it is older than the packs")?
        }
        Err(Error::IndexDamaged { detail }) => rebuilt_empty(dir, config, &detail)?,
        Err(error) => return Err(error),
    };
    let (mut there, missing): (HashMap<_, _>, HashMap<_, _>) =
        known.into_iter().partition(|(number, _)| inventory.sealed.contains_key(number));
    for row in missing.values() {
        tracing::error!("pack {} is missing; `vmstore verify` lists the damage", row.id);
    }
    for name in &inventory.strangers {
        tracing::warn!("{}/{name} is not a pack of this store; it is left alone", pack::DIR);
    }
    let unknown: Vec<_> = inventory.sealed.values().filter(|id| !there.contains_key(&id.number)).collect();
    if !unknown.is_empty() {
        tracing::info!("adding {} packs to the index", unknown.len());
        add_packs(&index, storage, damaged, unknown, &mut there)?;
    }
    let highest_known = missing.keys().max().map_or(0, |number| number + 1);
    let next_number = inventory.next_number().max(highest_known);
    Ok(Reconciled { index, there, missing: missing.into_values().collect(), next_number })
}

/// Whether no number names one pack in the index and another on disk.
fn is_of_these_packs(known: &HashMap<u32, PackRow>, inventory: &Inventory) -> bool {
    inventory.sealed.iter().all(|(number, id)| known.get(number).is_none_or(|row| row.id == *id))
}

fn rebuilt_empty(dir: &Path, config: &Config, why: &str) -> Result<(HashMap<u32, PackRow>, Index)> {
    tracing::warn!("rebuilding the index from the packs: {why}");
    let path = index_path(dir);
    wipe(&path)?;
    Ok((HashMap::new(), open_index(&path, config)?))
}

/// Adds packs to the index; of a damaged one, the intact records that can be found. A damaged pack gets no row, so that
/// it is read again when the store is next opened: the device may have been unreadable only for now.
fn add_packs<'a>(
    index: &Index,
    storage: &dyn Storage,
    damaged: &Damaged,
    packs: impl IntoIterator<Item = &'a PackId>,
    there: &mut HashMap<u32, PackRow>,
) -> Result<Reindexed> {
    let mut ids: Vec<_> = packs.into_iter().copied().collect();
    ids.sort_unstable();
    let mut reindexed = Reindexed::default();
    for id in ids {
        let reader = PackReader::open(storage, id)?;
        let scanned = reader.scan()?;
        reindexed.packs += 1;
        reindexed.records += scanned.entries.len() as u64;
        let mut entries = scanned.entries;
        let is_whole = matches!(scanned.outcome, ScanOutcome::Whole);
        if let ScanOutcome::Damaged(error) = scanned.outcome {
            tracing::error!("{error}; found {} whole records in it", entries.len());
            reindexed.damaged_packs += 1;
            if reader.is_another_pack() {
                // Its records belong to the pack that it is a copy of.
                entries.clear();
            }
        }
        let found = || entries.first().map_or(pack::Class::Meta, pack::TableEntry::class);
        // Records that a search found first may lie in a gap.
        let class = reader.header().map_or_else(|_| found(), |header| header.class);
        let row = pack_row(id, class, &entries, reader.file_bytes()?);
        let is_there = |location: &RecordLocation| there.contains_key(&location.pack);
        let mut change = Adoption::plan(index, damaged, row, &entries, is_there)?.change;
        if !is_whole {
            change.forget_pack(id.number);
        }
        index.apply(&change)?;
        there.insert(id.number, row);
    }
    Ok(reindexed)
}
