//! The set of a store's packs, and open readers of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::PackId;
use crate::format::limits::PACK_NUMBER_MAX;
use crate::pack::PackRow;
use crate::pack::{DIR, PackReader};
use crate::storage::Storage;
use crate::truth_lock::TruthRwLock;

/// Open pack files kept for reuse.
const READERS_KEPT: usize = 256;

/// The sealed packs of an open store.
pub struct PackSet {
    storage: Arc<dyn Storage>,
    rows: TruthRwLock<HashMap<u32, PackRow>>,
    readers: Mutex<HashMap<u32, Arc<PackReader>>>,
    next_number: AtomicU32,
    seed: u64,
}

impl PackSet {
    /// A set of these packs; new ones are numbered from `next_number` and tagged by `seed`.
    pub(crate) fn new(storage: Arc<dyn Storage>, rows: HashMap<u32, PackRow>, next_number: u32, seed: u64) -> Self {
        Self {
            storage,
            rows: TruthRwLock::new("the set of packs", rows),
            readers: Mutex::default(),
            next_number: AtomicU32::new(next_number),
            seed,
        }
    }

    /// Names a new pack. The tag distinguishes it from another pack of the same number, should numbers be reused after
    /// a loss.
    pub(crate) fn allocate(&self) -> PackId {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let random = blake3::hash(&[self.seed.to_le_bytes(), u64::from(number).to_le_bytes()].concat());
        PackId { number, tag: crate::format::record::get_u32(random.as_bytes(), 0) }
    }

    /// The row of a pack, if it exists.
    pub fn row(&self, number: u32) -> Option<PackRow> {
        self.rows.read().get(&number).copied()
    }

    /// All packs, by number.
    pub fn rows(&self) -> Vec<PackRow> {
        let mut rows: Vec<_> = self.rows.read().values().copied().collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    pub(crate) fn insert(&self, row: PackRow) {
        self.rows.write().insert(row.id.number, row);
    }

    pub(crate) fn forget(&self, number: u32) {
        self.rows.write().remove(&number);
        self.readers.lock().remove(&number);
    }

    /// A reader of a pack.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no such pack.
    pub fn reader(&self, number: u32) -> Result<Arc<PackReader>> {
        if let Some(reader) = self.readers.lock().get(&number) {
            return Ok(Arc::clone(reader));
        }
        let row = self.row(number).ok_or_else(|| Error::damaged(format!("pack {number}"), "its file is missing"))?;
        let reader = Arc::new(PackReader::open(&*self.storage, row.id)?);
        let mut readers = self.readers.lock();
        if readers.len() >= READERS_KEPT {
            readers.clear();
        }
        // A pack that gc removed meanwhile must not stay open: its bytes would stay on disk.
        if self.row(number).is_some() {
            readers.insert(number, Arc::clone(&reader));
        }
        Ok(reader)
    }
}

/// The files in the directory of packs.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Sealed packs by number. Of two files with one number, the one whose content matches its name is here; the other
    /// is a stranger.
    pub(crate) sealed: HashMap<u32, PackId>,
    /// Unfinished packs.
    pub(crate) parts: Vec<String>,
    /// Files that are no packs, or share a number.
    pub(crate) strangers: Vec<String>,
}

impl Inventory {
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        let listing = storage.list(DIR).map_err(|error| Error::io("listing", DIR, error))?;
        let mut inventory = Self::default();
        for name in listing.files {
            if let Some(id) = name.strip_suffix(".pack").and_then(own_id) {
                inventory.add(storage, id);
            } else if name.strip_suffix(".part").is_some() {
                inventory.parts.push(name);
            } else {
                inventory.strangers.push(name);
            }
        }
        Ok(inventory)
    }

    fn add(&mut self, storage: &dyn Storage, id: PackId) {
        let Some(other) = self.sealed.insert(id.number, id) else { return };
        let is_itself = |id| PackReader::open(storage, id).is_ok_and(|reader| reader.header().is_ok());
        let stranger = if is_itself(other) && !is_itself(id) { id } else { other };
        self.sealed.insert(id.number, if stranger == id { other } else { id });
        self.strangers.push(format!("{stranger}.pack"));
    }

    pub(crate) fn next_number(&self) -> u32 {
        let parts = self.parts.iter().filter_map(|name| own_id(name.strip_suffix(".part")?));
        self.sealed.keys().copied().chain(parts.map(|id| id.number)).max().map_or(1, |last| last + 1)
    }
}

/// The pack that a file's name, without its suffix, stands for.
fn own_id(stem: &str) -> Option<PackId> {
    stem.parse().ok().filter(|id: &PackId| id.number <= PACK_NUMBER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    #[test]
    fn numbers_never_run_out_whatever_lies_there() {
        let storage = MemStorage::new();
        storage.create_dir(DIR).unwrap();
        let names = ["00000007-deadbeef.pack", "ffffffff-deadbeef.pack", "80000001-00000000.part", "README"];
        for name in names {
            storage.create(&format!("{DIR}/{name}")).unwrap();
        }
        let inventory = Inventory::read(&storage).unwrap();
        assert_eq!(inventory.next_number(), 8);
        assert_eq!(inventory.strangers, ["README", "ffffffff-deadbeef.pack"]);
        assert_eq!(inventory.parts, ["80000001-00000000.part"]);
    }
}
