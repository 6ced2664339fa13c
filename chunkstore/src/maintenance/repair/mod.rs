//! Repairing a damaged store from its own copies and from other stores.
//!
//! A repair begins with a verification. Damage is repaired in an order in which a kill or a power cut loses nothing:
//! first the replacement is durable, then the damaged file moves to `quarantine/`, where nothing is ever deleted.
//! Records that snapshots still lack can then be fetched from other stores by the caller; a second verification
//! decides. Repeating a repair is harmless.
//! verification has the last word. Repeating a repair is harmless.

mod bootstrap;
mod catalog_files;
mod packs;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

pub use self::bootstrap::{look, mend};
use crate::error::Result;
use crate::maintenance::verify::{self, Inspection, VerifyReport};
use crate::progress::Progress;
use crate::store::Store;

/// The hold on a snapshot whose state was lost with its catalog file.
pub(crate) const HOLD: &str = "repaired: what held it is not known";

/// The result of a repair, or of a dry run, and the state of the store afterwards.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RepairReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Repairs that were made, or would be: one line for each.
    pub mended: Vec<String>,
    /// Damaged files that were moved or copied to `quarantine/`.
    pub quarantined: Vec<String>,
    /// Records that were copied out of damaged packs.
    pub copied_records: u64,
    /// Snapshots whose catalog file was restored although something below their roots is missing: they are partial now.
    pub restored_in_part: Vec<String>,
    /// Names of lost content of which the store has no copy, in addition to those in the verification.
    pub beyond_help: Vec<String>,
    /// The verification of the repaired store.
    pub verify: VerifyReport,
    /// Wall time.
    pub elapsed_s: f64,
}

impl RepairReport {
    /// Whether the store is sound and nothing was lost.
    pub fn is_sound(&self) -> bool {
        self.verify.is_sound() && self.beyond_help.is_empty() && self.restored_in_part.is_empty()
    }
}

/// Repairs a store as far as it can without others. A dry run only reports what it would do.
///
/// # Errors
/// If the disk is full, or the index is unusable. Damage that can't be repaired is no error; the report names it.
pub fn repair(store: &Arc<Store>, dry_run: bool, threads: usize, progress: &Progress) -> Result<RepairReport> {
    let started = Instant::now();
    let maintenance = store.maintain();
    let inspect = || verify::inspect(store, threads, progress, &maintenance);
    let found = inspect()?;
    let mut report = RepairReport { dry_run, ..RepairReport::default() };
    let mut mending = Mending { store, found: &found, progress, dry_run, report: &mut report };
    // Packs first: the catalog's entries are read from them.
    mending.replace_packs()?;
    mending.restore_catalog()?;
    // A verification repairs the index as well.
    let has_changed = !report.mended.is_empty() || !found.report.problems.is_empty();
    report.verify = if has_changed && !dry_run { inspect()?.report } else { found.report };
    report.elapsed_s = started.elapsed().as_secs_f64();
    Ok(report)
}

/// A running repair.
struct Mending<'a> {
    store: &'a Arc<Store>,
    found: &'a Inspection,
    progress: &'a Progress,
    dry_run: bool,
    report: &'a mut RepairReport,
}

impl Mending<'_> {
    fn tell(&mut self, line: String) {
        tracing::info!("{line}");
        self.report.mended.push(line);
    }
}
