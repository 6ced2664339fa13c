//! Checking everything: every record of every pack, every manifest, the catalog.

use std::sync::Arc;

use crate::error::Result;
use crate::name::SnapshotName;
use crate::progress::Progress;
use crate::store::Store;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct VerifyReport {
    /// Packs read.
    pub packs: u64,
    /// Records decoded and hashed.
    pub records: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Snapshots whose manifests were walked.
    pub snapshots: u64,
    /// What is wrong with packs, catalog files and lists: one line for each.
    pub problems: Vec<String>,
    /// Damaged or missing chunks and nodes that snapshots need.
    pub damage: Vec<DamagedRange>,
    /// Wall time.
    pub elapsed_s: f64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.damage.is_empty()
    }
}

/// A range of a snapshot that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
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

/// Verifies the whole store or, if `snapshots` is not empty, what these need. Ids found damaged are remembered; after a
/// verification of the whole store the list is exactly what it found.
pub fn verify(
    store: &Arc<Store>,
    snapshots: &[SnapshotName],
    threads: usize,
    progress: &Progress,
) -> Result<VerifyReport> {
    let _ = (store, snapshots, threads, progress);
    todo!()
}
