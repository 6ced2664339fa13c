//! Creates, discards and rolls back clones. After each step, a repeated command can finish the rest.
//!
//! A clone is created as `.NAME.new`, then its snapshot is held, then the directory is renamed. A discard renames it to
//! `.NAME.gone`, then releases its snapshot and removes its files. So each hold that is no longer needed is named by a
//! clone or by a directory that [`Clones::tidy`] finds.

use std::fs;
use std::io;
use std::path::Path;

use chunkstore::catalog::{ImageName, Snapshot, SnapshotName};
use chunkstore::store::Store;
use chunkstore::{Error, Result};
use jiff::Timestamp;

use super::commit::release_all;
use super::layer::{self, Layer};
use super::lock::{self, CloneLock};
use super::metadata::{CloneMetadata, GONE_SUFFIX, LayerMetadata, NEW_SUFFIX, begun};
use super::{CloneInfo, Clones, checked_name, hold_reason};

impl Clones {
    /// Creates a clone of a snapshot, and holds the snapshot.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it can't have this name; [`Error::Refused`] if there is such a clone; [`Error::NotFound`]
    /// if there is no such snapshot.
    pub fn create(&self, name: &str, snapshot: &SnapshotName, now: Timestamp) -> Result<CloneInfo> {
        let (publisher, name) = (self.publisher()?, checked_name(name)?);
        self.make_dir(&self.dir)?;
        let _changing = lock::exclude_others(&self.dir)?;
        self.tidy()?;
        let dir = self.dir_of(&name);
        if dir.exists() {
            return Err(Error::refused(format!("clone {name} exists already")));
        }
        let metadata = CloneMetadata::new(&name, &self.read_snapshot(snapshot)?, now);
        let aside = self.dir.join(format!(".{name}{NEW_SUFFIX}"));
        // From here on `tidy` finds any hold.
        self.make_dir(&aside)?;
        Layer::create(&*self.files, &aside, 1)?;
        metadata.store(&*self.files, &aside).map_err(|failed| failed.error)?;
        let held = publisher.hold(snapshot, &hold_reason(&name))?;
        if held.entry_id() != metadata.entry {
            return Err(Error::not_found(format!("snapshot {snapshot}, which was replaced just now,")));
        }
        self.files.rename(&aside, &dir).map_err(|error| Error::io("renaming", &aside, error))?;
        self.sync_dir(&self.dir)?;
        self.info(name.as_ref())
    }

    /// Discards a clone and its written blocks, and releases its snapshot. Also finishes interrupted operations.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Busy`] if it is open.
    pub fn discard(&self, name: &str) -> Result<()> {
        let name = self.known_name(name)?;
        let missing = || Error::not_found(format!("clone {name}"));
        if !self.dir.exists() {
            return Err(missing());
        }
        let _changing = lock::exclude_others(&self.dir)?;
        let tidied = self.tidy()?;
        let dir = self.dir_of(&name);
        if !dir.exists() {
            return if tidied.contains(&name) { Ok(()) } else { Err(missing()) };
        }
        let _lock = CloneLock::acquire(&dir)?;
        let gone = self.dir.join(format!(".{name}{GONE_SUFFIX}"));
        self.files.rename(&dir, &gone).map_err(|error| Error::io("renaming", &dir, error))?;
        self.sync_dir(&self.dir)?;
        self.clear(&name, &gone)
    }

    /// Discards all writes to a clone since its snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Busy`] if it is open.
    pub fn rollback(&self, name: &str) -> Result<CloneInfo> {
        let (publisher, name) = (self.publisher()?, self.known_name(name)?);
        let dir = self.dir_of(&name);
        let _lock = CloneLock::acquire(&dir)?;
        let mut metadata = CloneMetadata::read(&dir)?;
        let snapshot = self.read_snapshot(&metadata.snapshot)?;
        if snapshot.entry_id() != metadata.entry {
            return Err(super::replaced(&metadata));
        }
        release_all(publisher, &name, &metadata.to_release())?;
        metadata.releases.clear();
        let number = metadata.next_layer();
        Layer::create(&*self.files, &dir, number)?;
        metadata.layers = vec![LayerMetadata::new(number)];
        metadata.size_bytes = snapshot.entry().virtual_bytes;
        metadata.base_bytes_max = metadata.size_bytes;
        metadata.store(&*self.files, &dir).map_err(|failed| failed.error)?;
        for unnamed in layer::unnamed(&dir, &[number])? {
            layer::remove(&*self.files, &dir, unnamed);
        }
        self.info(name.as_ref())
    }

    /// Finishes interrupted creations and discards, and returns their names. The caller holds the lock.
    fn tidy(&self) -> Result<Vec<ImageName>> {
        let failed = |error| Error::io("listing", &self.dir, error);
        let mut tidied = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if let Some(name) = begun(&file) {
                self.clear(&name, &self.dir.join(&file))?;
                tidied.push(name);
            }
        }
        Ok(tidied)
    }

    /// Releases the snapshots of a clone that no longer or not yet exists, and removes its files.
    fn clear(&self, name: &ImageName, dir: &Path) -> Result<()> {
        let publisher = self.publisher()?;
        let held = match CloneMetadata::read(dir) {
            Ok(metadata) => [vec![metadata.snapshot], metadata.releases].concat(),
            // It never existed, so nothing was held.
            Err(Error::NotFound { .. }) => Vec::new(),
            Err(error) => {
                tracing::warn!("{error}; looking for its snapshot");
                self.held_for(name)?
            }
        };
        release_all(publisher, name, &held)?;
        match self.remove_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", dir, error)),
            _ => Ok(()),
        }
    }

    /// Removes a clone's directory. There are no others in it.
    fn remove_all(&self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            match self.files.remove(&entry?.path()) {
                // The thread of a commit removes dropped layers, too.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.files.remove_dir(dir)
    }

    /// Creates a directory durably, accessible to its user only.
    fn make_dir(&self, dir: &Path) -> Result<()> {
        match self.files.make_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("creating", dir, error)),
            _ => self.sync_dir(dir.parent().expect("it lies in a store")),
        }
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.files.sync_dir(dir).map_err(|error| Error::io("syncing the directory", dir, error))
    }

    /// All snapshots that are held for a clone.
    fn held_for(&self, name: &ImageName) -> Result<Vec<SnapshotName>> {
        let reason = hold_reason(name);
        let listed = Store::open_catalog(&self.store_dir)?.1.list(None)?;
        let is_held = |snapshot: &Result<Snapshot>| snapshot.as_ref().is_ok_and(|it| it.state.holds.contains(&reason));
        Ok(listed.into_iter().filter(|it| is_held(&it.snapshot)).map(|it| it.name).collect())
    }

    fn read_snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        Store::open_catalog(&self.store_dir)?.1.read(name)
    }
}
