//! Storage in memory, for tests: it fails on demand, and computes what a power cut would leave.
//!
//! It keeps two views of every directory: the visible one, and the one made durable by syncs. Content becomes durable
//! by syncing the file, a name by syncing its directory. It is meant for small stores, not for speed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{AppendFile, JoinedFile, Listing, ReadFile, Storage};

/// Files in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemStorage {
    disk: Arc<Mutex<Disk>>,
}

type File = Arc<Mutex<Content>>;
type Names = BTreeMap<String, File>;

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    durable_bytes: usize,
}

impl Content {
    fn write_at(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
    }
}

/// A directory; both views name the same files.
#[derive(Default)]
struct Dir {
    seen: Names,
    durable: Names,
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// With an error of this kind.
    Kind(io::ErrorKind),
    /// With this errno.
    Errno(i32),
    /// A read finds the file's end too early; other calls don't fail.
    ShortRead,
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Kind(kind) => kind.into(),
            Self::Errno(number) => io::Error::from_raw_os_error(number),
            Self::ShortRead => io::ErrorKind::UnexpectedEof.into(),
        }
    }
}

struct Fault {
    /// Whether `calls` count only those that change something.
    of_changes: bool,
    calls: RangeInclusive<u64>,
    failure: Failure,
}

/// The kind of a call, for counting faults.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Change,
    Read,
    /// Opening, and asking what is there.
    Look,
}

struct Disk {
    dirs: BTreeMap<String, Dir>,
    changes: u64,
    accesses: u64,
    faults: Vec<Fault>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { dirs: BTreeMap::from([(String::new(), Dir::default())]), changes: 0, accesses: 0, faults: Vec::new() }
    }
}

impl MemStorage {
    /// Empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many calls that change something were made: creations, appends, syncs, renames, removals, directories.
    pub fn calls(&self) -> u64 {
        self.disk.lock().changes
    }

    /// How many calls were made, those that only read or ask among them.
    pub fn accesses(&self) -> u64 {
        self.disk.lock().accesses
    }

    /// Makes one changing call fail, counted as by [`MemStorage::calls`], from 1 at the storage's creation.
    ///
    /// A failed append or write leaves half of its bytes; any other failed call changes nothing.
    pub fn fail_at(&self, nth_call: u64, kind: io::ErrorKind) {
        self.add_fault(true, nth_call..=nth_call, Failure::Kind(kind));
    }

    /// Makes this changing call and all after it fail, as for a process that is killed there.
    pub fn fail_from(&self, nth_call: u64, kind: io::ErrorKind) {
        self.add_fault(true, nth_call..=u64::MAX, Failure::Kind(kind));
    }

    /// Makes calls of any kind fail, counted as by [`MemStorage::accesses`].
    pub fn fail_accesses(&self, calls: RangeInclusive<u64>, failure: Failure) {
        self.add_fault(false, calls, failure);
    }

    fn add_fault(&self, of_changes: bool, calls: RangeInclusive<u64>, failure: Failure) {
        self.disk.lock().faults.push(Fault { of_changes, calls, failure });
    }

    /// Clears all injected faults.
    pub fn heal(&self) {
        self.disk.lock().faults.clear();
    }

    /// The least that a power cut now would leave: synced bytes under synced names. Without faults.
    #[must_use]
    pub fn power_cut(&self) -> Self {
        let disk = self.disk.lock();
        let dirs = disk.dirs.iter().map(|(path, dir)| (path.clone(), survivors(&dir.durable))).collect();
        Self { disk: Arc::new(Mutex::new(Disk { dirs, ..Disk::default() })) }
    }

