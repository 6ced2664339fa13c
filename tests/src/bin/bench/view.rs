//! The cost of the mount: reading, booting, and committing a clone's writes.
//!
//! Every figure begins with the kernel's caches dropped and, where it is a mount's, with a new mount. What vmfs is
//! compared with, the raw file and QEMU's own FUSE export of it as a compressed qcow2, is read by the same reader in
//! the same round. It needs root.

mod boots;
mod clones;
mod export;
mod reading;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tests::{Mounted, Vmstore};

use crate::run::Bench;
use crate::table::Row;

const SNAPSHOT: &str = "web01@20260101T020000Z";
const TIME: &str = "20260101T020000Z";
/// The cache of the mounts that are measured.
const CACHE: &str = "1GiB";
const CACHE_BYTES: f64 = (1_u64 << 30) as f64;

/// All measurements of the view.
pub(crate) fn view(bench: &mut Bench) -> Result<Vec<Row>> {
    let image = bench.images.join("day1.raw");
    let store = bench.new_store("view")?;
    bench.ingest(&store, &image, TIME)?;
    let vmstore = Vmstore::with(bench.vmstore_program(), store).through_owner();
    let mut rows = reading::rows(bench, &vmstore, &image)?;
    rows.extend(clones::commit(bench, &vmstore)?);
    rows.extend(clones::hundred(bench, &vmstore)?);
    rows.extend(boots::rows(bench, &vmstore, &image)?);
    Ok(rows)
}

fn mount(vmstore: &Vmstore) -> (Mounted, PathBuf) {
    let mounted = vmstore.mount(&["--cache", CACHE]);
    let snapshot = mounted.snapshot(SNAPSHOT);
    (mounted, snapshot)
}

/// Empties the kernel's caches of everything that is on disk.
fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the kernel's caches needs root")
}
