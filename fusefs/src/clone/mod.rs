//! Writable clones: an overlay of written blocks over a snapshot.

mod disk;

use std::path::PathBuf;
use std::sync::Arc;

use chunkstore::{Error, Result};

pub use self::disk::CloneDisk;
use crate::names::Names;
use crate::pool::Pool;

/// The clones of a store, each a directory under `clones/`.
pub struct Clones {
    dir: PathBuf,
}

impl Clones {
    /// Those of the store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Their names, in order.
    ///
    /// # Errors
    /// If they can't be listed.
    pub fn list(&self) -> Result<Vec<String>> {
        let _ = &self.dir;
        Ok(Vec::new())
    }

    /// Opens a clone for reading and writing, for this process alone.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Busy`] if another process has it open.
    pub fn open(&self, name: &str, pool: &Arc<Pool>, names: &dyn Names) -> Result<CloneDisk> {
        let _ = (pool, names);
        Err(Error::not_found(format!("clone {name}")))
    }
}
