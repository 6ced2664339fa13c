//! The catalog of snapshots. Ground truth: one small file for each snapshot.
//!
//! `catalog/IMAGE/TIME.snap` is a snapshot; with `.tmp` appended, a temporary file; `TIME.ID.removed`, with the first
//! half of the entry's id, is a tombstone: packs repeat every entry, and the tombstone distinguishes a removed snapshot
//! from one whose catalog file was lost. Files are only replaced whole. Reading needs no lock and is safe while another
//! process writes; only the store's owner writes, one change at a time. May import `format` and `storage`.

use std::io;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::limits::CATALOG_FILE_BYTES_MAX;
use crate::storage::quarantine;
use crate::storage::whole::{self, ASIDE_SUFFIX};
use crate::storage::{Listing, Storage};
use crate::truth_lock::{TruthGuard, TruthMutex};

pub mod boot_order;
mod entry;
pub mod label;
pub(crate) mod lease;
mod name;
pub mod retention;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod tombstone;

pub use entry::{DEFAULT_HOLD, Entry, Extra, IngestReport, Presence, State};
pub use lease::Lease;
pub use name::{At, ImageName, Selector, SnapshotName, SnapshotTime};
pub use snapshot::Snapshot;
pub use tombstone::{Announced, Tombstone};
use tombstone::{Announcements, tombstone};

/// Directory of a store.
pub(crate) const DIR: &str = "catalog";
const SNAPSHOT_SUFFIX: &str = ".snap";
/// Most images that an error message lists.
const IMAGES_SHOWN: usize = 8;

/// The snapshots of a store.
#[derive(Clone)]
pub struct Catalog {
    storage: Arc<dyn Storage>,
    /// Held by every change.
    changes: Arc<TruthMutex<Announcements>>,
}

/// A line of a listing. Damaged snapshots are listed too, and hide no others.
#[derive(Debug)]
pub struct Listed {
    /// By the name of its file.
    pub name: SnapshotName,
    /// The file's content, or why it can't be read.
    pub snapshot: Result<Snapshot>,
}

/// The kind of a file in an image's directory, by its name.
enum FileKind {
    Snapshot(SnapshotTime),
    Aside,
    Tombstone(SnapshotTime, String),
    Stranger,
}

impl FileKind {
    fn of(file: &str) -> Self {
        let snapshot_time = |file: &str| SnapshotTime::from_compact(file.strip_suffix(SNAPSHOT_SUFFIX)?);
        if let Some(time) = snapshot_time(file) {
            return Self::Snapshot(time);
        }
        let is_aside = |file: &str| snapshot_time(file).is_some() || tombstone(file).is_some();
        if file.strip_suffix(ASIDE_SUFFIX).is_some_and(is_aside) {
            return Self::Aside;
        }
        tombstone(file).map_or(Self::Stranger, |(time, prefix)| Self::Tombstone(time, prefix))
    }
}

fn image_dir(image: &ImageName) -> String {
    format!("{DIR}/{image}")
}

fn path(name: &SnapshotName) -> String {
    format!("{}/{}{SNAPSHOT_SUFFIX}", image_dir(&name.image), name.time)
}

/// Reading.
impl Catalog {
    /// Makes an empty catalog in a new store, durably.
    pub fn create(storage: Arc<dyn Storage>) -> Result<Self> {
        storage.create_dir(DIR).map_err(|error| Error::io("creating", DIR, error))?;
        Ok(Self::new(storage))
    }

    fn new(storage: Arc<dyn Storage>) -> Self {
        let changes = Arc::new(TruthMutex::new("the catalog", Announcements::default()));
        Self { storage, changes }
    }

