//! Mending a damaged store, from what it has twice and from what others have.
//!
//! A repair begins with a verification. What it found is put right in an order in which a kill or a power cut loses
//! nothing: first the replacement is durable, then what was damaged goes to `quarantine/`, where nothing is ever deleted.
//! What snapshots then still lack can be fetched by whoever knows other stores, as records like any others; a second
//! verification has the last word. Repeating a repair is harmless.

mod bootstrap;
mod catalog;
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

/// The reason for which a snapshot is held whose state was lost with its catalog file.
pub(crate) const HOLD: &str = "repaired: what held it is not known";

/// What a repair did, or would do, and how the store is after it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RepairReport {
    /// Whether nothing was mended.
    pub dry_run: bool,
    /// What was mended, or would be: one line each.
    pub mended: Vec<String>,
    /// Damaged files that were moved or copied to `quarantine/`.
    pub quarantined: Vec<String>,
    /// Records that were copied out of packs that had damage.
    pub copied_records: u64,
    /// Snapshots whose catalog file was restored, although something below their roots is not here: they are partial now.
    pub restored_in_part: Vec<String>,
    /// What nothing in the store repeats, by name. What the verification names comes on top of it.
    pub beyond_help: Vec<String>,
    /// What a verification says of the store as it is now.
    pub verify: VerifyReport,
    /// Wall time.
    pub elapsed_s: f64,
}

impl RepairReport {
    /// Whether the store is sound, and nothing was lost on the way.
    pub fn is_sound(&self) -> bool {
        self.verify.is_sound() && self.beyond_help.is_empty() && self.restored_in_part.is_empty()
    }
}

/// Mends a store as far as it can by itself. In a dry run only tells what it would do.
///
/// # Errors
/// If the disk is full, or the index can't be used. What is beyond help is no error, but in the report.
pub fn repair(store: &Arc<Store>, dry_run: bool, threads: usize, progress: &Progress) -> Result<RepairReport> {
    let started = Instant::now();
    let maintenance = store.maintain();
    let inspect = || verify::inspect(store, threads, progress, &maintenance);
    let found = inspect()?;
    let mut report = RepairReport { dry_run, ..RepairReport::default() };
    let mut mending = Mending { store, found: &found, progress, dry_run, report: &mut report };
    // Packs first: what is read of the catalog's entries lies in them.
    mending.replace_packs()?;
    mending.restore_catalog()?;
    // A verification mends the index, too.
    let has_changed = !report.mended.is_empty() || !found.report.problems.is_empty();
    report.verify = if has_changed && !dry_run { inspect()?.report } else { found.report };
    report.elapsed_s = started.elapsed().as_secs_f64();
    Ok(report)
}

/// A repair.
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
