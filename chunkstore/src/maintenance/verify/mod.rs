//! Checking everything: every record of every pack, every manifest, the catalog.
//!
//! Packs come first, in order: full records, then deltas by the location of their bases, so that each base is decoded
//! once in a batch. One bit is kept for each good record. Damage is listed in the store, and missing or wrong locations
//! in the index are corrected. Then the manifests are walked: every node and chunk must have a location with a good
//! record. Only if one has not are they walked again, to name the affected ranges.

mod catalog_check;
mod closure;
mod deltas;
mod findings;
mod ranges;
mod records;
#[cfg(test)]
mod tests;
mod unit_queue;
mod verdict;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use self::catalog_check::CatalogCheck;
use self::closure::{Closure, Lost};
use self::findings::{Findings, INDEX_LACKED};
use crate::catalog::{Snapshot, SnapshotName};
use crate::error::{Error, Result};
use crate::format::{PackId, RecordId};
use crate::metrics::{Description, Metrics, Unit};
use crate::pack::PackRow;
use crate::pack::{DIR, Inventory};
use crate::progress::Progress;
use crate::store::damaged::{BadRecord, Damaged};
use crate::store::marks::Mark;
use crate::store::{Maintenance, Store};

const RUNS: Description = Description::new("verify_runs_total", Unit::Count, "Verifications that ended.");
const BYTES: Description =
    Description::new("verify_bytes_total", Unit::Bytes, "Plain bytes of the records that verifications checked.");
const PROBLEMS: Description =
    Description::new("verify_problems_total", Unit::Count, "Problems and damaged ranges that verifications found.");

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VerifyReport {
    /// Packs read.
    pub packs: u64,
    /// Records decoded and hashed.
    pub records: u64,
    /// Plain bytes of these records.
    pub plain_bytes: u64,
    /// Snapshots whose manifests were walked.
    pub snapshots: u64,
    /// Damaged records whose content is intact elsewhere, so that nothing is lost.
    pub healed_records: u64,
    /// Problems with packs, catalog files and lists: one line for each.
    pub problems: Vec<String>,
    /// Snapshots that are here only in part.
    #[serde(default)]
    pub partial_snapshots: u64,
    /// Chunks and nodes of partial snapshots that were not fetched yet, as far as their manifests are here. No damage.
    #[serde(default)]
    pub absent_records: u64,
    /// Damaged or missing chunks and nodes that snapshots need.
    pub damage: Vec<DamagedRange>,
    /// Damaged ranges that the list has no space for.
    pub damage_left_out: u64,
    /// Wall time.
    pub elapsed_s: f64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.damage.is_empty()
    }

    fn count(&self, metrics: &Metrics) {
        let problems = self.problems.len() as u64 + self.damage.len() as u64 + self.damage_left_out;
        metrics.counter(RUNS).increment();
        metrics.counter(BYTES).add(self.plain_bytes);
        metrics.counter(PROBLEMS).add(problems);
    }
}

/// A range of a snapshot that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct DamagedRange {
    /// The snapshot's name.
    pub snapshot: String,
    /// Where the range begins in the image.
    pub offset_bytes: u64,
    /// Its length.
    pub bytes: u64,
    /// The chunk or manifest node that is missing.
    pub id: String,
}

/// Verifies the whole store or, if `snapshots` is not empty, what these need. Damaged records are added to the store's
/// list; after a verification of the whole store the list is exactly what it found.
///
/// # Errors
/// [`Error::NotFound`] if a snapshot does not exist. Damage is no error; the report names it.
pub fn verify(
    store: &Arc<Store>,
    snapshots: &[SnapshotName],
    threads: usize,
    progress: &Progress,
) -> Result<VerifyReport> {
    let started = Instant::now();
    let _maintenance = store.maintain();
    let run = Run { store, threads: threads.max(1), progress };
    let mut report = if snapshots.is_empty() { run.whole_store()?.report } else { run.some(snapshots)? };
    report.elapsed_s = started.elapsed().as_secs_f64();
    report.count(store.metrics());
    Ok(report)
}

/// The result of a verification of the whole store, as a repair needs it.
pub(crate) struct Inspection {
    pub(crate) report: VerifyReport,
    /// Packs with any damage.
    pub(crate) unfit: Vec<PackRow>,
    /// Missing packs.
    pub(crate) missing: Arc<Vec<PackRow>>,
    pub(crate) catalog: CatalogCheck,
    /// Records that snapshots need and that are lost.
    pub(crate) lost: HashSet<RecordId>,
}

/// Verifies the whole store; the caller excludes other operations.
pub(crate) fn inspect(
    store: &Store,
    threads: usize,
    progress: &Progress,
    _maintenance: &Maintenance<'_>,
) -> Result<Inspection> {
    let started = Instant::now();
    let mut inspection = Run { store, threads: threads.max(1), progress }.whole_store()?;
    inspection.report.elapsed_s = started.elapsed().as_secs_f64();
    Ok(inspection)
}

/// The number of records below a snapshot's root that are absent and not known to be damaged.
pub(crate) fn absent_below(store: &Store, snapshot: &Snapshot, progress: &Progress) -> Result<u64> {
    let mut snapshot = snapshot.clone();
    snapshot.state.partial = true;
    Ok(Closure::new(store, 1, progress).lost(&[snapshot], &|_| true)?.absent)
}

/// A running verification.
struct Run<'a> {
    store: &'a Store,
    threads: usize,
    progress: &'a Progress,
}

