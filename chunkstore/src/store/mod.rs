//! An open store: ground truth (packs, catalog, configuration), the derived index, and the lock that owns them.
//!
//! Opening reconciles the index with the pack files, so a store whose index was deleted, damaged or set back loses
//! nothing. Operations live in modules of their own (`ingest`, `restore`, `verify`, `gc` …) and work on [`Store`].

mod open;
mod read;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

pub use open::{InitOptions, OpenOptions, Reindexed};
pub(crate) use read::{Plain, id_of};
pub(crate) use write::encode;
pub use write::{Publication, WriteSession};

use crate::catalog::Catalog;
use crate::config::Config;
use crate::damaged::Damaged;
use crate::error::Result;
use crate::id::{PackId, RecordId};
use crate::index::{Change, Index, PackRow, Place};
use crate::lock::StoreLock;
use crate::pack::{PackSet, TableEntry};
use crate::storage::Storage;

/// A store that this process owns.
pub struct Store {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    config: Config,
    catalog: Catalog,
    index: Index,
    packs: PackSet,
    /// Packs that the index knows and whose files are gone.
    missing: Vec<PackRow>,
    damaged: RwLock<Arc<Damaged>>,
    _lock: StoreLock,
}

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

    /// Packs that should be there and are not.
    pub fn missing_packs(&self) -> &[PackRow] {
        &self.missing
    }

    /// What is known to be damaged now.
    pub fn damaged(&self) -> Arc<Damaged> {
        Arc::clone(&self.damaged.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the list of damaged records, on disk first, and takes the newly damaged out of the index.
    pub(crate) fn set_damaged(&self, damaged: Damaged) -> Result<()> {
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
        *self.damaged.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(damaged);
        Ok(())
    }

    /// The places of records, in the order of `ids`; a record that is damaged or in a pack that is gone has none.
    pub fn places(&self, ids: &[RecordId]) -> Result<Vec<Option<Place>>> {
        Ok(self.only_sound(ids, self.index.places(ids)?))
    }

    /// [`Store::places`] for a walk over everything.
    pub(crate) fn places_once(&self, ids: &[RecordId]) -> Result<Vec<Option<Place>>> {
        Ok(self.only_sound(ids, self.index.places_once(ids)?))
    }

    fn only_sound(&self, ids: &[RecordId], mut places: Vec<Option<Place>>) -> Vec<Option<Place>> {
        let damaged = self.damaged();
        for (id, place) in ids.iter().zip(&mut places) {
            *place = place.filter(|place| {
                let row = self.packs.row(place.pack);
                row.is_some_and(|row| damaged.is_empty() || !damaged.is_bad_place(row.id, place.offset, *id))
            });
        }
        places
    }

    /// Puts a pack's records into index and set, durably. Of two records of one id, a full one beats a delta, then
    /// the newer pack wins; a damaged place is left out.
    pub(crate) fn adopt(&self, row: PackRow, entries: &[TableEntry]) -> Result<()> {
        let change = adoption(&self.index, &self.damaged(), row, entries, |number| self.packs.row(number).is_some())?;
        self.index.apply(&change)?;
        self.packs.insert(row);
        Ok(())
    }
}

/// What has to change in the index for a pack to be known.
fn adoption(
    index: &Index,
    damaged: &Damaged,
    row: PackRow,
    entries: &[TableEntry],
    is_there: impl Fn(u32) -> bool,
) -> Result<Change> {
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    let known = index.places(&ids)?;
    let mut change = Change::default();
    for (ordinal, (entry, known)) in entries.iter().zip(known).enumerate() {
        if damaged.is_bad_place(row.id, entry.offset, entry.id) {
            continue;
        }
        let place = Place::of(row.id, ordinal, entry);
        let known = known.filter(|known| known.pack == row.id.number || is_there(known.pack));
        if known.is_none_or(|known| rank(&known) <= rank(&place)) {
            change.put(entry.id, place);
            if entry.sketch != 0 {
                change.put_sketch(entry.sketch, row.id.number, entry.offset);
            }
        }
    }
    change.put_pack(row);
    Ok(change)
}

fn rank(place: &Place) -> (bool, u32) {
    (place.is_full(), place.pack)
}

/// The row of a pack from what was found in it.
pub(crate) fn pack_row(id: PackId, class: crate::pack::Class, entries: &[TableEntry], bytes: u64) -> PackRow {
    let plain_bytes = entries.iter().map(|entry| u64::from(entry.plain_bytes)).sum();
    PackRow { id, class, records: entries.len() as u32, bytes, plain_bytes }
}

#[cfg(test)]
mod crash_tests;
