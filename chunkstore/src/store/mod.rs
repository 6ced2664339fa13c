//! An open store: ground truth (packs, catalog, configuration), the derived index, and the lock that owns them.
//!
//! Opening reconciles the index with the pack files: a deleted, damaged or outdated index loses no data. Operations
//! live in modules of their own (`ingest`, `restore`, `maintenance`) and work on [`Store`].
//!
//! One open store serves many threads: writing sessions, readers, and one collection or verification at a time. Lock
//! order: maintenance, index changes, collection lock, open packs, pins. If the holder of a lock over ground truth
//! panics, the process ends ([`truth_lock`](crate::truth_lock)).

mod claims;
pub(crate) mod config;
pub mod damaged;
#[cfg(any(test, feature = "test-util"))]
mod direct_session;
pub(crate) mod index;
pub mod lock;
pub(crate) mod marks;
mod open;
mod open_packs;
pub mod partial;
mod pins;
mod publish;
mod read;
mod recheck;
pub mod reserve;
mod session;
mod sink;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claims::Claims;
pub use claims::Clock;
pub use config::{Config, Defaults, FormatSection};
#[cfg(any(test, feature = "test-util"))]
pub use direct_session::DirectWriteSession;
pub use open::{InitOptions, OpenOptions, Reindexed};
use open_packs::OpenPacks;
use parking_lot::{Mutex, MutexGuard};
pub(crate) use pins::Collecting;
use pins::{CollectionLock, Move, PinSets};
pub(crate) use publish::entry_record;
pub(crate) use read::verify_record;
pub use session::WriteSession;
pub use sink::{Base, BaseBytes, Claim, Like, Sink};

use crate::catalog::boot_order::{self, BootOrder};
use crate::catalog::{Catalog, SnapshotName, State};
use crate::error::Result;
use crate::format::{PackId, RecordCodec, RecordId};
use crate::metrics::Metrics;
use crate::pack::{PackRow, RecordLocation};
use crate::pack::{PackSet, TableEntry};
use crate::storage::Storage;
use crate::store::damaged::{BadRecord, Damaged};
use crate::store::index::{Change, Index};
use crate::store::lock::StoreLock;
use crate::truth_lock::{TruthGuard, TruthMutex, TruthRwLock};

/// A store that this process owns.
pub struct Store {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    config: Config,
    codec: RecordCodec,
    catalog: Catalog,
    index: Index,
    packs: PackSet,
    /// Packs that the index names and whose files are missing.
    missing: TruthRwLock<Arc<Vec<PackRow>>>,
    damaged: TruthRwLock<Arc<Damaged>>,
    /// Packs that all sessions write to.
    open_packs: Arc<OpenPacks>,
    claims: Claims,
    pin_sets: Arc<PinSets>,
    pub(crate) collection_lock: CollectionLock,
    /// Held between reading the index and changing it accordingly.
    index_changes: TruthMutex<()>,
    maintenance: Mutex<()>,
    /// Packs that the index no longer names and that may still be on disk.
    forgotten: TruthMutex<Vec<PackRow>>,
    /// A pack is sealed at this size.
    pack_bytes: u64,
    metrics: Metrics,
    _lock: StoreLock,
}

/// How often a lookup is repeated because the record's pack was collected meanwhile.
const TRIES_MAX: u32 = 8;

/// Excludes gc, verify and statistics from each other.
pub(crate) type Maintenance<'a> = MutexGuard<'a, ()>;

impl Store {
    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The storage under packs and catalog.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The store's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metrics of the store's operations and of the processes that serve it.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Encodes and decodes the store's records.
    pub fn codec(&self) -> &RecordCodec {
        &self.codec
    }

    /// The names of images and snapshots.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The packs that exist.
    pub fn packs(&self) -> &PackSet {
        &self.packs
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// The packs that are completely in the index, without those whose records are being added.
    pub(crate) fn sealed_rows(&self) -> Vec<PackRow> {
        let _index = self.change_index();
        self.packs.rows()
    }

    /// The packs that may be collected: completely in the index, with no record still pending. All their records are
    /// therefore looked up through the index, which respects condemned packs.
    pub(crate) fn settled_rows(&self) -> Vec<PackRow> {
        let mut rows = self.sealed_rows();
        // Read afterwards: a record in the index may stop being pending but not become so.
        let sealing = self.open_packs.sealing();
        rows.retain(|row| !sealing.contains(&row.id.number));
        rows
    }

    /// Notes that the index has forgotten a pack whose file is still to be unlinked.
    pub(crate) fn forget_pack(&self, row: PackRow) {
        self.packs.forget(row.id.number);
        self.collection_lock.is_gone(row.id.number);
        self.forgotten_packs().push(row);
    }

    /// Packs that the index no longer names and that may still be on disk.
    pub(crate) fn forgotten_packs(&self) -> TruthGuard<'_, Vec<PackRow>> {
        self.forgotten.lock()
    }

