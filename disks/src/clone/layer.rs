//! A layer: written blocks in a sparse file, each at its own offset in the disk, and the map of these blocks.
//!
//! [`Layer::sync`] makes data permanent before the bits that refer to it. A block that the map has is changed in place,
//! and only in the written bytes, so a torn write affects no other bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use chunkstore::{Error, Result};

use super::BLOCK_BYTES;
use super::files::{Files, LayerFile};
use super::map::{Map, Run};
use crate::poison::lock;

const DATA_SUFFIX: &str = ".data";
const MAP_SUFFIX: &str = ".map";
/// Interval of checking whether a layer is still read.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One layer of a clone.
pub(super) struct Layer {
    number: u32,
    data_path: PathBuf,
    data: Box<dyn LayerFile>,
    map: Map,
    /// Whether something was written that was not synced.
    is_changed: AtomicBool,
    /// Whether a sync failed: it is unknown then what of the layer is permanent.
    has_failed: AtomicBool,
    syncing: Mutex<()>,
}

impl Layer {
    /// Makes an empty layer, replacing files that nothing names.
    ///
    /// # Errors
    /// If its files can't be made.
    pub(super) fn create(files: &dyn Files, dir: &Path, number: u32) -> Result<Self> {
        let [data, map] = paths(dir, number);
        let create = |path: &Path| {
            let created = files.create(path).and_then(|file| file.sync().map(|()| file));
            created.map_err(|error| Error::io("creating", path, error))
        };
        let created = create(&data).and_then(|data| Ok([data, create(&map)?])).and_then(|created| {
            // Before any metadata names them.
            files.sync_dir(dir).map_err(|error| Error::io("syncing the directory", dir, error))?;
            Self::of_files(data.clone(), number, created).map_err(|error| Error::io("reading", &map, error))
        });
        created.inspect_err(|_| remove(files, dir, number))
    }

    /// Opens a layer. Makes the writes of a killed process permanent: no later call would sync them.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its map is, or if a file is missing.
    pub(super) fn open(files: &dyn Files, dir: &Path, number: u32) -> Result<Self> {
        let [data, map] = paths(dir, number);
        let opened = [open(files, &data)?, open(files, &map)?];
        opened.iter().try_for_each(|file| file.sync()).map_err(|error| Error::io("syncing", &data, error))?;
        Self::of_files(data, number, opened).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::damaged(map.display().to_string(), error.to_string()),
            _ => Error::io("reading", map, error),
        })
    }

    /// A layer of a data file and a map file.
    pub(super) fn of_files(data_path: PathBuf, number: u32, [data, map]: [Box<dyn LayerFile>; 2]) -> io::Result<Self> {
        let map = Map::open(map)?;
        let [is_changed, has_failed] = [false, false].map(AtomicBool::new);
        Ok(Self { number, data_path, data, map, is_changed, has_failed, syncing: Mutex::default() })
    }

    /// Its number, of which its files have their names.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether it has no block.
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The blocks from `block` on that it has, or has not; `end` at most.
    pub(super) fn run(&self, block: u64, end: u64) -> Run {
        self.map.run(block, end)
    }

    /// Whether it has this block.
    pub(super) fn has(&self, block: u64) -> bool {
        self.run(block, block + 1).is_there
    }

    /// Fills `buf` from blocks that it has.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.data.read(buf, offset).map_err(self.failed("reading"))
    }

    /// Where there may be something else than zeros in blocks that it has.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.data.next_data(offset).map_err(self.failed("reading"))
    }

    /// Writes bytes. From then on it has all blocks that they touch; of those that it has not yet, the caller gives
    /// every byte.
    ///
    /// # Errors
    /// [`Error::OutOfSpace`]: then blocks that it has not yet stay so, and others may be written in part.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check()?;
        let blocks = blocks_of(&(offset..offset + bytes.len() as u64));
        // Now, so that it is the write that fails on a full disk, and not a later sync.
        self.map.reserve(&blocks).map_err(self.failed("writing"))?;
        let written = self.data.write(bytes, offset);
        self.is_changed.store(true, Ordering::SeqCst);
        written.map_err(self.failed("writing"))?;
        self.map.set(&blocks);
        Ok(())
    }

    /// Makes a range of whole blocks read as zeros and frees its room. From then on it has the blocks of `shadowed`,
    /// which lie in the range; the caller leaves out those below which there is nothing.
    ///
    /// # Errors
    /// As [`Layer::write`].
    pub(super) fn discard(&self, range: Range<u64>, shadowed: &[Range<u64>]) -> Result<()> {
        self.check()?;
        shadowed.iter().try_for_each(|blocks| self.map.reserve(blocks)).map_err(self.failed("writing"))?;
        let punched = self.data.punch(range);
        self.is_changed.store(true, Ordering::SeqCst);
        punched.map_err(self.failed("freeing room in"))?;
        for blocks in shadowed {
            self.map.set(blocks);
        }
        Ok(())
    }

    /// Cuts off what is beyond: it reads as zeros from then on.
    ///
    /// # Errors
    /// Every later call fails, too: what is beyond would show when the disk grows.
    pub(super) fn cut(&self, size_bytes: u64) -> Result<()> {
        self.check()?;
        let cut = self.data.cut(size_bytes);
        self.is_changed.store(true, Ordering::SeqCst);
        cut.map_err(|error| self.broken("shortening", error))
    }

    /// Makes all that was written before permanent: first the data, then the bits that tell of it. The bits are taken
    /// before, so none tells of data that was written meanwhile.
    ///
    /// # Errors
    /// [`Error::OutOfSpace`] if there is no room for the map: what could not be written is kept for the next sync.
    /// After any other failure every later call fails.
    pub(super) fn sync(&self) -> Result<()> {
        let _one = lock(&self.syncing);
        self.check()?;
        let taken = self.map.take_dirty();
        if self.is_changed.swap(false, Ordering::SeqCst) || !taken.is_empty() {
            self.data.sync().map_err(|error| self.broken("syncing", error))?;
        }
        if taken.is_empty() {
            return Ok(());
        }
        match self.map.write(&taken) {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                self.map.put_back(&taken);
                Err(self.failed("writing")(error))
            }
            Err(error) => Err(self.broken("writing", error)),
            Ok(()) => self.map.sync().map_err(|error| self.broken("syncing", error)),
        }
    }

    /// Bytes that its data takes on the disk.
    pub(super) fn stored_bytes(&self) -> Result<u64> {
        self.data.stored_bytes().map_err(self.failed("reading"))
    }

    /// Fails once a sync has failed.
    pub(super) fn check(&self) -> Result<()> {
        if self.has_failed.load(Ordering::SeqCst) {
            let reason = io::Error::other("an earlier sync failed, so it is not known what is durable; open it again");
            return Err(Error::io("writing", &self.data_path, reason));
        }
        Ok(())
    }

    /// Stops all writes and syncs.
    pub(super) fn give_up(&self) {
        self.has_failed.store(true, Ordering::SeqCst);
    }

    fn broken(&self, action: &'static str, error: io::Error) -> Error {
        self.give_up();
        // A full disk that shows only now has lost what was written.
        Error::Io { action, path: self.data_path.clone(), source: error }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::io(action, &self.data_path, error)
    }
}

