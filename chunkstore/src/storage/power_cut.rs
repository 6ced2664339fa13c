//! What a power cut can leave. Every change to a storage in memory is recorded, and from the recording any state is
//! built that the syncs until some moment allow.
//!
//! The model is that of a file system which promises no more than POSIX does. Bytes that a sync of their file covers
//! are there. Of what was written since, which is behind that, each sector of 512 bytes arrived or not, and the length
//! may lag behind; a sector that is lost inside the length reads as zeros. A name that a sync of its directory covers
//! is there. Of the creations, renames and removals since, each happened or not, but for two of one name, of which the
//! later did not happen without the earlier. A rename is atomic, and may outlive the content of the file that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::in_memory::MemStorage;
use super::{AppendFile, JoinedFile, Listing, ReadFile, Storage};
use crate::testing::Rng;

/// The unit that a disk writes wholly or not at all.
const SECTOR_BYTES: usize = 512;

/// A storage in memory whose changes are recorded.
///
/// Clones share the storage and the recording.
#[derive(Clone)]
pub struct Recorder {
    memory: MemStorage,
    recording: Arc<Mutex<Recording>>,
    before_each: Arc<dyn Fn(usize) + Send + Sync>,
}

/// What was there at first, all of it permanent, and what was done since.
#[derive(Clone, Default)]
pub struct Recording {
    dirs: BTreeSet<String>,
    names: BTreeMap<String, FileNumber>,
    /// By number; those that were there at first.
    contents: Vec<Arc<Vec<u8>>>,
    operations: Vec<Operation>,
    /// The file that has each name now.
    seen: BTreeMap<String, FileNumber>,
    files: usize,
}

/// Names a file whatever its name is.
type FileNumber = usize;

/// A change.
#[derive(Clone, Debug)]
enum Operation {
    Write { file: FileNumber, at: usize, bytes: Arc<Vec<u8>> },
    Sync { file: FileNumber },
    Names(NameChange),
    CreateDir { path: String },
    SyncDir { path: String },
}

/// A change of names that is permanent after a sync of the directory of `path`.
#[derive(Clone, Debug)]
enum NameChange {
    Create { path: String, file: FileNumber },
    Rename { from: String, path: String, file: FileNumber },
    Remove { path: String },
}

/// How much of what no sync covers arrived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Arrived {
    /// Of creations, renames and removals, in percent.
    pub names_percent: u8,
    /// Of sectors, in percent.
    pub sectors_percent: u8,
    /// Decides which.
    pub seed: u64,
}

impl Arrived {
    /// Nothing.
    pub const NOTHING: Self = Self { names_percent: 0, sectors_percent: 0, seed: 0 };
    /// Everything, as after the death of the process alone.
    pub const EVERYTHING: Self = Self { names_percent: 100, sectors_percent: 100, seed: 0 };
    /// All names and no content.
    pub const NAMES: Self = Self { names_percent: 100, sectors_percent: 0, seed: 0 };
    /// All content and no names.
    pub const CONTENT: Self = Self { names_percent: 0, sectors_percent: 100, seed: 0 };
}

impl Recorder {
    /// Records what is done to a storage from now on. All that it holds counts as permanent. `before_each` is called
    /// before each change with the number of those that were made.
    ///
    /// # Errors
    /// If the storage can't be read.
    pub fn new(memory: &MemStorage, before_each: impl Fn(usize) + Send + Sync + 'static) -> io::Result<Self> {
        let mut recording = Recording::default();
        recording.add_dir(memory, "")?;
        recording.files = recording.contents.len();
        recording.seen = recording.names.clone();
        let recording = Arc::new(Mutex::new(recording));
        Ok(Self { memory: memory.clone(), recording, before_each: Arc::new(before_each) })
    }

    /// What was recorded so far.
    pub fn recording(&self) -> Recording {
        self.recording.lock().clone()
    }

    /// How many changes were made so far.
    pub fn changes(&self) -> usize {
        self.recording.lock().changes()
    }

