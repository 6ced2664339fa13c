//! An open store: ground truth (packs, catalog, configuration), the derived index, and the lock that owns them.
//!
//! Opening reconciles the index with the pack files, so a store whose index was deleted, damaged or set back loses
//! nothing. Operations live in modules of their own (`ingest`, `restore`, `verify`, `gc` …) and work on [`Store`].
//!
//! One open store serves many threads: sessions that write, readers, and one collection or verification at a time.
//! Locks are taken in this order: maintenance, changes of the index, the gate, open packs, pins.

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
    /// Packs that the index knows and whose files are gone.
    missing: TruthRwLock<Arc<Vec<PackRow>>>,
    damaged: TruthRwLock<Arc<Damaged>>,
    /// Packs that all sessions write.
    open_packs: Arc<OpenPacks>,
    claims: Claims,
    pin_sets: Arc<PinSets>,
    pub(crate) collection_lock: CollectionLock,
    /// Held from reading the index to changing it by what was read.
    index_changes: TruthMutex<()>,
    maintenance: Mutex<()>,
    /// Packs that the index knows no more, and that may be on disk still.
    forgotten: TruthMutex<Vec<PackRow>>,
    /// Packs are sealed when they have grown to this.
    pack_bytes: u64,
    metrics: Metrics,
    _lock: StoreLock,
}

/// How often a record is looked up again whose pack went meanwhile.
const TRIES_MAX: u32 = 8;