    /// A hash of all directories, names and bytes that are seen.
    pub fn fingerprint(&self) -> [u8; 32] {
        let disk = self.disk.lock();
        let mut hasher = blake3::Hasher::new();
        for (path, dir) in &disk.dirs {
            hasher.update(format!("{path}\0{}\0", dir.seen.len()).as_bytes());
            for (name, file) in &dir.seen {
                let content = file.lock();
                hasher.update(format!("{name}\0{}\0", content.bytes.len()).as_bytes()).update(&content.bytes);
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Replaces a file's bytes in place, durably and uncounted: for tests of damage.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn overwrite(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.disk.lock().find(path)?;
        *file.lock() = Content { bytes: bytes.to_vec(), durable_bytes: bytes.len() };
        Ok(())
    }
}

fn survivors(durable: &Names) -> Dir {
    let survive = |file: &File| {
        let content = file.lock();
        let bytes = content.bytes[..content.durable_bytes].to_vec();
        Arc::new(Mutex::new(Content { bytes, durable_bytes: content.durable_bytes }))
    };
    let names: Names = durable.iter().map(|(name, file)| (name.clone(), survive(file))).collect();
    Dir { seen: names.clone(), durable: names }
}

/// A panic elsewhere in a test leaves nothing half done here.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk {
    fn count(&mut self, access: Access) -> io::Result<()> {
        self.accesses += 1;
        self.changes += u64::from(access == Access::Change);
        let hits = |fault: &&Fault| match (fault.of_changes, access) {
            (_, Access::Change | Access::Look) if fault.failure == Failure::ShortRead => false,
            (true, Access::Change) => fault.calls.contains(&self.changes),
            (true, _) => false,
            (false, _) => fault.calls.contains(&self.accesses),
        };
        match self.faults.iter().find(hits) {
            Some(fault) => Err(fault.failure.error()),
            None => Ok(()),
        }
    }

    fn dir(&mut self, path: &str) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(not_found)
    }

    fn find(&mut self, path: &str) -> io::Result<File> {
        let (dir, name) = split(path);
        self.dir(dir)?.seen.get(name).cloned().ok_or_else(not_found)
    }

    fn is_taken(&mut self, path: &str) -> bool {
        self.dirs.contains_key(path) || self.find(path).is_ok()
    }
}