    /// Makes a change and records it, with no other in between.
    fn change<T>(
        &self,
        make: impl FnOnce() -> io::Result<T>,
        record: impl FnOnce(&mut Recording) -> Operation,
    ) -> io::Result<T> {
        let mut recording = self.recording.lock();
        (self.before_each)(recording.changes());
        let made = make()?;
        let operation = record(&mut recording);
        recording.operations.push(operation);
        Ok(made)
    }
}

impl Storage for Recorder {
    fn create(&self, path: &str) -> io::Result<Box<dyn AppendFile>> {
        let mut number = 0;
        let file = self.change(
            || self.memory.create(path),
            |recording| {
                number = recording.files;
                recording.files += 1;
                recording.seen.insert(path.to_owned(), number);
                Operation::Names(NameChange::Create { path: path.to_owned(), file: number })
            },
        )?;
        Ok(Box::new(RecordedFile { recorder: self.clone(), number, file, appended_bytes: 0 }))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn ReadFile>> {
        self.memory.open(path)
    }

    fn join(&self, path: &str) -> io::Result<Box<dyn JoinedFile>> {
        let file = self.memory.join(path)?;
        let number = *self.recording.lock().seen.get(path).expect("the storage has just found it");
        Ok(Box::new(RecordedJoined { recorder: self.clone(), number, file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(
            || self.memory.rename(from, to),
            |recording| {
                let file = recording.seen.remove(from).expect("the storage has just found it");
                recording.seen.insert(to.to_owned(), file);
                Operation::Names(NameChange::Rename { from: from.to_owned(), path: to.to_owned(), file })
            },
        )
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.change(
            || self.memory.remove(path),
            |recording| {
                recording.seen.remove(path);
                Operation::Names(NameChange::Remove { path: path.to_owned() })
            },
        )
    }

    fn list(&self, dir: &str) -> io::Result<Listing> {
        self.memory.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.change(|| self.memory.create_dir(dir), |_| Operation::CreateDir { path: dir.to_owned() })
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.change(|| self.memory.sync_dir(dir), |_| Operation::SyncDir { path: dir.to_owned() })
    }
}

struct RecordedFile {
    recorder: Recorder,
    number: FileNumber,
    file: Box<dyn AppendFile>,
    appended_bytes: usize,
}

impl AppendFile for RecordedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (file, number, at) = (&mut self.file, self.number, self.appended_bytes);
        let appended = |_: &mut Recording| Operation::Write { file: number, at, bytes: Arc::new(bytes.to_vec()) };
        self.recorder.change(|| file.append(bytes), appended)?;
        self.appended_bytes += bytes.len();
        Ok(())
    }

    fn skip(&mut self, bytes: u64) {
        self.appended_bytes += bytes as usize;
        self.file.skip(bytes);
    }

    fn sync(&mut self) -> io::Result<()> {
        let (file, number) = (&mut self.file, self.number);
        self.recorder.change(|| file.sync(), |_| Operation::Sync { file: number })
    }
}

struct RecordedJoined {
    recorder: Recorder,
    number: FileNumber,
    file: Box<dyn JoinedFile>,
}

impl JoinedFile for RecordedJoined {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, at) = (self.number, offset as usize);
        let written = |_: &mut Recording| Operation::Write { file, at, bytes: Arc::new(bytes.to_vec()) };
        self.recorder.change(|| self.file.write_at(offset, bytes), written)
    }
}