    /// The size at which packs are sealed.
    pub(crate) fn pack_bytes(&self) -> u64 {
        self.pack_bytes
    }

    /// Waits for other operations on the whole store, and excludes them.
    pub(crate) fn maintain(&self) -> Maintenance<'_> {
        self.maintenance.lock()
    }

    /// Excludes all other changes of the index.
    pub(crate) fn change_index(&self) -> TruthGuard<'_, ()> {
        self.index_changes.lock()
    }

    /// From now on sessions that end hand over their pins.
    pub(crate) fn begin_collection(&self, _maintenance: &Maintenance<'_>) -> Collecting {
        self.pin_sets.begin_collection()
    }

    /// Whether the id of a record that is pending or in the index begins with these bytes.
    pub(crate) fn has_prefix(&self, prefix: &[u8]) -> Result<bool> {
        Ok(self.open_packs.has_prefix(prefix) || self.index.has_prefix(prefix)?)
    }

    /// Reads, changes and durably writes a snapshot's state, with no other change in between.
    ///
    /// # Errors
    /// As [`Catalog::update_state`].
    pub fn update_state<T>(&self, name: &SnapshotName, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        self.catalog.update_state(name, change)
    }

    /// Whether the index was opened on a disk so full that nothing can be added or freed.
    pub fn is_read_only(&self) -> bool {
        self.index.is_read_only()
    }

    /// Packs that should exist and do not.
    pub fn missing_packs(&self) -> Arc<Vec<PackRow>> {
        Arc::clone(&self.missing.read())
    }

    /// Forgets missing packs once the records that snapshots need from them are elsewhere or listed as damaged, so that
    /// a missing pack is reported only once.
    pub(crate) fn forget_missing_packs(&self) -> Result<()> {
        let _index = self.change_index();
        let mut change = Change::default();
        self.missing_packs().iter().for_each(|row| change.forget_pack(row.id.number));
        self.index.apply(&change)?;
        *self.missing.write() = Arc::default();
        Ok(())
    }

    /// Whether, as far as is known, everything that complete snapshots need is here: no pack is missing, nothing is
    /// damaged, and a verification found everything since the index was last built.
    pub(crate) fn is_complete(&self) -> Result<bool> {
        Ok(self.missing_packs().is_empty() && self.damaged().is_empty() && self.index.is_complete()?)
    }

    /// Notes that everything was found that complete snapshots need.
    pub(crate) fn set_complete(&self) {
        if let Err(error) = self.index.set_complete(true) {
            // It only saves time: parents are not trusted until this succeeds.
            tracing::warn!("can't record that the store is complete: {error}");
        }
    }

    /// The records that are known to be damaged.
    pub fn damaged(&self) -> Arc<Damaged> {
        Arc::clone(&self.damaged.read())
    }

    /// Replaces the list of damaged records, on disk first, and takes the newly damaged ones out of the index.
    pub(crate) fn set_damaged(&self, damaged: Damaged) -> Result<()> {
        let _index = self.change_index();
        self.replace_damaged(damaged)
    }

    /// Like [`Store::set_damaged`], but adds to the list.
    pub(crate) fn add_damaged(&self, records: &[BadRecord]) -> Result<()> {
        let _index = self.change_index();
        let mut damaged = Damaged::clone(&self.damaged());
        for record in records {
            damaged.insert(*record);
        }
        self.replace_damaged(damaged)
    }

    /// The caller holds the lock over index changes.
    fn replace_damaged(&self, damaged: Damaged) -> Result<()> {
        if !damaged.is_empty() {
            // In case the list itself is lost.
            self.index.set_complete(false)?;
        }
        damaged.save(&*self.storage)?;
        let records: Vec<_> = damaged.records().into_iter().filter(|record| !record.base_lost).collect();
        let ids: Vec<_> = records.iter().map(|record| record.id).collect();
        let mut change = Change::default();
        for (record, location) in records.iter().zip(self.index.locate(&ids)?) {
            if location.is_some_and(|location| location.pack == record.pack.number && location.offset == record.offset)
            {
                change.forget(record.id);
            }
        }
        self.index.apply(&change)?;
        *self.damaged.write() = Arc::new(damaged);
        Ok(())
    }

    /// Writes a snapshot's boot order durably, replacing an earlier one.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if there is no such snapshot.
    pub fn write_boot_order(&self, name: &SnapshotName, order: &BootOrder) -> Result<()> {
        boot_order::write(&*self.storage, &self.catalog, name, order)
    }

    /// The locations of records, in the order of `ids`; `None` for a record that is absent, damaged, condemned or in a
    /// missing pack.
    pub fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        self.sound_places(ids, |ids| self.index.locate(ids))
    }

    /// Like [`Store::locate`], for a walk over everything: it does not fill the index's cache.
    pub(crate) fn locate_once(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        self.sound_places(ids, |ids| self.index.locate_once(ids))
    }

    fn sound_places(
        &self,
        ids: &[RecordId],
        look_up: impl Fn(&[RecordId]) -> Result<Vec<Option<RecordLocation>>>,
    ) -> Result<Vec<Option<RecordLocation>>> {
        let mut locations = look_up(ids)?;
        for _ in 0..TRIES_MAX {
            let gone = self.keep_sound(ids, &mut locations);
            if gone.is_empty() {
                break;
            }
            // gc has moved them since the lookup.
            let asked: Vec<RecordId> = gone.iter().map(|at| ids[*at]).collect();
            for (at, location) in gone.into_iter().zip(look_up(&asked)?) {
                locations[at] = location;
            }
        }
        self.keep_sound(ids, &mut locations);
        Ok(locations)
    }

    /// Removes the locations that do not count; returns the positions of those whose packs were removed meanwhile.
    fn keep_sound(&self, ids: &[RecordId], locations: &mut [Option<RecordLocation>]) -> Vec<usize> {
        let damaged = self.damaged();
        // Read before the packs: a pack that stops being condemned has been removed by then.
        let condemned = self.collection_lock.condemned();
        let (mut gone, missing) = (Vec::new(), self.missing_packs());
        for (at, (id, location)) in ids.iter().zip(locations).enumerate() {
            *location = location.filter(|location| {
                let row = self.packs.row(location.pack);
                if row.is_none() && !missing.iter().any(|missing| missing.id.number == location.pack) {
                    gone.push(at);
                }
                row.is_some_and(|row| damaged.is_empty() || !damaged.is_bad_location(row.id, location.offset, *id))
                    && !pins::is_condemned(&condemned, location)
            });
        }
        gone
    }

    /// Adds a pack's records to the index and the pack to the set, durably. Of two records of one id, a full one wins
    /// over a delta, then the one in the newer pack; damaged and condemned locations are left out. Pins of the record
    /// that loses move to the one that wins.
    pub(crate) fn adopt(&self, row: PackRow, entries: &[TableEntry]) -> Result<()> {
        let _index = self.change_index();
        let condemned = self.collection_lock.condemned();
        let is_there = |location: &RecordLocation| {
            self.packs.row(location.pack).is_some() && !pins::is_condemned(&condemned, location)
        };
        let adoption = Adoption::plan(&self.index, &self.damaged(), row, entries, is_there)?;
        let is_new = self.packs.row(row.id.number).is_none();
        // First, because the index must never name an unknown pack.
        self.packs.insert(row);
        if let Err(error) = self.index.apply(&adoption.change) {
            if is_new {
                self.packs.forget(row.id.number);
            }
            return Err(error);
        }
        if !adoption.moves.is_empty() {
            self.collection_lock.wait_for_look_ups();
            self.pin_sets.follow(&adoption.moves);
        }
        Ok(())
    }
}

