//! The records that are known to be damaged: found by `verify`, listed until they are healed or collected.
//!
//! The list is a small text file in the store, `damaged`. It is not part of the index, so it survives a rebuild of the
//! index. A damaged *location* is never put into the index: dedup and deltas treat the content as absent, and the next
//! backup that contains it stores it again.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::format::{PackId, RecordId};
use crate::storage::{Storage, whole};

/// The file's name in a store.
pub const FILE: &str = "damaged";
const MAGIC: &str = "vmstore-damaged ";
const VERSION: u32 = 1;

/// A damaged record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BadRecord {
    /// The pack that contains it.
    pub pack: PackId,
    /// Its offset there.
    pub offset: u32,
    /// The id of the content that it should hold.
    pub id: RecordId,
    /// Whether the record itself is intact and only its base is missing: it heals when its base does.
    pub base_lost: bool,
}

/// All damaged records of a store.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Damaged {
    records: HashSet<BadRecord>,
    ids: HashMap<RecordId, u32>,
}

impl Damaged {
    /// Whether nothing is damaged.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All of them, sorted.
    pub fn records(&self) -> Vec<BadRecord> {
        let mut records: Vec<_> = self.records.iter().copied().collect();
        records.sort_unstable();
        records
    }

    /// Adds one.
    pub fn insert(&mut self, record: BadRecord) {
        if self.records.insert(record) {
            *self.ids.entry(record.id).or_default() += 1;
        }
    }

    /// Keeps those for which `keep` holds; returns whether any were removed.
    pub fn retain(&mut self, keep: impl Fn(&BadRecord) -> bool) -> bool {
        let before = self.records.len();
        let kept: Vec<_> = self.records.drain().filter(|record| keep(record)).collect();
        self.ids.clear();
        for record in kept {
            self.insert(record);
        }
        self.records.len() != before
    }

    /// Whether some record of this id is or was damaged, so that its presence must be checked.
    pub fn concerns(&self, id: RecordId) -> bool {
        self.ids.contains_key(&id)
    }

    /// Whether the record at this location is damaged itself, so that the index must not name it.
    pub(crate) fn is_bad_location(&self, pack: PackId, offset: u32, id: RecordId) -> bool {
        self.concerns(id) && self.records.contains(&BadRecord { pack, offset, id, base_lost: false })
    }

    /// Reads the list. A store without the file has no known damage.
    pub fn load(storage: &dyn Storage) -> Result<Self> {
        let file = match storage.open(FILE) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io("opening", FILE, error)),
        };
        let len = file.len_bytes().map_err(|error| Error::io("reading", FILE, error))?;
        if len > 1 << 30 {
            return Err(unreadable("the file is over the limit"));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(|error| Error::io("reading", FILE, error))?;
        let (version, lines) = Self::checked(&bytes).ok_or_else(|| unreadable("its checksum does not match"))?;
        if version > VERSION {
            return Err(Error::refused(format!(
                "the list of damaged records was made by a newer vmstore (its version is {version}, this program knows \
                 {VERSION})"
            )));
        }
        Self::parse(lines).filter(|_| version == VERSION).ok_or_else(|| unreadable("it is not one"))
    }

    /// The version and the lines of a file whose checksum matches.
    fn checked(bytes: &[u8]) -> Option<(u32, &str)> {
        let text = std::str::from_utf8(bytes).ok()?;
        let body_end = text.strip_suffix('\n')?.rfind('\n')? + 1;
        let (body, last) = text.split_at(body_end);
        (last.trim_end() == checksum_line(body)).then_some(())?;
        let (head, lines) = body.split_once('\n')?;
        Some((head.strip_prefix(MAGIC)?.parse().ok()?, lines))
    }

    fn parse(lines: &str) -> Option<Self> {
        let lines = lines.lines();
        let mut damaged = Self::default();
        for line in lines {
            let mut words = line.split(' ');
            damaged.insert(BadRecord {
                pack: words.next()?.parse().ok()?,
                offset: words.next()?.parse().ok()?,
                id: words.next()?.parse().ok()?,
                base_lost: words.next()? == "base-lost",
            });
        }
        Some(damaged)
    }

    fn render(&self) -> String {
        let line = |record: &BadRecord| {
            let kind = if record.base_lost { "base-lost" } else { "record" };
            format!("{} {} {} {kind}\n", record.pack, record.offset, record.id)
        };
        let body = format!("{MAGIC}{VERSION}\n{}", self.records().iter().map(line).collect::<String>());
        format!("{body}{}\n", checksum_line(&body))
    }

    /// Replaces the list on disk, atomically and durably. An empty list is stored as no file.
    pub fn save(&self, storage: &dyn Storage) -> Result<()> {
        if !self.is_empty() {
            return whole::replace_whole(storage, FILE, self.render().as_bytes());
        }
        match storage.remove(FILE) {
            Ok(()) => storage.sync_dir("").map_err(|error| Error::io("syncing", storage.locate(""), error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("removing", FILE, error)),
        }
    }

    /// Removes what an interrupted save left behind.
    pub(crate) fn clean(storage: &dyn Storage) -> Result<()> {
        whole::remove_aside(storage, FILE)
    }
}

fn unreadable(why: &str) -> Error {
    Error::damaged("the list of damaged records", format!("{why}; `vmstore repair` recreates it"))
}

fn checksum_line(body: &str) -> String {
    format!("blake3 {}", blake3::hash(body.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ChunkId;
    use crate::storage::LocalDir;

    fn bad(number: u32, base_lost: bool) -> BadRecord {
        BadRecord { pack: PackId { number, tag: 7 }, offset: 64, id: ChunkId::of(&[1]).into(), base_lost }
    }

    #[test]
    fn survives_a_round_trip_and_notices_every_flip() {
        let dir = tempfile::tempdir().unwrap();
        let storage = LocalDir::new(dir.path());
        let mut damaged = Damaged::default();
        damaged.insert(bad(1, false));
        damaged.insert(bad(2, true));
        damaged.save(&storage).unwrap();
        assert_eq!(Damaged::load(&storage).unwrap(), damaged);
        let bytes = damaged.render().into_bytes();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(Damaged::checked(&flipped), None, "byte {at}");
        }
        let newer = damaged.render().replace("damaged 1", "damaged 2");
        let body = &newer[..newer.find("blake3").unwrap()];
        std::fs::write(dir.path().join(FILE), format!("{body}{}\n", checksum_line(body))).unwrap();
        assert!(matches!(Damaged::load(&storage), Err(Error::Refused { what }) if what.contains("newer")));
        assert!(damaged.retain(|record| record.base_lost));
        assert!(!damaged.is_bad_location(PackId { number: 2, tag: 7 }, 64, ChunkId::of(&[1]).into()));
        assert!(damaged.retain(|_| false));
        damaged.save(&storage).unwrap();
        assert!(Damaged::load(&storage).unwrap().is_empty());
    }
}
