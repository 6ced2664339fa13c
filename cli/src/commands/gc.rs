//! `vmstore gc`: frees what no snapshot needs.

use std::num::NonZeroUsize;

use chunkstore::maintenance::gc::GcReport;
use clap::Args;
use replicate::rpc::wire::Job;

use crate::connector::{self, Access, Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::terminal::output::{bytes, counted, seconds};
use crate::terminal::{Terminal, Unit};

/// Free the space of data that no snapshot needs
///
/// Removes packs in which nothing is needed, and rewrites those in which little is. Damaged packs that may still be of
/// use are kept and named; the exit code is then 3.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Print what would be freed, and free nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads to use [default: from config.toml, else one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Gc {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let report = connector
            .with_store(Purpose::ReclaimSpace, |store| collect(terminal, store, self.dry_run, self.threads))?;
        terminal.report(&report, || to_text(&report))?;
        Ok(exit_of(&report))
    }
}

/// How the program ends after a collection.
pub(crate) fn exit_of(report: &GcReport) -> Exit {
    for line in &report.kept_damaged {
        tracing::error!("kept: {line}");
    }
    if report.missing_records > 0 {
        tracing::error!("{} that snapshots need are missing", counted(report.missing_records, "record"));
    }
    let sound = report.kept_damaged.is_empty() && report.missing_records == 0;
    if sound { Exit::Done } else { Exit::DamageFound }
}

/// Collects.
pub(crate) fn collect(
    terminal: &Terminal,
    store: &Access,
    dry_run: bool,
    threads: Option<NonZeroUsize>,
) -> Result<GcReport> {
    let job = Job::Collect { dry_run, threads: connector::threads(threads, store.config()) as u32 };
    Ok(terminal.watch("gc", Unit::Steps, |progress| store.run(&job, progress))?)
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