/// After a failed sync, memory may have what the disk has not, and a later sync would not say so.
impl Drop for Layer {
    fn drop(&mut self) {
        if self.check().is_err() {
            self.data.forget();
            self.map.forget();
        }
    }
}

/// The blocks that a range touches.
pub(super) fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}

/// The files of a layer: data and map.
pub(super) fn paths(dir: &Path, number: u32) -> [PathBuf; 2] {
    [DATA_SUFFIX, MAP_SUFFIX].map(|suffix| dir.join(format!("{number}{suffix}")))
}

fn open(files: &dyn Files, path: &Path) -> Result<Box<dyn LayerFile>> {
    match files.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::damaged(path.display().to_string(), "the file is missing"))
        }
        opened => opened.map_err(|error| Error::io("opening", path, error)),
    }
}

/// Removes the files of a layer.
pub(super) fn remove(files: &dyn Files, dir: &Path, number: u32) {
    for path in paths(dir, number) {
        if let Err(error) = files.remove(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("removing {}: {error}; it is removed when the clone is next opened", path.display());
        }
    }
}

/// The layers that have files but are not in `named`: commits have dropped those below the first of them, and
/// others were made for something that was cut short.
pub(super) fn unnamed(dir: &Path, named: &[u32]) -> Result<BTreeSet<u32>> {
    let failed = |error| Error::io("listing", dir, error);
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        numbers.extend(number_of(&name).filter(|number| !named.contains(number)));
    }
    Ok(numbers)
}

/// The layer that a file of this name belongs to.
pub(super) fn number_of(file: &str) -> Option<u32> {
    let digits = file.strip_suffix(DATA_SUFFIX).or_else(|| file.strip_suffix(MAP_SUFFIX))?;
    // Only as it is written: a sign, or zeros before it, would make it another file.
    digits.parse().ok().filter(|number: &u32| number.to_string() == digits)
}

/// Removes the files of layers that commits have dropped, on a thread of its own: a fragmented file may take
/// seconds to free, more where each piece is discarded from the device. `layers` are those that may still be read.
pub(super) fn remove_later(files: &Arc<dyn Files>, dir: &Path, numbers: Vec<u32>, layers: Vec<Arc<Layer>>) {
    // By descriptor: another clone may have the directory's name by then.
    let Ok(open) = File::open(dir) else { return };
    let files = Arc::clone(files);
    thread::spawn(move || {
        let dir = Path::new("/proc/self/fd").join(open.as_raw_fd().to_string());
        for number in numbers {
            remove(&*files, &dir, number);
        }
        // The last close frees the file: it must not happen in a reader or writer.
        while layers.iter().any(|layer| Arc::strong_count(layer) > 1) {
            thread::sleep(LOOK_EVERY);
        }
    });
}

/// Bytes that the data of a layer takes on the disk, without opening it; none if a commit has removed it just now.
pub(super) fn stored_bytes(dir: &Path, number: u32) -> Result<u64> {
    let [data, _] = paths(dir, number);
    match File::open(&data).and_then(|file| file.stored_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        stored => stored.map_err(|error| Error::io("reading", &data, error)),
    }
}

#[cfg(test)]
mod tests;