/// Keeps gc, verify and statistics from each other.
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

    /// What is counted of the store's operations, and of those who serve it.
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

    /// The packs that are there.
    pub fn packs(&self) -> &PackSet {
        &self.packs
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Packs that are in the index whole: not those whose records are just being added.
    pub(crate) fn sealed_rows(&self) -> Vec<PackRow> {
        let _index = self.change_index();
        self.packs.rows()
    }

    /// Packs that may be collected: in the index whole, and none of their records is pending any more, so that all are
    /// found by the index, which knows what is condemned.
    pub(crate) fn settled_rows(&self) -> Vec<PackRow> {
        let mut rows = self.sealed_rows();
        // Afterwards: what is in the index by now can cease to be pending, and not begin.
        let sealing = self.open_packs.sealing();
        rows.retain(|row| !sealing.contains(&row.id.number));
        rows
    }

    /// Notes that the index has forgotten a pack, which is still to be unlinked.
    pub(crate) fn forget_pack(&self, row: PackRow) {
        self.packs.forget(row.id.number);
        self.collection_lock.is_gone(row.id.number);
        self.forgotten_packs().push(row);
    }

    /// Packs that the index knows no more, and that may be on disk still.
    pub(crate) fn forgotten_packs(&self) -> TruthGuard<'_, Vec<PackRow>> {
        self.forgotten.lock()
    }

    /// The size at which packs are sealed.
    pub(crate) fn pack_bytes(&self) -> u64 {
        self.pack_bytes
    }

    /// Waits for other operations on the whole store, and keeps them out.
    pub(crate) fn maintain(&self) -> Maintenance<'_> {
        self.maintenance.lock()
    }

    /// Keeps all others from changing the index.
    pub(crate) fn change_index(&self) -> TruthGuard<'_, ()> {
        self.index_changes.lock()
    }

    /// From now on sessions that end hand over what they count on.
    pub(crate) fn begin_collection(&self, _maintenance: &Maintenance<'_>) -> Collecting {
        self.pin_sets.begin_collection()
    }

    /// Whether the id of a record that is pending or in the index begins with these bytes.
    pub(crate) fn has_prefix(&self, prefix: &[u8]) -> Result<bool> {
        Ok(self.open_packs.has_prefix(prefix) || self.index.has_prefix(prefix)?)
    }

    /// Changes a snapshot's state: reads, changes and makes it permanent with no other change in between.
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

    /// Packs that should be there and are not.
    pub fn missing_packs(&self) -> Arc<Vec<PackRow>> {
        Arc::clone(&self.missing.read())
    }

    /// Forgets packs that are gone, when what snapshots need of them is elsewhere or in the list of what is damaged: they
    /// are a problem once.
    pub(crate) fn forget_missing_packs(&self) -> Result<()> {
        let _index = self.change_index();
        let mut change = Change::default();
        self.missing_packs().iter().for_each(|row| change.forget_pack(row.id.number));
        self.index.apply(&change)?;
        *self.missing.write() = Arc::default();
        Ok(())
    }

    /// Whether, as far as is known, everything is here that whole snapshots need: no pack is missing, nothing damaged, and
    /// the index has seen it since it was last built.
    pub(crate) fn is_complete(&self) -> Result<bool> {
        Ok(self.missing_packs().is_empty() && self.damaged().is_empty() && self.index.is_complete()?)
    }

    /// Notes that everything was found that whole snapshots need.
    pub(crate) fn set_complete(&self) {
        if let Err(error) = self.index.set_complete(true) {
            // It only saves time: parents are not trusted until it succeeds.
            tracing::warn!("that the store is complete can't be noted: {error}");
        }
    }

    /// What is known to be damaged now.
    pub fn damaged(&self) -> Arc<Damaged> {
        Arc::clone(&self.damaged.read())
    }

    /// Replaces the list of damaged records, on disk first, and takes the newly damaged out of the index.
    pub(crate) fn set_damaged(&self, damaged: Damaged) -> Result<()> {
        let _index = self.change_index();
        self.replace_damaged(damaged)
    }

    /// [`Store::set_damaged`] with these in addition.
    pub(crate) fn add_damaged(&self, records: &[BadRecord]) -> Result<()> {
        let _index = self.change_index();
        let mut damaged = Damaged::clone(&self.damaged());
        for record in records {
            damaged.insert(*record);
        }
        self.replace_damaged(damaged)
    }

    /// Only for who keeps others from changing the index.
    fn replace_damaged(&self, damaged: Damaged) -> Result<()> {
        if !damaged.is_empty() {
            // Should the list itself be lost.
            self.index.set_complete(false)?;
        }
        damaged.save(&*self.storage)?;
        let records: Vec<_> = damaged.records().into_iter().filter(|record| !record.base_lost).collect();
        let ids: Vec<_> = records.iter().map(|record| record.id).collect();
        let mut change = Change::default();
        for (record, place) in records.iter().zip(self.index.places(&ids)?) {
            if place.is_some_and(|place| place.pack == record.pack.number && place.offset == record.offset) {
                change.forget(record.id);
            }
        }
        self.index.apply(&change)?;
        *self.damaged.write() = Arc::new(damaged);
        Ok(())
    }

    /// Keeps a snapshot's boot order durably, in place of an earlier one.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if there is no such snapshot.
    pub fn write_boot_order(&self, name: &SnapshotName, order: &BootOrder) -> Result<()> {
        boot_order::write(&*self.storage, &self.catalog, name, order)
    }

    /// The places of records, in the order of `ids`; a record that is damaged, condemned or in a pack that is gone has
    /// none.
    pub fn places(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        self.sound_places(ids, |ids| self.index.places(ids))
    }

    /// [`Store::places`] for a walk over everything.
    pub(crate) fn places_once(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        self.sound_places(ids, |ids| self.index.places_once(ids))
    }

    fn sound_places(
        &self,
        ids: &[RecordId],
        look_up: impl Fn(&[RecordId]) -> Result<Vec<Option<RecordLocation>>>,
    ) -> Result<Vec<Option<RecordLocation>>> {
        let mut places = look_up(ids)?;
        for _ in 0..TRIES_MAX {
            let gone = self.keep_sound(ids, &mut places);
            if gone.is_empty() {
                break;
            }
            // gc has moved them since they were looked up.
            let asked: Vec<RecordId> = gone.iter().map(|at| ids[*at]).collect();
            for (at, place) in gone.into_iter().zip(look_up(&asked)?) {
                places[at] = place;
            }
        }
        self.keep_sound(ids, &mut places);
        Ok(places)
    }

    /// Takes away the places that do not count; returns the positions of those whose packs are gone since.
    fn keep_sound(&self, ids: &[RecordId], places: &mut [Option<RecordLocation>]) -> Vec<usize> {
        let damaged = self.damaged();
        // Before the packs: one that ceases to be condemned is gone then.
        let condemned = self.collection_lock.condemned();
        let (mut gone, missing) = (Vec::new(), self.missing_packs());
        for (at, (id, place)) in ids.iter().zip(places).enumerate() {
            *place = place.filter(|place| {
                let row = self.packs.row(place.pack);
                if row.is_none() && !missing.iter().any(|missing| missing.id.number == place.pack) {
                    gone.push(at);
                }
                row.is_some_and(|row| damaged.is_empty() || !damaged.is_bad_place(row.id, place.offset, *id))
                    && !pins::is_condemned(&condemned, place)
            });
        }
        gone
    }

    /// Puts a pack's records into index and set, durably. Of two records of one id, a full one beats a delta, then
    /// the newer pack wins; a damaged or condemned place is left out. Whoever counts on the one that loses counts on the
    /// winner from then on.
    pub(crate) fn adopt(&self, row: PackRow, entries: &[TableEntry]) -> Result<()> {
        let _index = self.change_index();
        let condemned = self.collection_lock.condemned();
        let is_there =
            |place: &RecordLocation| self.packs.row(place.pack).is_some() && !pins::is_condemned(&condemned, place);
        let adoption = Adoption::plan(&self.index, &self.damaged(), row, entries, is_there)?;
        let is_new = self.packs.row(row.id.number).is_none();
        // First: the index must not name a pack that nobody can find.
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

/// What has to change for a pack to be known.
struct Adoption {
    change: Change,
    /// Records that are elsewhere too.
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
        let known = index.places(&ids)?;
        let mut adoption = Self { change: Change::default(), moves: Vec::new() };
        for (ordinal, (entry, known)) in entries.iter().zip(known).enumerate() {
            if damaged.is_bad_place(row.id, entry.offset, entry.id) {
                continue;
            }
            let place = RecordLocation::of(row.id, ordinal, entry);
            let known = known.filter(|known| known.pack == row.id.number || is_there(known));
            let wins = known.is_none_or(|known| rank(&known) <= rank(&place));
            if wins {
                adoption.change.put(entry.id, place);
                if entry.sketch != 0 {
                    adoption.change.put_sketch(entry.sketch, row.id.number, entry.offset);
                }
            }
            if let Some(known) = known.filter(|known| *known != place) {
                let (from, to) = if wins { (known, place) } else { (place, known) };
                adoption.moves.push(Move { from, to });
            }
        }
        adoption.change.put_pack(row);
        Ok(adoption)
    }
}

fn rank(place: &RecordLocation) -> (bool, u32) {
    (place.is_full(), place.pack)
}

/// The row of a pack from what was found in it.
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