/// The changes that make a pack known.
struct Adoption {
    change: Change,
    /// Records that also lie elsewhere.
    moves: Vec<Move>,
}

impl Adoption {
    fn plan(
        index: &Index,
        damaged: &Damaged,
        row: PackRow,
        entries: &[TableEntry],
        is_there: impl Fn(&RecordLocation) -> bool,
    ) -> Result<Self> {
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let known = index.locate(&ids)?;
        let mut adoption = Self { change: Change::default(), moves: Vec::new() };
        for (ordinal, (entry, known)) in entries.iter().zip(known).enumerate() {
            if damaged.is_bad_location(row.id, entry.offset, entry.id) {
                continue;
            }
            let location = RecordLocation::of(row.id, ordinal, entry);
            let known = known.filter(|known| known.pack == row.id.number || is_there(known));
            let wins = known.is_none_or(|known| rank(&known) <= rank(&location));
            if wins {
                adoption.change.put(entry.id, location);
                if entry.sketch != 0 {
                    adoption.change.put_sketch(entry.sketch, row.id.number, entry.offset);
                }
            }
            if let Some(known) = known.filter(|known| *known != location) {
                let (from, to) = if wins { (known, location) } else { (location, known) };
                adoption.moves.push(Move { from, to });
            }
        }
        adoption.change.put_pack(row);
        Ok(adoption)
    }
}

fn rank(location: &RecordLocation) -> (bool, u32) {
    (location.is_full(), location.pack)
}

/// The row of a pack, computed from its entries.
pub(crate) fn pack_row(id: PackId, class: crate::pack::Class, entries: &[TableEntry], bytes: u64) -> PackRow {
    let plain_bytes = entries.iter().map(|entry| u64::from(entry.plain_bytes)).sum();
    PackRow { id, class, records: entries.len() as u32, bytes, plain_bytes }
}

#[cfg(test)]
pub(crate) mod crash_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod vast_tests;
