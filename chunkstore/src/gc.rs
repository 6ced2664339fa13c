//! Freeing what no snapshot needs: mark by one bit a record, remove packs without a mark, rewrite sparse and small ones.
//!
//! Deletion follows one order: replacement packs are sealed and in the index (which repoints their records), then one
//! synced batch drops what only the old packs have, then packs of deltas are unlinked, then packs of full records.
//! A pack of full records stays until no pack has a delta against any of them, be it one that nothing needs.
//! A crash anywhere leaves at most packs that the next collection removes. Whatever can't be read is kept.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use crate::catalog::Snapshot;
use crate::damaged::Damaged;
use crate::error::{Error, Result};
use crate::id::{NodeId, RecordId};
use crate::index::{Change, PackRow};
use crate::lease;
use crate::limits::PACK_BYTES_TARGET;
use crate::mark::{Mark, Seen, Walk};
use crate::pack::{self, Class, ScanOutcome, TableEntry};
use crate::progress::Progress;
use crate::store::{Store, WriteSession};

/// A pack with less than this share of live bytes is rewritten, in percent.
const SPARSE_PERCENT: u64 = 50;
/// A pack smaller than this is put together with others of its class.
const SMALL_BYTES: u64 = PACK_BYTES_TARGET / 8;
/// So many small packs of a class are put together at least.
const SMALL_PACKS_MIN: usize = 4;

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct GcReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Snapshots whose content was marked.
    pub snapshots: u64,
    /// Records that something needs.
    pub live_records: u64,
    /// Records that nothing needs.
    pub dead_records: u64,
    /// Records that snapshots need and the store has not: damage.
    pub missing_records: u64,
    /// Packs removed because nothing in them was needed.
    pub removed_packs: u64,
    /// Packs rewritten because little in them was, or because they were small.
    pub rewritten_packs: u64,
    /// Bytes by which `packs/` shrank; in a dry run, what is dead in the packs that would go.
    pub freed_bytes: u64,
    /// Packs that were kept although they are damaged: one line each.
    pub kept_damaged: Vec<String>,
    /// Wall time.
    pub elapsed_s: f64,
}

/// Collects.
///
/// # Errors
/// [`Error::Damaged`] if a snapshot's entry or manifest can't be read: nothing is removed then, because nobody knows
/// what it needs. Remove that snapshot, or repair it, first.
pub fn collect(store: &Arc<Store>, dry_run: bool, threads: usize, progress: &Progress) -> Result<GcReport> {
    let started = Instant::now();
    let snapshots = readable_snapshots(store)?;
    // The catalog first, then the leases: who takes a lease looks afterwards whether the snapshot is still there.
    let leased = lease::roots(store.dir())?;
    // A removal that was seen above and is not on disk yet must not be overtaken by the sweep.
    store.catalog().sync()?;
    let mut report = GcReport { dry_run, snapshots: snapshots.len() as u64, ..GcReport::default() };
    let (mark, missing) = mark(store, &snapshots, &leased, threads, progress)?;
    report.missing_records = missing;
    let plan = Plan::make(store, mark, &mut report)?;
    if dry_run {
        report.freed_bytes = plan.dead_bytes();
        report.removed_packs = (plan.remove.len() + plan.remove_later.len()) as u64;
        report.rewritten_packs = plan.rewrite.len() as u64;
    } else {
        let before = packs_bytes(store);
        plan.carry_out(store, progress, &mut report)?;
        clear_tombstones(store)?;
        store.index().flush()?;
        report.freed_bytes = before.saturating_sub(packs_bytes(store));
    }
    report.elapsed_s = started.elapsed().as_secs_f64();
    Ok(report)
}

fn readable_snapshots(store: &Store) -> Result<Vec<Snapshot>> {
    store.catalog().list(None)?.into_iter().map(|listed| listed.snapshot).collect()
}

fn packs_bytes(store: &Store) -> u64 {
    store.packs().rows().iter().map(|row| row.bytes).sum()
}

fn mark(
    store: &Store,
    snapshots: &[Snapshot],
    leased: &[NodeId],
    threads: usize,
    progress: &Progress,
) -> Result<(Mark, u64)> {
    let mut walk = Walk::new(store, Mark::default(), threads, progress);
    progress.set_total(snapshots.len() as u64);
    for snapshot in snapshots {
        if let Some(root) = snapshot.entry().root {
            walk.tree(root).map_err(|error| name_snapshot(error, snapshot))?;
        }
        walk.records([snapshot.entry_id().into()])?;
        progress.advance(1);
    }
    let roots: Vec<RecordId> = leased.iter().map(|root| (*root).into()).collect();
    for (root, place) in leased.iter().zip(store.places(&roots)?) {
        // What the store does not have needs no protection.
        if place.is_some() {
            walk.tree(*root)?;
        }
    }
    walk.finish()
}