impl Recording {
    fn add_dir(&mut self, memory: &MemStorage, dir: &str) -> io::Result<()> {
        let below = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let listing = memory.list(dir)?;
        for path in listing.files.iter().map(|name| below(name)) {
            let file = memory.open(&path)?;
            let mut bytes = vec![0; file.len_bytes()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            self.names.insert(path, self.contents.len());
            self.contents.push(Arc::new(bytes));
        }
        for path in listing.dirs.iter().map(|name| below(name)) {
            self.add_dir(memory, &path)?;
            self.dirs.insert(path);
        }
        Ok(())
    }

    /// How many changes were recorded.
    pub fn changes(&self) -> usize {
        self.operations.len()
    }

    /// A change in words, for messages.
    pub fn describe(&self, at: usize) -> String {
        match &self.operations[at] {
            Operation::Write { file, at, bytes } => format!("write {} bytes at {at} of file {file}", bytes.len()),
            other => format!("{other:?}"),
        }
    }

    /// What a power cut after the first `changes` changes left. All of it is permanent in the result.
    #[must_use]
    pub fn power_cut(&self, changes: usize, arrived: Arrived) -> MemStorage {
        let mut disk = Disk {
            dirs: self.dirs.clone(),
            names: self.names.clone(),
            files: self.contents.iter().map(Content::permanent).collect(),
            unsynced: Vec::new(),
        };
        disk.files.resize_with(self.files, Content::default);
        self.operations[..changes].iter().for_each(|operation| disk.run(operation));
        disk.fall_out(arrived)
    }
}

/// The disk while the recording is repeated.
struct Disk {
    dirs: BTreeSet<String>,
    /// Those that are permanent.
    names: BTreeMap<String, FileNumber>,
    files: Vec<Content>,
    /// Changes of names that no sync covers, in their order.
    unsynced: Vec<NameChange>,
}

#[derive(Default)]
struct Content {
    /// What was written, and where.
    parts: Vec<(usize, Arc<Vec<u8>>)>,
    bytes: usize,
    permanent_bytes: usize,
}

impl Content {
    fn permanent(bytes: &Arc<Vec<u8>>) -> Self {
        Self { parts: vec![(0, Arc::clone(bytes))], bytes: bytes.len(), permanent_bytes: bytes.len() }
    }

    /// What is left of it.
    fn fall_out(&self, arrived: Arrived, luck: &mut Rng) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        for (at, part) in &self.parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        if self.permanent_bytes == self.bytes {
            return bytes;
        }
        bytes.truncate(self.length(arrived, luck));
        let mut sector_end = self.permanent_bytes;
        while sector_end < bytes.len() {
            let start = sector_end;
            sector_end = ((start / SECTOR_BYTES + 1) * SECTOR_BYTES).min(bytes.len());
            if !luck.happens(arrived.sectors_percent) {
                bytes[start..sector_end].fill(0);
            }
        }
        bytes
    }

    fn length(&self, arrived: Arrived, luck: &mut Rng) -> usize {
        match (arrived.sectors_percent, luck.number() % 4) {
            (0, _) if arrived.names_percent == 0 => self.permanent_bytes,
            // A length is part of what describes a file, as its name is, and may arrive without any content.
            (100, _) | (_, 0 | 1) => self.bytes,
            (_, 2) => self.permanent_bytes,
            _ => {
                let unsynced = self.bytes - self.permanent_bytes;
                self.permanent_bytes + luck.number() as usize % (unsynced + 1)
            }
        }
    }
}

impl Disk {
    fn run(&mut self, operation: &Operation) {
        match operation {
            Operation::Write { file, at, bytes } => {
                let content = &mut self.files[*file];
                content.bytes = content.bytes.max(at + bytes.len());
                content.parts.push((*at, Arc::clone(bytes)));
            }
            Operation::Sync { file } => {
                let content = &mut self.files[*file];
                content.permanent_bytes = content.bytes;
            }
            Operation::Names(change) => self.unsynced.push(change.clone()),
            Operation::CreateDir { path } => drop(self.dirs.insert(path.clone())),
            Operation::SyncDir { path } => {
                let (synced, rest) = std::mem::take(&mut self.unsynced).into_iter().partition(|change| {
                    let (dir, _) = change.path().rsplit_once('/').unwrap_or(("", change.path()));
                    dir == path
                });
                self.unsynced = rest;
                let synced: Vec<NameChange> = synced;
                for change in synced {
                    change.apply(&mut self.names);
                }
            }
        }
    }