    /// Opens a store's catalog.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is none: an empty catalog in its place would let gc delete everything.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        match storage.list(DIR) {
            Ok(_) => Ok(Self::new(storage)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::damaged(DIR, "the directory is missing; `vmstore repair` mends it"))
            }
            Err(error) => Err(Error::io("listing", DIR, error)),
        }
    }

    /// The images that have snapshots, sorted.
    pub fn images(&self) -> Result<Vec<ImageName>> {
        let mut images = Vec::new();
        for image in self.image_dirs()? {
            if !self.times(&image)?.is_empty() {
                images.push(image);
            }
        }
        Ok(images)
    }

    /// The times of an image's snapshots, the oldest first; none if there is no such image.
    pub fn times(&self, image: &ImageName) -> Result<Vec<SnapshotTime>> {
        let is_snapshot = |file: &String| match FileKind::of(file) {
            FileKind::Snapshot(time) => Some(time),
            _ => None,
        };
        let mut times: Vec<_> = self.listing(&image_dir(image))?.files.iter().filter_map(is_snapshot).collect();
        times.sort_unstable();
        Ok(times)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] naming the entry; [`Error::Refused`] if a newer version made it.
    pub fn read(&self, name: &SnapshotName) -> Result<Snapshot> {
        let file =
            whole::read_whole(&*self.storage, &path(name), CATALOG_FILE_BYTES_MAX).map_err(|error| match error {
                Error::Damaged { detail, .. } => Error::damaged(format!("catalog entry {name}"), detail),
                other => other,
            })?;
        Snapshot::decode(name, &file.ok_or_else(|| Error::not_found(format!("snapshot {name}")))?)
    }

    /// Finds the selected snapshot.
    ///
    /// # Errors
    /// As [`Selector::resolve`]; for an unknown image the message names the known ones.
    pub fn resolve(&self, selector: &Selector) -> Result<SnapshotName> {
        let times = self.times(&selector.image)?;
        if times.is_empty() {
            return Err(Error::not_found(format!("image {} ({})", selector.image, self.images_shown()?)));
        }
        Ok(SnapshotName::new(selector.image.clone(), selector.resolve(&times)?))
    }

    fn images_shown(&self) -> Result<String> {
        let images = self.images()?;
        let shown: Vec<&str> = images.iter().take(IMAGES_SHOWN).map(AsRef::as_ref).collect();
        let more = if images.len() > shown.len() { ", …" } else { "" };
        Ok(match images.len() {
            0 => "the store has none yet".to_owned(),
            _ => format!("the store has {}{more}", shown.join(", ")),
        })
    }

    /// All snapshots, or an image's, sorted by image and time.
    pub fn list(&self, image: Option<&ImageName>) -> Result<Vec<Listed>> {
        let images = image.map_or_else(|| self.image_dirs(), |image| Ok(vec![image.clone()]))?;
        let mut listed = Vec::new();
        for image in images {
            for time in self.times(&image)? {
                let name = SnapshotName::new(image.clone(), time);
                match self.read(&name) {
                    // Removed since its directory was listed.
                    Err(Error::NotFound { .. }) => {}
                    snapshot => listed.push(Listed { name, snapshot }),
                }
            }
        }
        Ok(listed)
    }

    /// All snapshots and all tombstones, with no change of the owner's in between.
    pub(crate) fn list_with_tombstones(&self) -> Result<(Vec<Listed>, Vec<Tombstone>)> {
        let _change = self.change();
        Ok((self.list(None)?, self.tombstones()?))
    }

    /// All damage of the catalog's files, each named.
    pub fn check(&self) -> Vec<Error> {
        match self.list(None) {
            Ok(listed) => listed.into_iter().filter_map(|listed| listed.snapshot.err()).collect(),
            Err(error) => vec![error],
        }
    }

    /// The tombstones, sorted.
    pub fn tombstones(&self) -> Result<Vec<Tombstone>> {
        let mut tombstones = Vec::new();
        for image in self.image_dirs()? {
            for file in self.listing(&image_dir(&image))?.files {
                if let FileKind::Tombstone(time, entry_prefix) = FileKind::of(&file) {
                    tombstones.push(Tombstone { name: SnapshotName::new(image.clone(), time), entry_prefix });
                }
            }
        }
        tombstones.sort_unstable();
        Ok(tombstones)
    }

    /// Paths of files and directories that do not belong to the catalog; they are left alone.
    pub fn strangers(&self) -> Result<Vec<String>> {
        let top = self.listing(DIR)?;
        let is_image = |dir: &&String| dir.parse::<ImageName>().is_ok();
        let strange_dirs = top.dirs.iter().filter(|dir| !is_image(dir));
        let mut strangers: Vec<_> = top.files.iter().chain(strange_dirs).map(|name| format!("{DIR}/{name}")).collect();
        for dir in top.dirs.iter().filter(is_image).map(|dir| format!("{DIR}/{dir}")) {
            let Listing { mut files, dirs } = self.listing(&dir)?;
            files.retain(|file| matches!(FileKind::of(file), FileKind::Stranger));
            strangers.extend(files.iter().chain(&dirs).map(|name| format!("{dir}/{name}")));
        }
        Ok(strangers)
    }

    /// Images that have a directory, which may be empty.
    fn image_dirs(&self) -> Result<Vec<ImageName>> {
        Ok(self.listing(DIR)?.dirs.iter().filter_map(|dir| dir.parse().ok()).collect())
    }

    /// The content of a directory; empty if it does not exist.
    fn listing(&self, dir: &str) -> Result<Listing> {
        match self.storage.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Listing::default()),
            listing => listing.map_err(|error| Error::io("listing", dir, error)),
        }
    }
}

