//! Records all changes that a store and its clones make on the disk, in order, for power cuts and faults.
//!
//! The changes are made in a real directory, too, so listing and reading need no recording.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunkstore::storage::{AppendFile, Listing, LocalDir, ReadFile, Storage};
use parking_lot::{Mutex, MutexGuard};

use super::files::{Files, HostFiles, LayerFile};
use super::power_cut::Disk;

/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
/// What lies in a store and is neither truth nor of a clone.
const LEFT_OUT: [&str; 4] = ["index", "leases", "lock", "socket"];

/// A file, whatever its names.
pub(super) type FileId = u32;

/// A change. Paths are relative to the store.
#[derive(Clone, Debug)]
pub(super) enum Op {
    MakeDir(PathBuf),
    Create(PathBuf, FileId),
    Write(FileId, u64, Arc<[u8]>),
    Punch(FileId, Range<u64>),
    Cut(FileId, u64),
    Sync(FileId),
    /// A sync that failed: what was written is lost, and the next sync does not say so.
    SyncFailed(FileId),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    RemoveDir(PathBuf),
    SyncDir(PathBuf),
    /// From here on something else is expected of what a power cut leaves.
    Mark(usize),
}

/// Records changes below a directory. Clones of it share the recording.
#[derive(Clone)]
pub(super) struct Recording {
    root: Arc<Path>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    names: BTreeMap<PathBuf, FileId>,
    files: FileId,
    calls: u64,
    fault: Option<Fault>,
    /// The disk after the first so many changes.
    disk: Disk,
    applied: usize,
}

/// Which calls fail.
#[derive(Clone, Copy)]
struct Fault {
    first: u64,
    last: u64,
    /// Only calls that take something of the disk.
    only_taking: bool,
    /// Nothing is done any more, not even badly.
    kills: bool,
    errno: i32,
}

impl Recording {
    /// Begins with what is in `root` now, all of it permanent.
    pub(super) fn of(root: &Path) -> Self {
        let root = fs::canonicalize(root).unwrap();
        let recording = Self { root: root.clone().into(), state: Arc::default() };
        recording.take_in(&root);
        recording
    }

    fn take_in(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let relative = self.relative(&path);
            if LEFT_OUT.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if path.is_dir() {
                self.state().ops.push(Op::MakeDir(relative));
                self.take_in(&path);
            } else {
                let id = self.state().created(relative);
                let ops = [Op::Write(id, 0, fs::read(&path).unwrap().into()), Op::Sync(id)];
                self.state().ops.extend(ops);
            }
        }
        let relative = self.relative(dir);
        self.state().ops.push(Op::SyncDir(relative));
    }

    /// All that was done.
    pub(super) fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    pub(super) fn push(&self, op: Op) {
        self.state().ops.push(op);
    }

    /// How often a clone has asked something of its files.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Makes a call of a clone fail, counted as by [`Recording::calls`]. A write that fails is done in part.
    pub(super) fn fail_at(&self, call: u64, errno: i32) {
        self.state().fault = Some(Fault { first: call, last: call, only_taking: false, kills: false, errno });
    }

    /// Makes this call and all after it fail, as if the process were killed there.
    pub(super) fn fail_from(&self, call: u64) {
        self.state().fault =
            Some(Fault { first: call, last: u64::MAX, only_taking: false, kills: true, errno: libc::EIO });
    }

    /// Makes this call and all after it fail that take something of the disk.
    pub(super) fn run_out_at(&self, call: u64, errno: i32) {
        self.state().fault = Some(Fault { first: call, last: u64::MAX, only_taking: true, kills: false, errno });
    }

    /// From now on nothing fails. Tells whether something would have.
    pub(super) fn heal(&self) -> bool {
        let mut state = self.state();
        state.fault.take().is_some_and(|fault| fault.first <= state.calls)
    }

    /// Looks at the disk as it is now.
    pub(super) fn with_disk<T>(&self, look: impl FnOnce(&Disk) -> T) -> T {
        let state = &mut *self.state();
        state.ops[state.applied..].iter().for_each(|op| state.disk.apply(op));
        state.applied = state.ops.len();
        look(&state.disk)
    }

    /// Whether nothing is to fail.
    pub(super) fn is_sound(&self) -> bool {
        self.state().fault.is_none()
    }

    fn is_killed(&self) -> bool {
        self.state().fault.is_some_and(|fault| fault.kills)
    }

    fn call(&self) -> io::Result<()> {
        self.pass(false)
    }

    /// A call that takes something of the disk.
    fn taking_call(&self) -> io::Result<()> {
        self.pass(true)
    }

    fn pass(&self, takes: bool) -> io::Result<()> {
        let mut state = self.state();
        state.calls += 1;
        let calls = state.calls;
        let fails = |fault: &Fault| (fault.first..=fault.last).contains(&calls) && (takes || !fault.only_taking);
        state.fault.filter(fails).map_or(Ok(()), |fault| Err(io::Error::from_raw_os_error(fault.errno)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A path relative to the store; its directory may be told by a descriptor.
    fn relative(&self, path: &Path) -> PathBuf {
        let whole = match (path.parent(), path.file_name()) {
            (Some(dir), Some(name)) => fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()).join(name),
            _ => path.to_owned(),
        };
        whole.strip_prefix(&self.root).map_or(whole.clone(), Path::to_owned)
    }

    fn file(&self, path: &Path, host: Box<dyn LayerFile>) -> Box<dyn LayerFile> {
        let id = *self.state().names.get(&self.relative(path)).expect("what is opened was made");
        Box::new(RecordedFile { recording: self.clone(), id, host })
    }
}

impl State {
    fn created(&mut self, path: PathBuf) -> FileId {
        self.files += 1;
        let id = self.files;
        self.names.insert(path.clone(), id);
        self.ops.push(Op::Create(path, id));
        id
    }

    fn rename(&mut self, from: PathBuf, to: PathBuf) {
        let moved: Vec<_> = self.names.keys().filter(|path| path.starts_with(&from)).cloned().collect();
        for path in moved {
            let id = self.names.remove(&path).expect("it was listed");
            let rest = path.strip_prefix(&from).expect("it was found by this");
            self.names.insert(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) }, id);
        }
        self.ops.push(Op::Rename(from, to));
    }

    fn remove(&mut self, path: PathBuf) {
        // Locks and sockets were not recorded.
        if self.names.remove(&path).is_some() {
            self.ops.push(Op::Remove(path));
        }
    }
}