    fn fall_out(mut self, arrived: Arrived) -> MemStorage {
        let mut luck = Rng::new(arrived.seed);
        let mut lost: BTreeSet<&str> = BTreeSet::new();
        for change in &self.unsynced {
            let after_lost = change.paths().any(|path| lost.contains(path));
            if !after_lost && luck.happens(arrived.names_percent) {
                change.apply(&mut self.names);
            } else {
                lost.extend(change.paths());
            }
        }
        let files: BTreeMap<String, Vec<u8>> = self
            .names
            .iter()
            .map(|(path, file)| (path.clone(), self.files[*file].fall_out(arrived, &mut luck)))
            .collect();
        filled(&self.dirs, &files)
    }
}

/// A storage with these directories and files.
fn filled(dirs: &BTreeSet<String>, files: &BTreeMap<String, Vec<u8>>) -> MemStorage {
    let memory = MemStorage::new();
    let fill = || -> io::Result<()> {
        // A directory sorts before what is below it.
        dirs.iter().try_for_each(|dir| memory.create_dir(dir))?;
        for (path, bytes) in files {
            let mut file = memory.create(path)?;
            file.append(bytes)?;
            file.sync()?;
        }
        memory.sync_dir("")?;
        dirs.iter().try_for_each(|dir| memory.sync_dir(dir))
    };
    fill().expect("memory does not fail, and the names are those of a storage");
    memory
}

impl NameChange {
    /// The name that it makes or takes away.
    fn path(&self) -> &str {
        match self {
            Self::Create { path, .. } | Self::Rename { path, .. } | Self::Remove { path } => path,
        }
    }

    /// All names that it concerns.
    fn paths(&self) -> impl Iterator<Item = &str> {
        let from = match self {
            Self::Rename { from, .. } => Some(from.as_str()),
            Self::Create { .. } | Self::Remove { .. } => None,
        };
        from.into_iter().chain([self.path()])
    }

    fn apply(&self, names: &mut BTreeMap<String, FileNumber>) {
        match self {
            Self::Create { path, file } => drop(names.insert(path.clone(), *file)),
            Self::Rename { from, path, file } => {
                names.remove(from);
                names.insert(path.clone(), *file);
            }
            Self::Remove { path } => drop(names.remove(path)),
        }
    }
}

