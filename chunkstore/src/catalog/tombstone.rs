//! Tombstones: they distinguish a snapshot that was removed, or never published, from one whose catalog file was lost.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Snapshot, image_dir};
use crate::catalog::name::{SnapshotName, SnapshotTime};
use crate::format::EntryId;
use crate::truth_lock::TruthMutex;

const TOMBSTONE_SUFFIX: &str = ".removed";
/// Hex digits of an entry's id in a tombstone's name.
const ENTRY_PREFIX_DIGITS: usize = 16;

/// The mark of a removed snapshot, which stays as long as a pack repeats its entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tombstone {
    /// Of which snapshot.
    pub name: SnapshotName,
    /// The first 16 hex digits of its entry's id: another snapshot may have the same name later.
    pub entry_prefix: String,
}

impl Tombstone {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self::of_entry(&snapshot.name(), snapshot.entry_id())
    }

    /// The tombstone of the snapshot of this name with this entry.
    pub(crate) fn of_entry(name: &SnapshotName, entry: EntryId) -> Self {
        let mut entry_prefix = entry.to_string();
        entry_prefix.truncate(ENTRY_PREFIX_DIGITS);
        Self { name: name.clone(), entry_prefix }
    }

    /// The first bytes of the entry's id.
    pub fn entry_prefix_bytes(&self) -> [u8; 8] {
        u64::from_str_radix(&self.entry_prefix, 16).expect("16 hex digits were checked").to_be_bytes()
    }

    /// Whether this is the tombstone of the snapshot with this entry.
    pub(crate) fn is_of(&self, snapshot: &Snapshot) -> bool {
        *self == Self::of(snapshot)
    }

    pub(super) fn path(&self) -> String {
        let Self { name, entry_prefix } = self;
        format!("{}/{}.{entry_prefix}{TOMBSTONE_SUFFIX}", image_dir(&name.image), name.time)
    }
}

/// Parses the file name of a tombstone.
pub(super) fn tombstone(file: &str) -> Option<(SnapshotTime, String)> {
    let (time, prefix) = file.strip_suffix(TOMBSTONE_SUFFIX)?.split_once('.')?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let whole = prefix.len() == ENTRY_PREFIX_DIGITS && prefix.bytes().all(is_digit);
    Some((SnapshotTime::from_compact(time)?, prefix.to_owned())).filter(|_| whole)
}

/// The snapshots being published now, each with the number of its publishers.
#[derive(Default)]
pub(super) struct Announcements(HashMap<Tombstone, u32>);

impl Announcements {
    /// Whether the tombstone's snapshot is among them.
    pub(super) fn has(&self, tombstone: &Tombstone) -> bool {
        self.0.contains_key(tombstone)
    }
}

/// Keeps the tombstone of a snapshot that is being published while it lives.
pub struct Announced {
    changes: Arc<TruthMutex<Announcements>>,
    tombstone: Tombstone,
}

impl Announced {
    /// Adds one; `announcements` are those behind `changes`, locked.
    pub(super) fn add(
        changes: &Arc<TruthMutex<Announcements>>,
        announcements: &mut Announcements,
        tombstone: Tombstone,
    ) -> Self {
        *announcements.0.entry(tombstone.clone()).or_default() += 1;
        Self { changes: Arc::clone(changes), tombstone }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let mut announcements = self.changes.lock();
        if let Some(count) = announcements.0.get_mut(&self.tombstone) {
            *count -= 1;
            if *count == 0 {
                announcements.0.remove(&self.tombstone);
            }
        }
    }
}