/// Writing, by the store's owner only.
impl Catalog {
    /// Writes a tombstone for a snapshot that is about to be published, durably, before any pack repeats its entry. If
    /// publishing is interrupted, the entry in the pack then does not look like a snapshot whose catalog file was lost.
    /// [`Catalog::publish`] removes the tombstone; nothing else does while the result lives.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a snapshot of this name.
    pub fn announce(&self, snapshot: &Snapshot) -> Result<Announced> {
        let mut announcements = self.change();
        let name = snapshot.name();
        let file = checked_encoding(snapshot)?;
        self.refuse_duplicate(&name)?;
        self.create_image_dir(&name.image)?;
        let tombstone = Tombstone::of(snapshot);
        whole::replace_whole(&*self.storage, &tombstone.path(), &file)?;
        Ok(Announced::add(&self.changes, &mut announcements, tombstone))
    }

    /// Adds a snapshot, durably and atomically. Everything that it refers to must already be durable.
    ///
    /// Returns the bytes of its file.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a snapshot of this name, damaged ones included. If only the last sync failed, the
    /// snapshot is visible, but may not survive a power cut.
    pub fn publish(&self, snapshot: &Snapshot) -> Result<u64> {
        let _change = self.change();
        let name = snapshot.name();
        let file = checked_encoding(snapshot)?;
        if self.refuse_duplicate(&name)?.is_empty() {
            self.create_image_dir(&name.image)?;
        }
        // Via its tombstone, so that one of the two always exists, whichever renames reached the disk.
        let tombstone = Tombstone::of(snapshot).path();
        whole::rename_into_place(&*self.storage, &tombstone, &file)?;
        self.storage.rename(&tombstone, &path(&name)).map_err(|error| Error::io("renaming", &tombstone, error))?;
        self.sync_image(&name.image)?;
        Ok(file.len() as u64)
    }

