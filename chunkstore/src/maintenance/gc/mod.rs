//! Freeing records that no snapshot needs: mark one bit for each record, remove packs without marks, rewrite sparse and
//! small ones.
//!
//! Sessions write, publish and read meanwhile, and no record has to reach an age first. Packs that are sealed after the
//! collection began are not touched. Of the others, gc keeps what snapshots and leases need, found by a walk, and what
//! running sessions have pinned. The pins are merged at one moment, with the collection lock held exclusively: gc
//! decides, and condemns the packs that go, so that their unneeded records can no longer be found. Then it sweeps,
//! concurrently with everything else. Unreadable records are kept.

mod sweep;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use self::sweep::Plan;
use crate::catalog::Snapshot;
use crate::catalog::boot_order;
use crate::catalog::lease;
use crate::error::{Error, Result};
use crate::format::{NodeId, RecordId};
use crate::maintenance::mark::{Gaps, Walk};
use crate::metrics::{Description, Unit};
use crate::pack::PackRow;
use crate::pack::{Class, ScanOutcome, TableEntry};
use crate::progress::Progress;
use crate::store::marks::{Mark, PackMark, PlaceSet};
use crate::store::{Collecting, Store};

/// A pack with a smaller share of live bytes than this is rewritten, in percent.
const SPARSE_PERCENT: u64 = 50;
/// A pack smaller than this fraction of a full one is merged with others of its class.
const SMALL_PART: u64 = 8;
/// Least number of small packs of a class that are merged.
const SMALL_PACKS_MIN: usize = 4;

const RUNS: Description = Description::new("gc_runs_total", Unit::Count, "Garbage collections that ended.");
const FREED: Description =
    Description::new("gc_freed_bytes_total", Unit::Bytes, "Bytes by which garbage collections made the packs smaller.");

/// The result of a collection, or of a dry run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GcReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Snapshots whose content was marked.
    pub snapshots: u64,
    /// Records that something needs.
    pub live_records: u64,
    /// Records that nothing needs.
    pub dead_records: u64,
    /// Records that snapshots need and the store lacks: damage.
    pub missing_records: u64,
    /// Packs removed because no record in them was needed.
    pub removed_packs: u64,
    /// Packs rewritten because they were sparse or small.
    pub rewritten_packs: u64,
    /// Bytes by which `packs/` shrank; in a dry run, the dead bytes of the packs that would go.
    pub freed_bytes: u64,
    /// Packs that were kept although they are damaged: one line for each.
    pub kept_damaged: Vec<String>,
    /// Wall time.
    pub elapsed_s: f64,
}