impl Run<'_> {
    fn whole_store(&self) -> Result<Inspection> {
        let (inspection, was_mended) = self.look_at_all()?;
        if !was_mended {
            return Ok(inspection);
        }
        // Deltas that lacked their base only because the index had lost it are checked again.
        let healed_records = inspection.report.healed_records;
        let mended = inspection.report.problems.into_iter().filter(|problem| problem.starts_with(INDEX_LACKED));
        let (mut inspection, _) = self.look_at_all()?;
        inspection.report.problems.extend(mended);
        inspection.report.healed_records += healed_records;
        Ok(inspection)
    }

    /// Also returns whether deltas lacked bases while records were being added to the index again.
    fn look_at_all(&self) -> Result<(Inspection, bool)> {
        let missing = self.store.missing_packs();
        let mut problems = self.strangers()?;
        let mut findings = self.check_records(None)?;
        let catalog = catalog_check::check(self.store, findings.take_entries(), &mut problems)?;
        findings.add_stale_places(self.store)?;
        self.store.set_damaged(findings.damaged(Damaged::default()))?;
        findings.add_homeless_packs(self.store)?;
        let lost = self.close(&findings, &catalog.snapshots)?;
        self.remember_lost(&lost)?;
        if lost.is_nothing() {
            self.store.forget_missing_packs()?;
            self.store.set_complete();
        }
        let (unfit, was_mended) = (findings.unfit_packs(), findings.may_have_bases_now());
        let report = self.report(findings, problems, &catalog.snapshots, &lost)?;
        Ok((Inspection { report, unfit, missing, catalog, lost: lost.ids }, was_mended))
    }

    fn some(&self, names: &[SnapshotName]) -> Result<VerifyReport> {
        let mut problems = Vec::new();
        let snapshots = self.read_snapshots(names, &mut problems)?;
        let wanted = closure::mark(self.store, &snapshots, self.threads, self.progress)?;
        let findings = self.check_records(Some(&wanted))?;
        self.store.set_damaged(findings.damaged(Damaged::clone(&self.store.damaged())))?;
        let lost = self.close(&findings, &snapshots)?;
        self.remember_lost(&lost)?;
        self.report(findings, problems, &snapshots, &lost)
    }

    /// Reads the entries of the requested snapshots; a damaged one is a problem.
    fn read_snapshots(&self, names: &[SnapshotName], problems: &mut Vec<String>) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        for name in names.iter().collect::<std::collections::BTreeSet<_>>() {
            match self.store.catalog().read(name) {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(error @ Error::Damaged { .. }) => problems.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(snapshots)
    }

    /// Files among the packs that are none, and packs that are missing.
    fn strangers(&self) -> Result<Vec<String>> {
        let missing = self.store.missing_packs();
        let missing = missing.iter().map(|row| format!("pack {} is missing", row.id));
        let inventory = Inventory::read(&**self.store.storage())?;
        let strange = inventory.strangers.iter().map(|name| format!("{DIR}/{name} is not a pack of this store"));
        Ok(missing.chain(strange).collect())
    }

    /// Reads the records of all packs, or the wanted ones.
    fn check_records(&self, wanted: Option<&Mark>) -> Result<Findings> {
        let findings = Findings::new(self.store);
        let rows = self.store.sealed_rows();
        let bytes = |number| match wanted {
            Some(wanted) => wanted.pack(number).map_or(0, |pack| pack.bytes),
            None => self.store.packs().row(number).map_or(0, |row| row.bytes),
        };
        self.progress.set_total(rows.iter().map(|row| bytes(row.id.number)).sum());
        records::check(self, rows, wanted, &findings)?;
        deltas::check(self, wanted, &findings)?;
        Ok(findings)
    }

    /// Everything below the snapshots without a location whose record is good.
    fn close(&self, findings: &Findings, snapshots: &[Snapshot]) -> Result<Lost> {
        let closure = Closure::new(self.store, self.threads, self.progress);
        closure.lost(snapshots, &|location| findings.is_good(location))
    }

    /// Lists records that snapshots need and no pack has, although they have no location: the next backup must not skip
    /// them because its parent has them.
    fn remember_lost(&self, lost: &Lost) -> Result<()> {
        let damaged = self.store.damaged();
        let mut more = Damaged::clone(&damaged);
        for id in lost.ids.iter().filter(|id| !damaged.concerns(**id)) {
            more.insert(BadRecord { pack: NO_PACK, offset: 0, id: *id, base_lost: false });
        }
        if more == *damaged { Ok(()) } else { self.store.set_damaged(more) }
    }

    fn report(
        &self,
        findings: Findings,
        mut problems: Vec<String>,
        snapshots: &[Snapshot],
        lost: &Lost,
    ) -> Result<VerifyReport> {
        let known_entries: HashSet<RecordId> =
            snapshots.iter().map(|snapshot| RecordId::from(snapshot.entry_id())).collect();
        let mut report = VerifyReport {
            snapshots: snapshots.len() as u64,
            partial_snapshots: snapshots.iter().filter(|snapshot| snapshot.state.partial).count() as u64,
            absent_records: lost.absent,
            ..VerifyReport::default()
        };
        findings.report(self.store, &known_entries, &mut report)?;
        report.problems.append(&mut problems);
        if !lost.is_nothing() {
            ranges::name(self.store, snapshots, lost, self.progress, &mut report)?;
        }
        Ok(report)
    }
}

/// The pack in the list of damaged records when it is unknown. Packs are numbered from 1.
pub(crate) const NO_PACK: PackId = PackId { number: 0, tag: 0 };