    /// The snapshot of this name, if it is this one and partial.
    ///
    /// # Errors
    /// As [`Catalog::read`], except [`Error::NotFound`].
    pub(crate) fn partial(&self, snapshot: &Snapshot) -> Result<Option<Snapshot>> {
        match self.read(&snapshot.name()) {
            Ok(there) => Ok(Some(there).filter(|there| there.state.partial && there.entry_id() == snapshot.entry_id())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Records durably that a snapshot is no longer partial; all of it must be durable. Returns the changed snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it was removed; [`Error::Refused`] if there is another of its name.
    pub(crate) fn complete(&self, snapshot: &Snapshot) -> Result<Snapshot> {
        let _change = self.change();
        let name = snapshot.name();
        let mut there = self.read(&name)?;
        if there.entry_id() != snapshot.entry_id() {
            return Err(Error::refused(format!("snapshot {name} is another one with the same name")));
        }
        (there.state.partial, there.state.presence) = (false, None);
        self.replace(&there)?;
        Ok(there)
    }

    /// Makes a changed state permanent, atomically. Also replaces a damaged file by the entry from a pack.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such file; [`Error::Refused`] if it is a snapshot with another entry.
    pub fn rewrite(&self, snapshot: &Snapshot) -> Result<()> {
        let _change = self.change();
        self.replace(snapshot)
    }

    /// Reads, changes and rewrites a snapshot's state under one lock, so that no change is lost. Writes nothing if
    /// nothing changed.
    ///
    /// # Errors
    /// As [`Catalog::read`] and [`Catalog::rewrite`]; what `change` returns; then nothing is changed.
    pub fn update_state<T>(&self, name: &SnapshotName, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let _change = self.change();
        let mut snapshot = self.read(name)?;
        let before = snapshot.state.clone();
        let result = change(&mut snapshot.state)?;
        if snapshot.state != before {
            self.replace(&snapshot)?;
        }
        Ok(result)
    }

    fn replace(&self, snapshot: &Snapshot) -> Result<()> {
        let name = snapshot.name();
        match self.read(&name) {
            Ok(there) if there.entry_id() == snapshot.entry_id() => {}
            Ok(_) => return Err(Error::refused(format!("snapshot {name} is another one with the same name"))),
            Err(Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        whole::replace_whole(&*self.storage, &path(&name), &checked_encoding(snapshot)?)
    }

    /// Removes a snapshot, durably, and leaves a tombstone. Its chunks stay until gc.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is held; [`Error::NotFound`]; [`Error::Damaged`] if it can't be read, because it may be
    /// held. If only the last sync failed, it is gone, but may return after a power cut; see [`Catalog::sync`].
    pub fn remove(&self, name: &SnapshotName) -> Result<()> {
        let _change = self.change();
        let snapshot = self.read(name)?;
        if snapshot.state.is_held() {
            let holds = snapshot.state.holds.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::refused(format!("snapshot {name} is held ({holds}); release it first")));
        }
        let path = path(name);
        let renamed = self.storage.rename(&path, &Tombstone::of(&snapshot).path());
        renamed.map_err(|error| Error::io("renaming", &path, error))?;
        self.sync_image(&name.image)
    }

    /// Writes a tombstone for the snapshot with this entry, durably, when another snapshot has its name.
    pub(crate) fn bury(&self, snapshot: &Snapshot) -> Result<()> {
        let _change = self.change();
        whole::replace_whole(&*self.storage, &Tombstone::of(snapshot).path(), &snapshot.encode())
    }

    /// Moves a damaged file that nothing replaces to `quarantine/`, durably. Returns its new path.
    pub(crate) fn put_away(&self, name: &SnapshotName) -> Result<String> {
        let _change = self.change();
        quarantine::put_away(&*self.storage, &path(name))
    }

    /// Replaces a damaged file by the entry from a pack, after copying it to `quarantine/`. Returns the path of the
    /// copy, if any of the file could be read.
    pub(crate) fn restore(&self, snapshot: &Snapshot) -> Result<Option<String>> {
        let _change = self.change();
        let copy = quarantine::keep_copy(&*self.storage, &path(&snapshot.name()), CATALOG_FILE_BYTES_MAX)?;
        self.replace(snapshot)?;
        // A restored snapshot must not count as removed if its file is lost later.
        self.remove_file(&Tombstone::of(snapshot).path())?;
        self.sync_image(&snapshot.entry().image)?;
        Ok(copy)
    }

    /// Removes a tombstone, unless a pack may still repeat the entry: `is_repeated` runs while no snapshot can be
    /// announced. The tombstone of a snapshot that is being published stays.
    pub(crate) fn clear_tombstone(
        &self,
        tombstone: &Tombstone,
        is_repeated: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        let announcements = self.change();
        if announcements.has(tombstone) || is_repeated()? {
            return Ok(());
        }
        self.remove_file(&tombstone.path())?;
        self.sync_image(&tombstone.name.image)
    }

    /// Removes the temporary files of interrupted writers. Returns their number.
    pub fn clean(&self) -> Result<usize> {
        let mut removed = 0;
        for dir in self.image_dirs()?.iter().map(image_dir) {
            for file in self.listing(&dir)?.files {
                if matches!(FileKind::of(&file), FileKind::Aside) {
                    self.remove_file(&format!("{dir}/{file}"))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Makes the visible catalog permanent. gc calls this before it deletes: after a writer was killed between a
    /// removal and its sync, a power cut could bring the snapshot back without its chunks.
    pub fn sync(&self) -> Result<()> {
        self.image_dirs()?.iter().try_for_each(|image| self.sync_image(image))
    }

    /// Excludes all other changes.
    fn change(&self) -> TruthGuard<'_, Announcements> {
        self.changes.lock()
    }

    /// The times of the image's snapshots; refuses a name that one of them has.
    fn refuse_duplicate(&self, name: &SnapshotName) -> Result<Vec<SnapshotTime>> {
        let times = self.times(&name.image)?;
        if times.contains(&name.time) {
            return Err(Error::refused(format!("snapshot {name} is there already")));
        }
        Ok(times)
    }

    fn create_image_dir(&self, image: &ImageName) -> Result<()> {
        let dir = image_dir(image);
        self.storage.create_dir(&dir).map_err(|error| Error::io("creating", self.storage.locate(&dir), error))?;
        // A writer may have created the directory and been killed before its sync.
        self.storage.sync_dir(DIR).map_err(|error| Error::io("syncing the directory", DIR, error))
    }

    fn sync_image(&self, image: &ImageName) -> Result<()> {
        let dir = image_dir(image);
        self.storage.sync_dir(&dir).map_err(|error| Error::io("syncing the directory", &dir, error))
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        match self.storage.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path, error)),
            _ => Ok(()),
        }
    }
}

/// The bytes of a snapshot's file, checked by decoding them.
fn checked_encoding(snapshot: &Snapshot) -> Result<Vec<u8>> {
    let name = snapshot.name();
    let file = snapshot.encode();
    Snapshot::decode(&name, &file)
        .map_err(|error| Error::invalid(format!("snapshot {name} can't be stored: {error}")))?;
    Ok(file)
}
