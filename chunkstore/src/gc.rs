//! Freeing what no snapshot needs.

use std::sync::Arc;

use crate::error::Result;
use crate::progress::Progress;
use crate::store::Store;

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct GcReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Snapshots whose content was marked.
    pub snapshots: u64,
    /// Records that something needs.
    pub live_records: u64,
    /// Records that nothing needs.
    pub dead_records: u64,
    /// Packs removed because nothing in them was needed.
    pub removed_packs: u64,
    /// Packs rewritten because little in them was, or because they were small.
    pub rewritten_packs: u64,
    /// Bytes by which `packs/` shrank.
    pub freed_bytes: u64,
    /// Wall time.
    pub elapsed_s: f64,
}

/// Collects.
pub fn collect(store: &Arc<Store>, dry_run: bool, threads: usize, progress: &Progress) -> Result<GcReport> {
    let _ = (store, dry_run, threads, progress);
    todo!()
}