impl Files for Recording {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.taking_call()?;
        HostFiles.make_dir(dir)?;
        self.push(Op::MakeDir(self.relative(dir)));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LayerFile>> {
        self.taking_call()?;
        let host = HostFiles.create(path)?;
        let relative = self.relative(path);
        let mut state = self.state();
        match state.names.get(&relative) {
            Some(id) => {
                let emptied = Op::Cut(*id, 0);
                state.ops.push(emptied);
            }
            None => drop(state.created(relative)),
        }
        drop(state);
        Ok(self.file(path, host))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LayerFile>> {
        self.call()?;
        Ok(self.file(path, HostFiles.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        let (relative_from, relative_to) = (self.relative(from), self.relative(to));
        HostFiles.rename(from, to)?;
        self.state().rename(relative_from, relative_to);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        let relative = self.relative(path);
        HostFiles.remove(path)?;
        self.state().remove(relative);
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.call()?;
        HostFiles.remove_dir(dir)?;
        self.push(Op::RemoveDir(self.relative(dir)));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call()?;
        let dir = fs::canonicalize(dir)?;
        self.push(Op::SyncDir(self.relative(&dir)));
        Ok(())
    }
}

struct RecordedFile {
    recording: Recording,
    id: FileId,
    host: Box<dyn LayerFile>,
}

impl RecordedFile {
    fn put(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.host.write(bytes, offset)?;
        self.recording.push(Op::Write(self.id, offset, bytes.into()));
        Ok(())
    }
}

impl LayerFile for RecordedFile {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.recording.call()?;
        self.host.read(buf, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.recording.taking_call().or_else(|error| {
            self.put(&bytes[..bytes.len() / 2 / SECTOR * SECTOR], offset)?;
            Err(error)
        })?;
        self.put(bytes, offset)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.recording.call()?;
        self.host.punch(range.clone())?;
        self.recording.push(Op::Punch(self.id, range));
        Ok(())
    }

    fn reserve(&self, range: Range<u64>) -> io::Result<()> {
        self.recording.taking_call()?;
        self.host.reserve(range)
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        self.recording.call()?;
        self.host.cut(len_bytes)?;
        self.recording.push(Op::Cut(self.id, len_bytes));
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.recording.call()?;
        self.host.next_data(offset)
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        self.recording.call()?;
        self.host.stored_bytes()
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.recording.call();
        if synced.is_ok() {
            self.recording.push(Op::Sync(self.id));
        } else if !self.recording.is_killed() {
            self.recording.push(Op::SyncFailed(self.id));
        }
        synced
    }

    fn forget(&self) {
        for (offset, bytes) in self.recording.with_disk(|disk| disk.forgotten(self.id)) {
            self.put(&bytes, offset as u64).unwrap();
        }
    }
}

/// The store's own files, recorded with those of its clones. None of these calls fails.
pub(super) struct RecordedStorage {
    pub(super) recording: Recording,
    pub(super) dir: LocalDir,
}

struct RecordedAppend {
    recording: Recording,
    id: FileId,
    appended_bytes: u64,
    host: Box<dyn AppendFile>,
}

impl Storage for RecordedStorage {
    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>> {
        let host = self.dir.create(path)?;
        let id = self.recording.state().created(path.into());
        Ok(Box::new(RecordedAppend { recording: self.recording.clone(), id, appended_bytes: 0, host }))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>> {
        self.dir.open(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)?;
        self.recording.state().rename(from.into(), to.into());
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.dir.remove(path)?;
        self.recording.state().remove(path.into());
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Listing> {
        self.dir.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        if !self.recording.root.join(dir).is_dir() {
            self.dir.create_dir(dir)?;
            self.recording.push(Op::MakeDir(dir.into()));
        }
        self.sync_dir(Path::new(dir).parent().and_then(Path::to_str).unwrap_or_default())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.recording.push(Op::SyncDir(dir.into()));
        Ok(())
    }

    fn locate(&self, path: &str) -> PathBuf {
        self.dir.locate(path)
    }
}

impl AppendFile for RecordedAppend {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.host.append(bytes)?;
        self.recording.push(Op::Write(self.id, self.appended_bytes, bytes.into()));
        self.appended_bytes += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) {
        self.appended_bytes += bytes;
        self.host.skip(bytes);
    }

    fn sync(&mut self) -> io::Result<()> {
        self.recording.push(Op::Sync(self.id));
        Ok(())
    }
}