/// A panic elsewhere in a test leaves nothing half done here.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests::contract;
    use crate::storage::whole::read_whole;

    const BYTES: usize = 5 * SECTOR_BYTES;

    fn recorder() -> Recorder {
        let memory = MemStorage::new();
        memory.create_dir("d").unwrap();
        memory.create("d/old").unwrap().append(b"old").unwrap();
        Recorder::new(&memory, |_| ()).unwrap()
    }

    /// What is in the directory after power cuts of all kinds, with a part of each file's content.
    fn left(recorder: &Recorder, arrived: impl Iterator<Item = Arrived>) -> BTreeSet<String> {
        let recording = recorder.recording();
        let state = |arrived| {
            let memory = recording.power_cut(recording.changes(), arrived);
            let files = memory.list("d").unwrap().files;
            let content = |name: &String| read_whole(&memory, &format!("d/{name}"), 1 << 20).unwrap().unwrap();
            let shown = |name: &String| format!("{name}={}", String::from_utf8_lossy(&content(name)));
            files.iter().map(shown).collect::<Vec<_>>().join(" ")
        };
        arrived.map(state).collect()
    }

    fn any() -> impl Iterator<Item = Arrived> {
        (0..200).map(|seed| Arrived { names_percent: 50, sectors_percent: 50, seed })
    }

    fn set(states: &[&str]) -> BTreeSet<String> {
        states.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_recorded_storage_keeps_the_contract_and_loses_nothing_if_all_arrives() {
        let memory = MemStorage::new();
        let recorder = Recorder::new(&memory, |_| ()).unwrap();
        contract(&recorder);
        let recording = recorder.recording();
        let all = recording.power_cut(recording.changes(), Arrived::EVERYTHING);
        assert_eq!(all.fingerprint(), memory.fingerprint());
        assert_ne!(all.fingerprint(), recording.power_cut(0, Arrived::EVERYTHING).fingerprint());
    }

    #[test]
    fn what_is_synced_stays_and_sectors_of_the_rest_arrive_each_by_itself() {
        let recorder = recorder();
        let mut file = recorder.create("d/new").unwrap();
        file.append(&[b'a'; BYTES + 100]).unwrap();
        file.sync().unwrap();
        recorder.sync_dir("d").unwrap();
        file.append(&[b'b'; BYTES]).unwrap();
        let recording = recorder.recording();
        let content = |arrived| {
            let memory = recording.power_cut(recording.changes(), arrived);
            read_whole(&memory, "d/new", 1 << 20).unwrap().unwrap()
        };
        assert_eq!(content(Arrived::NOTHING), [b'a'; BYTES + 100]);
        assert_eq!(content(Arrived::EVERYTHING), [[b'a'; BYTES + 100].as_slice(), &[b'b'; BYTES]].concat());
        let mut torn = BTreeSet::new();
        let mut lengths = BTreeSet::new();
        for bytes in any().map(content) {
            let (synced, rest) = bytes.split_at(BYTES + 100);
            assert_eq!(synced, [b'a'; BYTES + 100]);
            let (first, others) = rest.split_at(rest.len().min(SECTOR_BYTES - 100));
            let sectors: Vec<&[u8]> = [first].into_iter().chain(others.chunks(SECTOR_BYTES)).collect();
            for sector in &sectors {
                assert!([0, b'b'].iter().any(|byte| sector.iter().all(|found| found == byte)), "{sector:?}");
            }
            torn.insert(sectors.iter().map(|sector| sector.first() == Some(&b'b')).collect::<Vec<_>>());
            lengths.insert(rest.len());
        }
        assert!(torn.len() > 30 && torn.contains([false, true, false, true, true, false].as_slice()), "{torn:?}");
        assert!(lengths.contains(&0) && lengths.contains(&BYTES) && lengths.len() > 10, "{lengths:?}");
    }

    #[test]
    fn names_that_no_sync_covers_come_each_by_itself_and_after_it_all_are_there() {
        let recorder = recorder();
        let mut file = recorder.create("d/a").unwrap();
        file.append(b"a").unwrap();
        file.sync().unwrap();
        recorder.create("d/b").unwrap();
        recorder.remove("d/old").unwrap();
        let states = left(&recorder, any());
        assert_eq!(states, set(&["", "a=a", "a=a b=", "a=a b= old=old", "a=a old=old", "b=", "b= old=old", "old=old"]));
        assert_eq!(left(&recorder, [Arrived::NOTHING].into_iter()), set(&["old=old"]));
        recorder.sync_dir("").unwrap();
        assert_eq!(left(&recorder, any()).len(), 8, "a sync of another directory covers nothing");
        recorder.sync_dir("d").unwrap();
        assert_eq!(left(&recorder, any()), set(&["a=a b="]));
    }

    #[test]
    fn a_rename_is_atomic_and_may_outlive_the_content_of_its_file() {
        let recorder = recorder();
        recorder.create("d/new").unwrap().append(b"new").unwrap();
        recorder.sync_dir("d").unwrap();
        recorder.rename("d/new", "d/old").unwrap();
        let states = left(&recorder, any());
        for state in ["new= old=old", "new=new old=old", "old=", "old=\0\0\0", "old=new"] {
            assert!(states.contains(state), "{state:?} is not in {states:?}");
        }
        for state in &states {
            assert!(state.contains("old=") && (state.starts_with("new=") == state.ends_with("old=old")), "{state:?}");
        }
    }

    #[test]
    fn of_two_changes_of_one_name_the_later_does_not_come_without_the_earlier() {
        let recorder = recorder();
        recorder.rename("d/old", "d/moved").unwrap();
        recorder.create("d/old").unwrap();
        recorder.remove("d/moved").unwrap();
        let states = left(&recorder, any());
        assert_eq!(states, set(&["", "moved=old", "moved=old old=", "old=", "old=old"]));
    }
}
