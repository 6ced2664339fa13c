//! The states that a power cut may leave, from recorded changes.
//!
//! Each sector of 512 bytes of a file may have any content that it had since the last sync, and so may the length. Of
//! the changes of a directory since its last sync, any may have arrived, in their order; a rename arrives as a whole or
//! not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::recording::{FileId, Op, SECTOR};
use chunkstore::testing::Rng;

type DirId = usize;
type Sector = [u8; SECTOR];
const ROOT: DirId = 0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    File(FileId),
    Dir(DirId),
}

type Names = BTreeMap<String, Node>;

/// A change of a directory.
enum Change {
    Put(String, Node),
    Rename(String, String, Node),
    Remove(String),
}

#[derive(Default)]
struct Dir {
    now: Names,
    durable: Names,
    unsynced: Vec<Change>,
}

#[derive(Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What sectors became since the last sync, and how long the file.
    sectors: BTreeMap<usize, Vec<Sector>>,
    lens: Vec<usize>,
    /// What a failed sync has lost, unless it is written again: the durable content stays there.
    lost: BTreeSet<usize>,
}

/// A disk to which changes were made.
pub(super) struct Disk {
    dirs: Vec<Dir>,
    files: BTreeMap<FileId, File>,
}

/// What is left: directories and files by their paths.
#[derive(Default, Hash)]
pub(super) struct Left {
    dirs: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
}

/// How much is lost of what was not synced.
#[derive(Clone, Copy)]
enum Loss {
    All,
    Nothing,
    Some,
}

impl Loss {
    /// Any; all, if nothing is left to chance.
    fn any(rng: &mut Option<&mut Rng>) -> Self {
        match rng.as_mut().map_or(0, |rng| rng.below(4)) {
            0 => Self::All,
            1 => Self::Nothing,
            _ => Self::Some,
        }
    }
}

/// An empty one.
impl Default for Disk {
    fn default() -> Self {
        Self { dirs: vec![Dir::default()], files: BTreeMap::new() }
    }
}

