//! The sweep: rewriting and removing packs in an order in which every needed record always has a location.
//!
//! Order of deletion: replacement packs are sealed and added to the index, which moves their records; then one synced
//! batch removes the records that only the old packs have; then packs of deltas are unlinked, then packs of full
//! records. A pack of full records stays while any pack has a delta against one of them, even an unneeded one. A crash
//! at any point leaves at most packs that the next collection removes.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;

use super::GcReport;
use crate::error::{Error, Result};
use crate::pack::PackRow;
use crate::pack::{self, Class, PackReader, TableEntry};
use crate::progress::Progress;
use crate::store::damaged::Damaged;
use crate::store::index::Change;
use crate::store::marks::{Mark, PackMark};
use crate::store::{Store, WriteSession};

/// The packs that do not stay as they are, by what happens to them.
pub(super) struct Plan {
    pub(super) mark: Mark,
    /// Removed at once.
    pub(super) remove: Vec<PackRow>,
    /// Removed after the deltas against their records, which lie in packs that are rewritten.
    pub(super) remove_later: Vec<PackRow>,
    pub(super) rewrite: Vec<PackRow>,
}

impl Plan {
    /// Every pack that goes, with its needed records.
    pub(super) fn condemned(&self) -> HashMap<u32, Arc<PackMark>> {
        let packs = self.remove.iter().chain(&self.remove_later).chain(&self.rewrite);
        let needed = |row: &PackRow| Arc::new(self.mark.pack(row.id.number).cloned().unwrap_or_default());
        packs.map(|row| (row.id.number, needed(row))).collect()
    }

    /// Records and bytes marked in a pack.
    pub(super) fn live(&self, row: &PackRow) -> (u64, u64) {
        self.mark.pack(row.id.number).map_or((0, 0), |pack| (pack.records, pack.bytes))
    }

    pub(super) fn dead_bytes(&self) -> u64 {
        let removed: u64 = self.remove.iter().chain(&self.remove_later).map(|row| row.bytes).sum();
        let rewritten: u64 = self.rewrite.iter().map(|row| row.bytes.saturating_sub(self.live(row).1)).sum();
        removed + rewritten
    }

    pub(super) fn carry_out(self, store: &Arc<Store>, progress: &Progress, report: &mut GcReport) -> Result<()> {
        progress.set_total(self.rewrite.iter().map(|row| self.live(row).1).sum());
        // Packs without needed records go first: on a full disk that makes space for the copies.
        report.removed_packs += delete_packs(store, self.remove.clone(), report)?;
        self.rewrite_classes(Class::is_delta, store, progress, report)?;
        report.removed_packs += delete_packs(store, self.remove_later.clone(), report)?;
        self.rewrite_classes(|class| !class.is_delta(), store, progress, report)
    }

    fn rewrite_classes(
        &self,
        chosen: fn(Class) -> bool,
        store: &Arc<Store>,
        progress: &Progress,
        report: &mut GcReport,
    ) -> Result<()> {
        for class in Class::ALL.into_iter().filter(|class| chosen(*class)) {
            let mut group = Vec::new();
            let mut group_bytes = 0;
            for row in self.rewrite.iter().filter(|row| row.class == class) {
                progress.check()?;
                group.push(*row);
                group_bytes += self.live(row).1;
                if group_bytes >= store.pack_bytes() {
                    self.rewrite_group(store, &std::mem::take(&mut group), progress, report)?;
                    group_bytes = 0;
                }
            }
            self.rewrite_group(store, &group, progress, report)?;
        }
        Ok(())
    }

    /// Copies the live records of some packs of one class into new packs and deletes the old ones.
    fn rewrite_group(
        &self,
        store: &Arc<Store>,
        group: &[PackRow],
        progress: &Progress,
        report: &mut GcReport,
    ) -> Result<()> {
        let session = WriteSession::apart(store);
        let mut copied = Vec::new();
        for row in group {
            match self.copy_live(store, row, &session) {
                Ok(()) => copied.push(*row),
                Err(error @ Error::Damaged { .. }) => report.kept_damaged.push(error.to_string()),
                Err(error) => return Err(error),
            }
            progress.advance(self.live(row).1);
        }
        session.flush()?;
        report.rewritten_packs += delete_packs(store, copied, report)?;
        report.freed_bytes = report.freed_bytes.saturating_sub(session.stored_bytes());
        Ok(())
    }

