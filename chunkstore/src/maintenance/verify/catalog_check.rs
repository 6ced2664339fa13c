//! Checking the catalog, including against the entries that packs contain.

use std::collections::{HashMap, HashSet};

use super::verdict::FoundEntry;
use crate::catalog::{Snapshot, SnapshotName, Tombstone};
use crate::error::Result;
use crate::format::EntryId;
use crate::store::Store;

/// The readable and unreadable parts of a catalog.
#[derive(Default)]
pub(crate) struct CatalogCheck {
    pub(crate) snapshots: Vec<Snapshot>,
    /// Damaged files, each with the entries of its name that packs contain.
    pub(crate) unreadable: Vec<(SnapshotName, Vec<EntryId>)>,
    /// Entries that packs contain and the catalog lacks.
    pub(crate) unlisted: Vec<(SnapshotName, EntryId)>,
    /// Paths of files that do not belong to the catalog.
    pub(crate) strangers: Vec<String>,
}

/// Reads the whole catalog and adds its problems to `problems`. `found` are the entries that packs contain.
pub(super) fn check(store: &Store, found: Vec<FoundEntry>, problems: &mut Vec<String>) -> Result<CatalogCheck> {
    let catalog = store.catalog();
    let mut check = CatalogCheck { strangers: catalog.strangers()?, ..CatalogCheck::default() };
    // With the entries that the damaged file may have held: of existing snapshots first, then of removed ones.
    let mut unreadable: HashMap<SnapshotName, [Vec<EntryId>; 2]> = HashMap::new();
    // Of a newer version, or not readable by this user: nothing to repair.
    let mut others = HashSet::new();
    let (all, tombstones) = catalog.list_with_tombstones()?;
    for listed in all {
        match listed.snapshot {
            Ok(snapshot) => check.snapshots.push(snapshot),
            Err(error) => {
                problems.push(error.to_string());
                if error.is_damage() {
                    unreadable.insert(listed.name, <[Vec<EntryId>; 2]>::default());
                } else {
                    others.insert(listed.name);
                }
            }
        }
    }
    problems.extend(check.strangers.iter().map(|path| format!("{path} does not belong to the catalog")));
    let known: HashSet<EntryId> = check.snapshots.iter().map(Snapshot::entry_id).collect();
    let tombstones: HashSet<Tombstone> = tombstones.into_iter().collect();
    let mut told = HashSet::new();
    for FoundEntry { id, name, pack } in found {
        if known.contains(&id) || others.contains(&name) || !told.insert(id) {
            continue;
        }
        let was_removed = tombstones.contains(&Tombstone::of_entry(&name, id));
        if let Some(entries) = unreadable.get_mut(&name) {
            entries[usize::from(was_removed)].push(id);
        } else if !was_removed {
            problems.push(format!("the catalog entry of {name} is missing; pack {pack} has a copy"));
            check.unlisted.push((name, id));
        }
    }
    let sorted = unreadable.into_iter().map(|(name, entries)| (name, entries.concat()));
    check.unreadable.extend(sorted);
    check.unreadable.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(check)
}