impl Disk {
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::MakeDir(path) => {
                self.dirs.push(Dir::default());
                let node = Node::Dir(self.dirs.len() - 1);
                self.put(path, node);
            }
            Op::Create(path, id) => {
                self.files.insert(*id, File::default());
                self.put(path, Node::File(*id));
            }
            Op::Write(id, offset, bytes) => self.file(*id).write(bytes, *offset as usize),
            Op::Punch(id, range) => self.file(*id).punch(range.start as usize, range.end as usize),
            Op::Cut(id, len) => self.file(*id).cut(*len as usize),
            Op::Sync(id) => self.file(*id).sync(),
            Op::SyncFailed(id) => self.file(*id).fail_sync(),
            Op::Rename(from, to) => self.rename(from, to),
            Op::Remove(path) | Op::RemoveDir(path) => {
                let (dir, name) = self.locate(path);
                dir.now.remove(&name).expect("what is removed is there");
                dir.unsynced.push(Change::Remove(name));
            }
            Op::SyncDir(path) => {
                let at = self.dir_at(path);
                let dir = &mut self.dirs[at];
                dir.durable = dir.now.clone();
                dir.unsynced.clear();
            }
            Op::Mark(_) => {}
        }
    }

    /// The sectors of a file that a failed sync has lost, as they are on the disk.
    pub(super) fn forgotten(&self, id: FileId) -> Vec<(usize, Vec<u8>)> {
        let file = &self.files[&id];
        let of = |number: &usize| {
            let start = number * SECTOR;
            let len = file.now.len().saturating_sub(start).min(SECTOR);
            (start, sector(&file.durable, *number)[..len].to_vec())
        };
        file.lost.iter().map(of).collect()
    }

    /// What a power cut leaves now of all files, and at the least.
    pub(super) fn cut_all(&self) -> Left {
        let mut left = Left::default();
        self.leave(ROOT, "", &mut None, &mut left);
        left
    }

    /// What a power cut leaves now.
    pub(super) fn cut(&self, rng: &mut Rng) -> Left {
        let mut left = Left::default();
        self.leave(ROOT, "", &mut Some(rng), &mut left);
        left
    }

    fn leave(&self, dir: DirId, path: &str, rng: &mut Option<&mut Rng>, left: &mut Left) {
        for (name, node) in self.dirs[dir].cut(rng) {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            match node {
                Node::File(id) => drop(left.files.insert(path, self.files[&id].left(rng))),
                Node::Dir(id) => {
                    left.dirs.push(path.clone());
                    self.leave(id, &path, rng, left);
                }
            }
        }
    }

    fn put(&mut self, path: &Path, node: Node) {
        let (dir, name) = self.locate(path);
        dir.now.insert(name.clone(), node);
        dir.unsynced.push(Change::Put(name, node));
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        assert_eq!(from.parent(), to.parent(), "nothing is renamed to another directory");
        let to = to.file_name().unwrap().to_str().unwrap().to_owned();
        let (dir, from) = self.locate(from);
        let node = dir.now.remove(&from).expect("what is renamed is there");
        dir.now.insert(to.clone(), node);
        dir.unsynced.push(Change::Rename(from, to, node));
    }

    fn file(&mut self, id: FileId) -> &mut File {
        self.files.get_mut(&id).expect("it was created")
    }

    fn locate(&mut self, path: &Path) -> (&mut Dir, String) {
        let at = self.dir_at(path.parent().unwrap());
        (&mut self.dirs[at], path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn dir_at(&self, path: &Path) -> DirId {
        path.iter().fold(ROOT, |dir, name| match self.dirs[dir].now.get(name.to_str().unwrap()) {
            Some(Node::Dir(id)) => *id,
            _ => panic!("{} is no directory", path.display()),
        })
    }
}

impl Dir {
    fn cut(&self, rng: &mut Option<&mut Rng>) -> Names {
        let loss = Loss::any(rng);
        let mut names = self.durable.clone();
        for change in &self.unsynced {
            let is_there = match loss {
                Loss::All => false,
                Loss::Nothing => true,
                Loss::Some => rng.as_mut().is_some_and(|rng| rng.below(2) == 0),
            };
            match change {
                _ if !is_there => {}
                Change::Put(name, node) => drop(names.insert(name.clone(), *node)),
                Change::Rename(from, to, node) if names.get(from) == Some(node) => {
                    names.remove(from);
                    names.insert(to.clone(), *node);
                }
                // What it renames was lost.
                Change::Rename(..) => {}
                Change::Remove(name) => drop(names.remove(name)),
            }
        }
        names
    }
}

impl File {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
            self.lens.push(end);
        }
        self.now[offset..end].copy_from_slice(bytes);
        self.note(offset, end);
    }

    fn punch(&mut self, start: usize, end: usize) {
        let end = end.min(self.now.len());
        if start < end {
            self.now[start..end].fill(0);
            self.note(start, end);
        }
    }

    fn cut(&mut self, len: usize) {
        let end = self.now.len();
        if len < end {
            self.now.truncate(len);
            self.lens.push(len);
            self.note(len, end);
        }
    }

    fn note(&mut self, start: usize, end: usize) {
        for number in start / SECTOR..end.div_ceil(SECTOR) {
            let sector = sector(&self.now, number);
            self.lost.remove(&number);
            self.sectors.entry(number).or_default().push(sector);
        }
    }

    fn sync(&mut self) {
        let old = std::mem::replace(&mut self.durable, self.now.clone());
        for number in &self.lost {
            put_sector(&mut self.durable, *number, &sector(&old, *number));
        }
        self.sectors.clear();
        self.lens.clear();
    }

    fn left(&self, rng: &mut Option<&mut Rng>) -> Vec<u8> {
        let mut left = match Loss::any(rng) {
            Loss::Nothing if self.lost.is_empty() => return self.now.clone(),
            Loss::All => return self.durable.clone(),
            _ => self.durable.clone(),
        };
        // Of several versions, 0 is the durable one.
        let mut version = |newer: usize| {
            let at = rng.as_mut().map_or(0, |rng| rng.below(newer as u64 + 1));
            at.checked_sub(1).map(|at| at as usize)
        };
        let len = version(self.lens.len()).map_or(left.len(), |at| self.lens[at]);
        left.resize(len, 0);
        for (number, versions) in &self.sectors {
            if let Some(at) = version(versions.len()) {
                put_sector(&mut left, *number, &versions[at]);
            }
        }
        left
    }

    fn fail_sync(&mut self) {
        self.lost.extend(std::mem::take(&mut self.sectors).into_keys());
    }
}