/// Collects, concurrently with all other uses of the store.
///
/// # Errors
/// [`Error::Damaged`] if a snapshot's entry or manifest can't be read: nothing is removed then, because its needs are
/// unknown. Remove or repair that snapshot first. [`Error::Refused`] if a held lease can't be read.
pub fn collect(store: &Arc<Store>, dry_run: bool, threads: usize, progress: &Progress) -> Result<GcReport> {
    let started = Instant::now();
    let maintenance = store.maintain();
    // From here on sessions that end hand their pins over to this collection.
    let collecting = store.begin_collection(&maintenance);
    let mut report = GcReport { dry_run, ..GcReport::default() };
    let survey = Survey::make(store, &collecting, threads, progress, &mut report)?;
    if dry_run {
        let plan = survey.plan(&collecting, &mut report);
        report.freed_bytes = plan.dead_bytes();
        report.removed_packs = (plan.remove.len() + plan.remove_later.len()) as u64;
        report.rewritten_packs = plan.rewrite.len() as u64;
    } else {
        let plan = condemn(store, survey, &collecting, &mut report);
        let carried_out = plan.carry_out(store, progress, &mut report);
        store.collection_lock.spare();
        carried_out?;
        clear_tombstones(store)?;
        boot_order::forget_others(&**store.storage(), store.catalog())?;
        store.index().flush()?;
        store.metrics().counter(RUNS).increment();
        store.metrics().counter(FREED).add(report.freed_bytes);
    }
    report.elapsed_s = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Decides at one moment what goes: what was found by then is kept; the rest can no longer be found.
fn condemn(store: &Store, survey: Survey, collecting: &Collecting, report: &mut GcReport) -> Plan {
    // A record that is being given another location is pinned at both, or at neither yet.
    let _index = store.change_index();
    let shut = store.collection_lock.shut();
    let plan = survey.plan(collecting, report);
    store.collection_lock.condemn(plan.condemned(), &shut);
    plan
}

/// Everything that gc learns before the decision.
struct Survey {
    /// The packs whose sealing had ended when the collection began; later ones are not touched.
    rows: Vec<PackRow>,
    /// Records that snapshots and leases need, and bases.
    mark: Mark,
    /// Packs that stay because they are damaged.
    unhealed: HashSet<u32>,
    /// Packs of deltas that will be rewritten or removed in any case: not all their bases are marked.
    sparse_deltas: HashSet<u32>,
    /// The size at which packs are sealed.
    pack_bytes: u64,
    /// Packs with unmarked bases, by the pack of the deltas that need them.
    awaited: Vec<(u32, HashSet<u32>)>,
}

impl Survey {
    fn make(
        store: &Store,
        collecting: &Collecting,
        threads: usize,
        progress: &Progress,
        report: &mut GcReport,
    ) -> Result<Self> {
        let rows = store.settled_rows();
        // The catalog before the leases: after taking a lease, a session rechecks that the snapshot exists.
        let snapshots = readable_snapshots(store)?;
        let mut leased = collecting.roots();
        leased.extend(lease::roots(store.dir())?);
        // A removal that was seen above must be on disk before the sweep.
        store.catalog().sync()?;
        report.snapshots = snapshots.len() as u64;
        let (mark, missing) = mark(store, &snapshots, &leased, threads, progress)?;
        report.missing_records = missing;
        let unhealed = unhealed_packs(store, &rows)?;
        let sparse_deltas = sparse(&mark, rows.iter().filter(|row| row.class.is_delta()));
        let mut survey =
            Self { rows, mark, unhealed, sparse_deltas, pack_bytes: store.pack_bytes(), awaited: Vec::new() };
        survey.mark_bases(store, report)?;
        Ok(survey)
    }

    /// Marks the bases of deltas. Bases are full records and lie in other packs than deltas, so one pass over the
    /// deltas marks all of them.
    fn mark_bases(&mut self, store: &Store, report: &mut GcReport) -> Result<()> {
        for row in self.rows.iter().filter(|row| row.class.is_delta()) {
            let number = row.id.number;
            let only_live = self.sparse_deltas.contains(&number) && !self.unhealed.contains(&number);
            let awaited = mark_bases(store, row, only_live, &mut self.mark, report)?;
            self.awaited.push((number, awaited));
        }
        Ok(())
    }

    /// The plan, including what sessions have pinned.
    fn plan(mut self, collecting: &Collecting, report: &mut GcReport) -> Plan {
        collecting.merge_into(&mut self.mark);
        let sparse_full = sparse(&self.mark, self.rows.iter().filter(|row| !row.class.is_delta()));
        let small = small(&self.rows, self.pack_bytes / SMALL_PART);
        let mut plan = Plan { mark: self.mark, remove: Vec::new(), remove_later: Vec::new(), rewrite: Vec::new() };
        let mut unneeded = Vec::new();
        for row in self.rows {
            let number = row.id.number;
            let live = plan.live(&row);
            report.live_records += live.0;
            report.dead_records += u64::from(row.records).saturating_sub(live.0);
            if self.unhealed.contains(&number) {
                report.kept_damaged.push(format!(
                    "pack {} could not be read completely, and the missing records are nowhere else",
                    row.id
                ));
            } else if live.0 == 0 {
                unneeded.push(row);
            } else if [&self.sparse_deltas, &sparse_full, &small].iter().any(|packs| packs.contains(&number)) {
                plan.rewrite.push(row);
            }
        }
        let rewritten: HashSet<u32> = plan.rewrite.iter().map(|row| row.id.number).collect();
        let awaiting = self.awaited.iter().filter(|(deltas, _)| rewritten.contains(deltas));
        let awaited: HashSet<u32> = awaiting.flat_map(|(_, bases)| bases).copied().collect();
        (plan.remove_later, plan.remove) = unneeded.into_iter().partition(|row| awaited.contains(&row.id.number));
        plan
    }
}

fn readable_snapshots(store: &Store) -> Result<Vec<Snapshot>> {
    store.catalog().list(None)?.into_iter().map(|listed| listed.snapshot).collect()
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
    let (partial, whole): (Vec<_>, Vec<_>) = snapshots.iter().partition(|snapshot| snapshot.state.partial);
    walk_snapshots(&mut walk, &whole, progress)?;
    // Records that were not fetched yet, or are damaged here, can be fetched; what is here is kept.
    walk.allow(Gaps::Any)?;
    walk_snapshots(&mut walk, &partial, progress)?;
    // A lease may be of a partial snapshot that was removed meanwhile.
    walk.allow(Gaps::Absent)?;
    let roots: Vec<RecordId> = leased.iter().map(|root| (*root).into()).collect();
    for (root, location) in leased.iter().zip(store.locate(&roots)?) {
        // Records that the store lacks need no mark.
        if location.is_some() {
            walk.tree(*root)?;
        }
    }
    walk.finish()
}

fn walk_snapshots(walk: &mut Walk<'_, Mark>, snapshots: &[&Snapshot], progress: &Progress) -> Result<()> {
    for snapshot in snapshots {
        if let Some(root) = snapshot.entry().root {
            walk.tree(root).map_err(|error| name_snapshot(error, snapshot))?;
        }
        walk.records([snapshot.entry_id().into()])?;
        progress.advance(1);
    }
    Ok(())
}

fn name_snapshot(error: Error, snapshot: &Snapshot) -> Error {
    match error {
        Error::Damaged { what, detail } => Error::damaged(
            what,
            format!("{detail}; nothing is collected while the needs of {} are unknown", snapshot.name()),
        ),
        other => other,
    }
}

/// Packs that are kept whatever they hold: those with damaged records that no other pack has, and those that had to be
/// searched for records when they were added to the index. For the latter, the index numbers the records in the order
/// they were found, including those in gaps, and not as the table does, which may have become readable again.
fn unhealed_packs(store: &Store, rows: &[PackRow]) -> Result<HashSet<u32>> {
    let records: Vec<_> = store.damaged().records().into_iter().filter(|record| !record.base_lost).collect();
    let ids: Vec<_> = records.iter().map(|record| record.id).collect();
    let locations = store.locate(&ids)?;
    let unhealed = records.iter().zip(locations).filter(|(_, location)| location.is_none());
    let known = store.index().packs()?;
    let searched = rows.iter().map(|row| row.id.number).filter(|number| !known.contains_key(number));
    Ok(unhealed.map(|(record, _)| record.pack.number).chain(searched).collect())
}

/// Marks the bases of a pack's deltas: of all deltas if the pack stays as it is, so that none loses its base. Returns
/// the packs with bases that were not marked.
fn mark_bases(
    store: &Store,
    row: &PackRow,
    only_live: bool,
    mark: &mut Mark,
    report: &mut GcReport,
) -> Result<HashSet<u32>> {
    let live = mark.pack(row.id.number).cloned().unwrap_or_default();
    let scanned = match store.packs().reader(row.id.number).and_then(|reader| reader.scan()) {
        Ok(scanned) => scanned,
        Err(error @ Error::Damaged { .. }) => {
            report.kept_damaged.push(error.to_string());
            return Ok(HashSet::new());
        }
        Err(error) => return Err(error),
    };
    if !matches!(scanned.outcome, ScanOutcome::Whole) && !finds_all(store, row, &live, &scanned.entries)? {
        return Err(Error::damaged(
            format!("pack {}", row.id),
            "not all needed records can be read; nothing is collected while their bases are unknown",
        ));
    }
    // Records that were found by a search may be numbered differently from the marks.
    let only_live = only_live && matches!(scanned.outcome, ScanOutcome::Whole);
    let (wanted, others): (Vec<_>, Vec<_>) =
        scanned.entries.iter().enumerate().partition(|(ordinal, _)| !only_live || live.has(*ordinal));
    let locations = |entries: Vec<(usize, &TableEntry)>| {
        let bases: Vec<RecordId> = entries.into_iter().filter_map(|(_, entry)| entry.base).collect();
        Ok::<_, Error>(store.locate(&bases)?.into_iter().flatten())
    };
    locations(wanted)?.for_each(|location| {
        mark.add(&location);
    });
    Ok(locations(others)?.map(|location| location.pack).collect())
}

/// Whether the live records of a pack are among those that were found in it.
fn finds_all(store: &Store, row: &PackRow, live: &PackMark, found: &[TableEntry]) -> Result<bool> {
    let ids: Vec<RecordId> = found.iter().map(|entry| entry.id).collect();
    let here = store.locate(&ids)?.into_iter().flatten().filter(|location| location.pack == row.id.number);
    let ordinals: HashSet<u32> =
        here.map(|location| location.ordinal).filter(|ordinal| live.has(*ordinal as usize)).collect();
    Ok(ordinals.len() as u64 == live.records)
}

fn sparse<'a>(mark: &Mark, rows: impl Iterator<Item = &'a PackRow>) -> HashSet<u32> {
    let live_bytes = |row: &PackRow| mark.pack(row.id.number).map_or(0, |pack| pack.bytes);
    rows.filter(|row| live_bytes(row) * 100 < row.bytes * SPARSE_PERCENT).map(|row| row.id.number).collect()
}

fn small(rows: &[PackRow], below_bytes: u64) -> HashSet<u32> {
    let mut small = HashSet::new();
    for class in Class::ALL {
        let of_class: Vec<_> = rows.iter().filter(|row| row.class == class && row.bytes < below_bytes).collect();
        if of_class.len() >= SMALL_PACKS_MIN {
            small.extend(of_class.iter().map(|row| row.id.number));
        }
    }
    small
}

/// Removes the tombstones of snapshots whose entries are no longer in any pack.
fn clear_tombstones(store: &Store) -> Result<()> {
    for tombstone in store.catalog().tombstones()? {
        let prefix = tombstone.entry_prefix_bytes();
        store.catalog().clear_tombstone(&tombstone, || store.has_prefix(&prefix))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
