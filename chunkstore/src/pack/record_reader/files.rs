//! Open packs of a store that another process owns.
//!
//! gc unlinks packs, and an open descriptor would keep their bytes on disk. So descriptors are bounded, and
//! [`PackFiles::close_unused`], called now and then, closes those that are unlinked or were not used lately.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::format::PackId;
use crate::pack::PackReader;
use crate::storage::LocalDir;

/// Most packs that are open at a time.
const OPEN_MAX: usize = 256;
/// Most pack names kept; others are asked for again.
const NAMES_MAX: usize = 1 << 16;

/// The pack files of a store's directory, opened for reading as they are needed.
pub struct PackFiles {
    storage: LocalDir,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    names: HashMap<u32, PackId>,
    readers: HashMap<u32, Reader>,
}

struct Reader {
    pack: Arc<PackReader>,
    is_used: bool,
}

impl PackFiles {
    /// The packs of the store in `dir`; opens nothing yet.
    pub fn new(dir: &Path) -> Self {
        Self { storage: LocalDir::new(dir), open: Mutex::default() }
    }

    /// Adds full names of packs; locations hold only numbers.
    pub fn note(&self, ids: impl Iterator<Item = PackId>) {
        let mut open = self.open();
        for id in ids {
            if open.names.get(&id.number) != Some(&id) {
                open.name(id);
            }
        }
    }

    /// A reader of a pack whose name is known.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its file is missing; others if it can't be opened.
    pub fn reader(&self, number: u32) -> Result<Arc<PackReader>> {
        let id = {
            let mut open = self.open();
            if let Some(reader) = open.readers.get_mut(&number) {
                reader.is_used = true;
                return Ok(Arc::clone(&reader.pack));
            }
            open.names.get(&number).copied()
        };
        let id = id.ok_or_else(|| Error::damaged(format!("pack {number}"), "its name is not known"))?;
        let pack = Arc::new(PackReader::open(&self.storage, id)?);
        let mut open = self.open();
        if open.readers.len() >= OPEN_MAX {
            open.readers.clear();
        }
        if open.names.get(&number) == Some(&id) {
            open.readers.insert(number, Reader { pack: Arc::clone(&pack), is_used: true });
        }
        Ok(pack)
    }

    /// Where the files are.
    pub fn storage(&self) -> &LocalDir {
        &self.storage
    }

    /// Closes the packs that were not used since this was last called, and those that were removed.
    pub fn close_unused(&self) {
        self.open().readers.retain(|_, reader| std::mem::take(&mut reader.is_used) && !reader.pack.is_removed());
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }
}

impl Open {
    fn name(&mut self, id: PackId) {
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(id.number, id);
        // It belongs to another pack of this number.
        self.readers.remove(&id.number);
    }
}

#[cfg(test)]
mod tests;