/// Replaces a sector, as far as `bytes` reaches.
fn put_sector(bytes: &mut [u8], number: usize, sector: &Sector) {
    let start = (number * SECTOR).min(bytes.len());
    let end = (start + SECTOR).min(bytes.len());
    bytes[start..end].copy_from_slice(&sector[..end - start]);
}

fn sector(bytes: &[u8], number: usize) -> Sector {
    let mut sector = [0; SECTOR];
    let there = bytes.get(number * SECTOR..).unwrap_or_default();
    let there = &there[..there.len().min(SECTOR)];
    sector[..there.len()].copy_from_slice(there);
    sector
}

impl Left {
    /// A number by which states can be told apart.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Takes out what lies below a directory.
    pub(super) fn take_below(&mut self, dir: &str) -> Self {
        let is_below = |path: &str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let dirs = self.dirs.extract_if(.., |path| is_below(path)).collect();
        let files = self.files.extract_if(.., |path, _| is_below(path)).collect();
        Self { dirs, files }
    }

    /// Makes it in a directory that has none of it.
    pub(super) fn write_to(&self, root: &Path) {
        self.dirs.iter().for_each(|dir| fs::create_dir(root.join(dir)).unwrap());
        self.files.iter().for_each(|(path, bytes)| fs::write(root.join(path), bytes).unwrap());
    }
}

/// Whether a sector is a new version up to the end that its file had, and zeros from there on, as the old version is.
/// Only writes of partial sectors, or a disk of such a size, show it: a guest writes whole sectors.
fn ends_within(versions: &[Sector], found: &[u8]) -> bool {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    versions.iter().any(|new| {
        let end = found.iter().zip(new).take_while(|(found, new)| found == new).count();
        is_zero(&found[end..]) && versions.iter().any(|old| is_zero(&old[end..]))
    })
}

/// What may be seen of a clone's disk: its size, and each sector.
#[derive(Clone)]
pub(super) struct Possible {
    sizes: Vec<usize>,
    /// A sector that is not named is all zeros.
    sectors: BTreeMap<usize, Vec<Sector>>,
}

impl Possible {
    /// Nothing but `image`.
    pub(super) fn only(image: &[u8]) -> Self {
        let mut possible = Self { sizes: vec![image.len()], sectors: BTreeMap::new() };
        possible.add(image);
        possible.sectors.values_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
        possible
    }

    /// `image`, too.
    pub(super) fn add(&mut self, image: &[u8]) {
        self.sizes.push(image.len());
        for (number, bytes) in image.chunks(SECTOR).enumerate() {
            let mut sector = [0; SECTOR];
            sector[..bytes.len()].copy_from_slice(bytes);
            let versions = self.sectors.entry(number).or_insert_with(|| vec![[0; SECTOR]]);
            if !versions.contains(&sector) {
                versions.push(sector);
            }
        }
    }

    /// It is no longer than this for good.
    pub(super) fn shorten(&mut self, size: usize) {
        self.sizes = vec![size];
        self.sectors.retain(|number, _| number * SECTOR < size);
        if let Some(versions) = self.sectors.get_mut(&(size / SECTOR)) {
            versions.iter_mut().for_each(|version| version[size % SECTOR..].fill(0));
        }
    }

    /// What is impossible about `found`.
    pub(super) fn unlike(&self, found: &[u8]) -> Option<String> {
        if !self.sizes.contains(&found.len()) {
            return Some(format!("{} bytes long instead of {:?}", found.len(), self.sizes));
        }
        let wrong = found.chunks(SECTOR).enumerate().find(|(number, bytes)| match self.sectors.get(number) {
            Some(versions) => {
                !versions.iter().any(|version| version[..bytes.len()] == **bytes) && !ends_within(versions, bytes)
            }
            None => bytes.iter().any(|byte| *byte != 0),
        });
        wrong.map(|(number, _)| format!("sector {number}"))
    }
}