fn name_snapshot(error: Error, snapshot: &Snapshot) -> Error {
    match error {
        Error::Damaged { what, detail } => Error::damaged(
            what,
            format!("{detail}; nothing is collected while what {} needs is unknown", snapshot.name()),
        ),
        other => other,
    }
}

/// What becomes of each pack that does not stay as it is.
struct Plan {
    mark: Mark,
    /// Removed at once.
    remove: Vec<PackRow>,
    /// Removed when the deltas against their records are gone, which lie in packs that are rewritten.
    remove_later: Vec<PackRow>,
    rewrite: Vec<PackRow>,
}

impl Plan {
    fn make(store: &Store, mut mark: Mark, report: &mut GcReport) -> Result<Self> {
        let rows = store.packs().rows();
        let unhealed = unhealed_packs(store)?;
        // Bases are full, so they lie in other packs than deltas: one pass over the deltas marks all of them.
        let sparse_deltas = sparse(&mark, rows.iter().filter(|row| row.class.is_delta()));
        let mut awaited = HashSet::new();
        for row in rows.iter().filter(|row| row.class.is_delta()) {
            let only_live = sparse_deltas.contains(&row.id.number) && !unhealed.contains(&row.id.number);
            awaited.extend(mark_bases(store, row, only_live, &mut mark, report)?);
        }
        let sparse = sparse(&mark, rows.iter());
        let small = small(&rows);
        let mut plan = Self { mark, remove: Vec::new(), remove_later: Vec::new(), rewrite: Vec::new() };
        for row in rows {
            let live = plan.live(&row);
            report.live_records += live.0;
            report.dead_records += u64::from(row.records).saturating_sub(live.0);
            if unhealed.contains(&row.id.number) {
                report
                    .kept_damaged
                    .push(format!("pack {} has records that can't be read and are nowhere else", row.id));
            } else if live.0 == 0 && awaited.contains(&row.id.number) {
                plan.remove_later.push(row);
            } else if live.0 == 0 {
                plan.remove.push(row);
            } else if sparse.contains(&row.id.number) || small.contains(&row.id.number) {
                plan.rewrite.push(row);
            }
        }
        Ok(plan)
    }

    /// Records and bytes marked in a pack.
    fn live(&self, row: &PackRow) -> (u64, u64) {
        self.mark.pack(row.id.number).map_or((0, 0), |pack| (pack.records, pack.bytes))
    }

    fn dead_bytes(&self) -> u64 {
        let removed: u64 = self.remove.iter().chain(&self.remove_later).map(|row| row.bytes).sum();
        let rewritten: u64 = self.rewrite.iter().map(|row| row.bytes.saturating_sub(self.live(row).1)).sum();
        removed + rewritten
    }

    fn carry_out(self, store: &Arc<Store>, progress: &Progress, report: &mut GcReport) -> Result<()> {
        progress.set_total(self.rewrite.iter().map(|row| self.live(row).1).sum());
        // What needs no copy goes first: on a full disk it makes room for the copies.
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
                if group_bytes >= PACK_BYTES_TARGET {
                    self.rewrite_group(store, &std::mem::take(&mut group), progress, report)?;
                    group_bytes = 0;
                }
            }
            self.rewrite_group(store, &group, progress, report)?;
        }
        Ok(())
    }

    /// Copies the live records of some packs of one class into new ones and deletes the old.
    fn rewrite_group(
        &self,
        store: &Arc<Store>,
        group: &[PackRow],
        progress: &Progress,
        report: &mut GcReport,
    ) -> Result<()> {
        let session = WriteSession::new(Arc::clone(store));
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
        Ok(())
    }

    fn copy_live(&self, store: &Store, row: &PackRow, session: &WriteSession) -> Result<()> {
        let reader = store.packs().reader(row.id.number)?;
        let Some(live) = self.mark.pack(row.id.number) else { return Ok(()) };
        for (ordinal, entry) in reader.table()?.iter().enumerate() {
            if live.has(ordinal) {
                session.put(&[reader.record(u64::from(entry.offset), entry.stored_bytes)?])?;
            }
        }
        Ok(())
    }
}

/// Packs with records that are damaged and that no other pack has: they are kept, whatever else is in them.
fn unhealed_packs(store: &Store) -> Result<HashSet<u32>> {
    let records: Vec<_> = store.damaged().records().into_iter().filter(|record| !record.base_lost).collect();
    let ids: Vec<_> = records.iter().map(|record| record.id).collect();
    let places = store.places(&ids)?;
    let unhealed = records.iter().zip(places).filter(|(_, place)| place.is_none());
    Ok(unhealed.map(|(record, _)| record.pack.number).collect())
}

