//! Checking the catalog, also against the entries that packs repeat.

use std::collections::HashSet;

use super::findings::FoundEntry;
use crate::catalog::Snapshot;
use crate::error::Result;
use crate::id::EntryId;
use crate::name::SnapshotName;
use crate::store::Store;

/// What can be read of a catalog.
pub(super) struct CatalogCheck {
    pub(super) snapshots: Vec<Snapshot>,
}

/// Reads all of the catalog and adds what is wrong with it to `problems`. `found` are the entries that packs repeat.
pub(super) fn check(store: &Store, found: Vec<FoundEntry>, problems: &mut Vec<String>) -> Result<CatalogCheck> {
    let catalog = store.catalog();
    let mut snapshots = Vec::new();
    let mut unreadable = HashSet::new();
    let (all, tombstones) = catalog.list_with_tombstones()?;
    for listed in all {
        match listed.snapshot {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(error) => {
                problems.push(error.to_string());
                unreadable.insert(listed.name);
            }
        }
    }
    problems.extend(catalog.strangers()?.iter().map(|path| format!("{path} is no part of the catalog")));
    let known: HashSet<EntryId> = snapshots.iter().map(Snapshot::entry_id).collect();
    let tombstones: HashSet<(SnapshotName, String)> =
        tombstones.into_iter().map(|tombstone| (tombstone.name, tombstone.entry_prefix)).collect();
    let mut told = HashSet::new();
    for FoundEntry { id, name, pack } in found {
        let mut prefix = id.to_string();
        prefix.truncate(crate::catalog::ENTRY_PREFIX_DIGITS);
        let is_there = known.contains(&id) || unreadable.contains(&name);
        if !is_there && !tombstones.contains(&(name.clone(), prefix)) && told.insert(id) {
            problems.push(format!("the catalog entry of {name} is missing; pack {pack} repeats it"));
        }
    }
    Ok(CatalogCheck { snapshots })
}