    fn copy_live(&self, store: &Store, row: &PackRow, session: &WriteSession) -> Result<()> {
        let reader = store.packs().reader(row.id.number)?;
        let Some(live) = self.mark.pack(row.id.number) else { return Ok(()) };
        for (ordinal, entry) in known_table(&reader, row)?.iter().enumerate() {
            if live.has(ordinal) {
                session.copy(&reader.record(u64::from(entry.offset), entry.stored_bytes)?)?;
            }
        }
        Ok(())
    }
}

/// Deletes packs whose live records are elsewhere, and leftovers of earlier collections. Returns how many; a pack whose
/// table can't be read stays.
fn delete_packs(store: &Store, packs: Vec<PackRow>, report: &mut GcReport) -> Result<u64> {
    let mut doomed = Vec::new();
    for row in packs {
        match store.packs().reader(row.id.number).and_then(|reader| known_table(&reader, &row)) {
            Ok(table) => {
                forget_records(store, &row, &table)?;
                doomed.push(row);
            }
            Err(error @ Error::Damaged { .. }) => report.kept_damaged.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    unlink_forgotten(store)?;
    report.freed_bytes += doomed.iter().map(|row| row.bytes).sum::<u64>();
    drop_from_damaged(store, &doomed)?;
    Ok(doomed.len() as u64)
}

/// A pack's table, if the index knows all its records. If the table could not be read when the pack was added, needed
/// records may be missing from the index, and the others may be numbered differently.
fn known_table(reader: &PackReader, row: &PackRow) -> Result<Vec<TableEntry>> {
    let table = reader.table()?;
    if table.len() as u64 == u64::from(row.records) {
        return Ok(table);
    }
    Err(Error::damaged(
        format!("pack {}", row.id),
        format!("it has {} records, of which the index knows {}", table.len(), row.records),
    ))
}

/// Takes a pack, and those of its records that are nowhere else, out of the index in one synced batch.
fn forget_records(store: &Store, row: &PackRow, table: &[TableEntry]) -> Result<()> {
    let _index = store.change_index();
    let ids: Vec<_> = table.iter().map(|entry| entry.id).collect();
    let mut change = Change::default();
    for (id, location) in ids.iter().zip(store.index().locate(&ids)?) {
        if location.is_some_and(|location| location.pack == row.id.number) {
            change.forget(*id);
        }
    }
    let sketches: Vec<_> = table.iter().map(|entry| entry.sketch).collect();
    for (sketch, location) in sketches.iter().zip(store.index().similar(&sketches)?) {
        if location.is_some_and(|(pack, _)| pack == row.id.number) {
            change.forget_sketch(*sketch);
        }
    }
    change.forget_pack(row.id.number);
    store.index().apply(&change)?;
    store.forget_pack(*row);
    Ok(())
}

/// Unlinks the packs that the index has forgotten, also in a collection that failed earlier. Until they are certainly
/// unlinked, the tombstones of the snapshots whose entries they contain must stay. Packs of deltas go before those with
/// their bases.
fn unlink_forgotten(store: &Store) -> Result<()> {
    let mut forgotten = store.forgotten_packs();
    // A repair may have found one and added it again.
    forgotten.retain(|row| store.packs().row(row.id.number).is_none());
    let (deltas, full): (Vec<_>, Vec<_>) = forgotten.iter().partition(|row| row.class.is_delta());
    unlink(store, &deltas)?;
    unlink(store, &full)?;
    forgotten.clear();
    Ok(())
}

fn unlink(store: &Store, rows: &[&PackRow]) -> Result<()> {
    for row in rows {
        let path = pack::path(row.id);
        match store.storage().remove(&path) {
            // A previous collection got this far.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.map_err(|error| Error::io("removing", &path, error))?,
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    store.storage().sync_dir(pack::DIR).map_err(|error| Error::io("syncing", pack::DIR, error))
}

fn drop_from_damaged(store: &Store, gone: &[PackRow]) -> Result<()> {
    let mut damaged = Damaged::clone(&store.damaged());
    if damaged.retain(|record| !gone.iter().any(|row| row.id == record.pack)) {
        store.set_damaged(damaged)?;
    }
    Ok(())
}