/// Marks the bases of a pack's deltas: of all if the pack stays as it is, so that none is left without its base.
/// Returns the packs with bases that were not marked.
fn mark_bases(
    store: &Store,
    row: &PackRow,
    only_live: bool,
    mark: &mut Mark,
    report: &mut GcReport,
) -> Result<HashSet<u32>> {
    let Some(live) = mark.pack(row.id.number) else { return Ok(HashSet::new()) };
    let scanned = match store.packs().reader(row.id.number).and_then(|reader| reader.scan()) {
        Ok(scanned) => scanned,
        Err(error @ Error::Damaged { .. }) => {
            report.kept_damaged.push(error.to_string());
            return Ok(HashSet::new());
        }
        Err(error) => return Err(error),
    };
    // Records that were found by search may be counted otherwise than the marks are.
    let only_live = only_live && matches!(scanned.outcome, ScanOutcome::Whole);
    let (wanted, others): (Vec<_>, Vec<_>) =
        scanned.entries.iter().enumerate().partition(|(ordinal, _)| !only_live || live.has(*ordinal));
    let places = |entries: Vec<(usize, &TableEntry)>| {
        let bases: Vec<RecordId> = entries.into_iter().filter_map(|(_, entry)| entry.base).collect();
        Ok::<_, Error>(store.places(&bases)?.into_iter().flatten())
    };
    places(wanted)?.for_each(|place| {
        mark.see(&place);
    });
    Ok(places(others)?.map(|place| place.pack).collect())
}

fn sparse<'a>(mark: &Mark, rows: impl Iterator<Item = &'a PackRow>) -> HashSet<u32> {
    let live_bytes = |row: &PackRow| mark.pack(row.id.number).map_or(0, |pack| pack.bytes);
    rows.filter(|row| live_bytes(row) * 100 < row.bytes * SPARSE_PERCENT).map(|row| row.id.number).collect()
}

fn small(rows: &[PackRow]) -> HashSet<u32> {
    let mut small = HashSet::new();
    for class in Class::ALL {
        let of_class: Vec<_> = rows.iter().filter(|row| row.class == class && row.bytes < SMALL_BYTES).collect();
        if of_class.len() >= SMALL_PACKS_MIN {
            small.extend(of_class.iter().map(|row| row.id.number));
        }
    }
    small
}

/// Deletes packs whose live records are elsewhere. Returns how many went; one whose table can't be read stays.
fn delete_packs(store: &Store, packs: Vec<PackRow>, report: &mut GcReport) -> Result<u64> {
    let mut doomed = Vec::new();
    for row in packs {
        match store.packs().reader(row.id.number).and_then(|reader| reader.table()) {
            Ok(table) => {
                forget_records(store, &row, &table)?;
                doomed.push(row);
            }
            Err(error @ Error::Damaged { .. }) => report.kept_damaged.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let (deltas, full): (Vec<_>, Vec<_>) = doomed.iter().partition(|row| row.class.is_delta());
    unlink(store, &deltas)?;
    unlink(store, &full)?;
    drop_from_damaged(store, &doomed)?;
    Ok(doomed.len() as u64)
}

/// Takes a pack and those of its records that are nowhere else out of the index, in one synced batch.
fn forget_records(store: &Store, row: &PackRow, table: &[TableEntry]) -> Result<()> {
    let ids: Vec<_> = table.iter().map(|entry| entry.id).collect();
    let mut change = Change::default();
    for (id, place) in ids.iter().zip(store.index().places(&ids)?) {
        if place.is_some_and(|place| place.pack == row.id.number) {
            change.forget(*id);
        }
    }
    let sketches: Vec<_> = table.iter().map(|entry| entry.sketch).collect();
    for (sketch, place) in sketches.iter().zip(store.index().similar(&sketches)?) {
        if place.is_some_and(|(pack, _)| pack == row.id.number) {
            change.forget_sketch(*sketch);
        }
    }
    change.forget_pack(row.id.number);
    store.index().apply(&change)
}

fn unlink(store: &Store, rows: &[&PackRow]) -> Result<()> {
    for row in rows {
        let path = pack::path(row.id);
        store.packs().forget(row.id.number);
        store.storage().remove(&path).map_err(|error| Error::io("removing", &path, error))?;
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

/// Clears the tombstones of snapshots whose entries no pack repeats any more.
fn clear_tombstones(store: &Store) -> Result<()> {
    for tombstone in store.catalog().tombstones()? {
        let prefix = tombstone.entry_prefix_bytes();
        store.catalog().clear_tombstone(&tombstone, || store.index().has_prefix(&prefix))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
