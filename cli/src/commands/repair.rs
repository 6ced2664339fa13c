//! `vmstore repair`: repairs a damaged store from its own redundancy and from other stores.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use chunkstore::catalog::{Catalog, Snapshot, SnapshotName};
use chunkstore::maintenance::repair::{self, RepairReport};
use chunkstore::store::Config;
use chunkstore::{Error, Progress};
use clap::Args;
use replicate::repair::{Far, Fetched, fetch};
use replicate::rpc::wire::Job;
use serde::Serialize;

use super::verify;
use crate::connector::{self, Connector, Near, Purpose, Reachable, RemoteArgs};
use crate::failure::{Exit, Result};
use crate::terminal::output::{bytes, counted};
use crate::terminal::{Terminal, Unit};

const AFTER_HELP: &str = "\
REMOTE is a name from `vmstore remote add` or an address, as for `vmstore pull`. Several are asked in turn.

Nothing is deleted: damaged files are moved to quarantine/ in the store, which can be removed when nothing in it is
needed any more.

Examples:
  vmstore repair --dry-run
  vmstore repair --from site-b --from ssh://backup@hv8/srv/vmstore";

/// Repair a damaged store from its own redundancy and, with --from, from other stores
///
/// Reads everything first, as verify does. Then restores configuration and catalog files from their copies, replaces
/// damaged packs by new ones with the sound records, and fetches what snapshots lack. A snapshot whose catalog file was
/// restored is held, because its previous holds are lost with the file. The exit code is 0 only if the store is sound
/// afterwards, and 3 if damage remains, which is named.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Repair {
    /// Fetch missing records from this store; may be repeated
    #[arg(long, value_name = "REMOTE")]
    from: Vec<String>,
    /// Print what would be repaired, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads that decode and check [default: from config.toml, else one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    access: RemoteArgs,
}

/// The report.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    sound: bool,
    /// Whether the store could be opened and read.
    #[serde(skip)]
    is_verified: bool,
    #[serde(flatten)]
    repair: RepairReport,
    fetched: Fetched,
}

