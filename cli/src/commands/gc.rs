//! `vmstore gc`: frees what no snapshot needs.

use std::num::NonZeroUsize;
use std::sync::Arc;

use chunkstore::gc::GcReport;
use chunkstore::reserve;
use chunkstore::store::Store;
use clap::Args;

use crate::context::{self, Context, Purpose};
use crate::failure::{Exit, Result};
use crate::output::{bytes, counted, seconds};

/// Free what no snapshot needs any more
///
/// Removes packs in which nothing is needed, and writes those anew in which little is.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Only print what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Threads that work [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Gc {
    pub(crate) fn run(&self, context: &Context) -> Result<Exit> {
        let report = context.with_store(Purpose::Free, |store| collect(context, store, self.dry_run, self.threads))?;
        context.output().report(&report, || to_text(&report))?;
        Ok(Exit::Done)
    }
}

/// Collects, and puts back a reserve that was given up before.
pub(crate) fn collect(
    context: &Context,
    store: &Arc<Store>,
    dry_run: bool,
    threads: Option<NonZeroUsize>,
) -> Result<GcReport> {
    let threads = context::threads(threads, store.config());
    let report = context.watch("gc", |progress| chunkstore::gc::collect(store, dry_run, threads, progress))?;
    if !dry_run {
        reserve::restore(store.dir());
    }
    Ok(report)
}

/// The report for people.
pub(crate) fn to_text(report: &GcReport) -> String {
    let [freed, removed, rewritten] =
        if report.dry_run { ["would free", "to remove", "to rewrite"] } else { ["freed", "removed", "rewritten"] };
    format!(
        "{freed} {}: {} {removed}, {} {rewritten}; {} needed by {}, {} not; in {}\n",
        bytes(report.freed_bytes),
        counted(report.removed_packs, "pack"),
        report.rewritten_packs,
        counted(report.live_records, "record"),
        counted(report.snapshots, "snapshot"),
        report.dead_records,
        seconds(report.elapsed_s)
    )
}