impl Storage for MemStorage {
    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>> {
        let mut disk = self.disk.lock();
        disk.count(Access::Change)?;
        if disk.is_taken(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (dir, name) = split(path);
        let file = File::default();
        disk.dir(dir)?.seen.insert(name.to_owned(), Arc::clone(&file));
        Ok(Box::new(MemAppend { disk: Arc::clone(&self.disk), file, appended_bytes: 0 }))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>> {
        let mut disk = self.disk.lock();
        disk.count(Access::Look)?;
        let file = disk.find(path)?;
        Ok(Arc::new(MemRead { disk: Arc::clone(&self.disk), file }))
    }

    fn join(&self, path: &str) -> io::Result<Box<dyn JoinedFile>> {
        let mut disk = self.disk.lock();
        disk.count(Access::Look)?;
        let file = disk.find(path)?;
        Ok(Box::new(MemJoined { disk: Arc::clone(&self.disk), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count(Access::Change)?;
        let file = disk.find(from)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        if disk.dirs.contains_key(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        disk.dir(to_dir)?;
        disk.dir(from_dir)?.seen.remove(from_name);
        disk.dir(to_dir)?.seen.insert(to_name.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count(Access::Change)?;
        let (dir, name) = split(path);
        disk.dir(dir)?.seen.remove(name).map(drop).ok_or_else(not_found)
    }

    fn list(&self, dir: &str) -> io::Result<Listing> {
        let mut disk = self.disk.lock();
        disk.count(Access::Look)?;
        let files = disk.dir(dir)?.seen.keys().cloned().collect();
        let below = disk.dirs.keys().filter(|path| !path.is_empty()).map(|path| split(path));
        let dirs: BTreeSet<String> =
            below.filter(|(parent, _)| *parent == dir).map(|(_, name)| name.to_owned()).collect();
        Ok(Listing { files, dirs: dirs.into_iter().collect() })
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count(Access::Change)?;
        if disk.find(dir).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.dir(split(dir).0)?;
        disk.dirs.entry(dir.to_owned()).or_default();
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count(Access::Change)?;
        let dir = disk.dir(dir)?;
        dir.durable = dir.seen.clone();
        Ok(())
    }
}

struct MemAppend {
    disk: Arc<Mutex<Disk>>,
    file: File,
    appended_bytes: usize,
}

impl AppendFile for MemAppend {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let allowed = self.disk.lock().count(Access::Change);
        let arriving = if allowed.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.file.lock().write_at(self.appended_bytes, arriving);
        self.appended_bytes += arriving.len();
        allowed
    }

    fn skip(&mut self, bytes: u64) {
        self.appended_bytes += bytes as usize;
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.lock().count(Access::Change)?;
        let mut content = self.file.lock();
        content.durable_bytes = content.bytes.len();
        Ok(())
    }
}

struct MemJoined {
    disk: Arc<Mutex<Disk>>,
    file: File,
}

impl JoinedFile for MemJoined {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let allowed = self.disk.lock().count(Access::Change);
        let arriving = if allowed.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.file.lock().write_at(offset as usize, arriving);
        allowed
    }
}

struct MemRead {
    disk: Arc<Mutex<Disk>>,
    file: File,
}

impl ReadFile for MemRead {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.lock().count(Access::Read)?;
        let content = self.file.lock();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(content.bytes.get(from..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.disk.lock().count(Access::Look)?;
        Ok(self.file.lock().bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(storage: &MemStorage, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = storage.create(path)?;
        file.append(bytes)?;
        file.sync()
    }

    fn content(storage: &MemStorage, path: &str) -> Vec<u8> {
        let file = storage.open(path).unwrap();
        let mut bytes = vec![0; file.len_bytes().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_nth_call_fails_once_and_all_later_ones_on_demand() {
        let storage = MemStorage::new();
        storage.fail_at(2, io::ErrorKind::StorageFull);
        assert_eq!(write(&storage, "a", b"1234").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(content(&storage, "a"), b"12");
        assert_eq!(storage.calls(), 2);
        write(&storage, "b", b"1234").unwrap();
        storage.fail_from(6, io::ErrorKind::Other);
        assert!(storage.remove("b").is_err() && storage.sync_dir("").is_err());
        storage.heal();
        storage.remove("b").unwrap();
    }

    #[test]
    fn what_only_reads_fails_on_demand_too() {
        let storage = MemStorage::new();
        write(&storage, "a", b"1234").unwrap();
        let file = storage.open("a").unwrap();
        for (failure, errno) in [(Failure::Errno(libc::EIO), Some(libc::EIO)), (Failure::ShortRead, None)] {
            storage.fail_accesses(storage.accesses() + 1..=u64::MAX, failure);
            let failed = file.read_exact_at(&mut [0; 4], 0).unwrap_err();
            assert_eq!(failed.raw_os_error(), errno);
            assert_eq!(failed.kind() == io::ErrorKind::UnexpectedEof, errno.is_none());
            let others = [storage.open("a").err(), storage.list("").err(), file.len_bytes().err()];
            assert!(others.iter().all(|error| error.is_some() == errno.is_some()), "{others:?}");
            assert_eq!(storage.sync_dir("").is_err(), errno.is_some());
            storage.heal();
        }
        assert_eq!(content(&storage, "a"), b"1234");
    }

    #[test]
    fn a_power_cut_leaves_synced_bytes_under_synced_names() {
        let storage = MemStorage::new();
        storage.create_dir("d").unwrap();
        write(&storage, "d/kept", b"kept").unwrap();
        let mut unsynced = storage.create("d/unsynced").unwrap();
        unsynced.append(b"lost").unwrap();
        storage.sync_dir("d").unwrap();
        storage.rename("d/kept", "d/renamed").unwrap();
        write(&storage, "d/late", b"late").unwrap();
        let after = storage.power_cut();
        assert_eq!(after.list("d").unwrap().files, ["kept", "unsynced"]);
        assert_eq!(content(&after, "d/kept"), b"kept");
        assert_eq!(content(&after, "d/unsynced"), b"");
    }
}