impl Repair {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        // A wrong name fails before hours of reading.
        let from: Vec<_> = self.from.iter().map(|name| self.access.resolve(connector, name)).collect::<Result<_>>()?;
        let mut report = Report::default();
        report.repair.dry_run = self.dry_run;
        report.repair.mended = repair::look(connector.store_dir()?)?;
        if self.dry_run && !report.repair.mended.is_empty() {
            report.repair.beyond_help.push("further damage can be found only after this is mended".into());
            return finish(terminal, report);
        }
        if !report.repair.mended.is_empty() {
            report.repair.mended = connector.mend_foundation()?;
        }
        report.add(connector.with_store(Purpose::ReclaimSpace, |store| {
            let job = self.job(store.config());
            Ok(terminal.watch("repair", Unit::Bytes, |progress| store.run(&job, progress))?)
        })?);
        if !self.from.is_empty() && !self.dry_run && report.can_be_helped() {
            self.fetch_all(connector, terminal, &from, &mut report)?;
        }
        finish(terminal, report)
    }

    fn job(&self, config: &Config) -> Job {
        Job::Repair { dry_run: self.dry_run, threads: connector::threads(self.threads, config) as u32 }
    }

    /// Fetches missing records from the reachable stores, until they have no more.
    fn fetch_all(
        &self,
        connector: &Connector,
        terminal: &Terminal,
        from: &[Reachable],
        report: &mut Report,
    ) -> Result<()> {
        let near = connector.near()?;
        let far = self.far(connector, from)?;
        let job = self.job(&connector.catalog()?.0);
        while report.can_be_helped() {
            let fetched = report.fetch(terminal, &near, &far)?;
            report.fetched.records += fetched.records;
            report.fetched.bytes += fetched.bytes;
            report.repair.restored_in_part.retain(|name| !fetched.completed.contains(name));
            let got_nothing = fetched.records == 0 && fetched.completed.is_empty();
            report.fetched.completed.extend(fetched.completed);
            if got_nothing {
                return Ok(());
            }
            let run = |progress: &Progress| near.client.run_blocking(job.clone(), progress);
            let round = terminal.watch("repair", Unit::Bytes, run)?;
            let unreadable = |error| Error::invalid(format!("the report can't be read: {error}"));
            report.add(serde_json::from_slice(&round).map_err(unreadable)?);
        }
        Ok(())
    }

    fn far(&self, connector: &Connector, from: &[Reachable]) -> Result<Vec<Far>> {
        let mut far = Vec::new();
        for (name, reachable) in self.from.iter().zip(from) {
            match connector.runtime()?.block_on(reachable.connect(None)) {
                Ok(client) => far.push(Far { name: name.clone(), client }),
                // Another store may have it.
                Err(error) if self.from.len() > 1 => tracing::warn!("{name}: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(far)
    }
}

fn snapshots<'a>(catalog: &Catalog, names: impl Iterator<Item = &'a &'a str>) -> Result<Vec<Snapshot>> {
    let read = |name: &&str| Ok(catalog.read(&name.parse::<SnapshotName>()?)?);
    names.map(read).collect()
}

impl Report {
    /// Adds the report of another round.
    pub(crate) fn add(&mut self, round: RepairReport) {
        self.is_verified = true;
        let before = std::mem::replace(&mut self.repair, round);
        let all = &mut self.repair;
        for (all, before) in [
            (&mut all.mended, before.mended),
            (&mut all.quarantined, before.quarantined),
            (&mut all.restored_in_part, before.restored_in_part),
            (&mut all.beyond_help, before.beyond_help),
        ] {
            all.splice(0..0, before);
        }
        all.copied_records = all.copied_records.saturating_add(before.copied_records);
        all.elapsed_s += before.elapsed_s;
    }

    /// Fetches what the damaged snapshots lack.
    fn fetch(&self, terminal: &Terminal, near: &Near, far: &[Far]) -> Result<Fetched> {
        let incomplete: BTreeSet<&str> = self.repair.restored_in_part.iter().map(String::as_str).collect();
        let hurt: BTreeSet<&str> = self.repair.verify.damage.iter().map(|range| range.snapshot.as_str()).collect();
        let hurt = snapshots(&near.catalog, hurt.difference(&incomplete))?;
        let incomplete = snapshots(&near.catalog, incomplete.iter())?;
        let progress = terminal.progress();
        Ok(terminal.watch("fetch", Unit::Steps, |_| fetch(&near.client, far, &hurt, &incomplete, progress))?)
    }

    /// Whether another store may have what is missing.
    fn can_be_helped(&self) -> bool {
        !self.repair.verify.damage.is_empty() || !self.repair.restored_in_part.is_empty()
    }

    /// The report for people.
    pub(crate) fn to_text(&self) -> String {
        let Self { repair, fetched, .. } = self;
        let verb = if repair.dry_run { "would mend" } else { "mended" };
        let mended = repair.mended.iter().map(|line| format!("{verb}: {line}\n"));
        let in_part = repair
            .restored_in_part
            .iter()
            .map(|name| format!("beyond help: {name}: data is missing; `vmstore pull` completes it\n"));
        let beyond_help = repair.beyond_help.iter().map(|line| format!("beyond help: {line}\n"));
        let brought = match fetched.records {
            0 => String::new(),
            count => format!("fetched {} ({})\n", counted(count, "record"), bytes(fetched.bytes)),
        };
        let moved = match repair.quarantined.as_slice() {
            [] => String::new(),
            all => format!("{} in quarantine: {}\n", counted(all.len() as u64, "file"), all.join(", ")),
        };
        let verdict = if self.is_verified {
            verify::complaint(&repair.verify) + &verify::summary(&repair.verify)
        } else {
            String::new()
        };
        mended.chain([brought, moved]).chain(in_part).chain(beyond_help).chain([verdict]).collect()
    }
}

fn finish(terminal: &Terminal, mut report: Report) -> Result<Exit> {
    report.sound = report.repair.is_sound();
    if report.sound {
        terminal.report(&report, || report.to_text())?;
        return Ok(Exit::Done);
    }
    terminal.result(&report, || report.to_text())?;
    Ok(Exit::DamageFound)
}
