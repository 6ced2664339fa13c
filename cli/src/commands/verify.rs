//! `vmstore verify`: checks that everything can be read back.

use std::num::NonZeroUsize;

use chunkstore::catalog::Selector;
use chunkstore::maintenance::verify::VerifyReport;
use clap::Args;
use replicate::rpc::wire::Job;
use serde::Serialize;

use super::resolve;
use crate::connector::{self, Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::terminal::output::{bytes, counted, seconds};
use crate::terminal::{Terminal, Unit};

/// Read and check every record of every pack, every manifest and the catalog
///
/// Names each damaged chunk with the snapshots and byte ranges that need it; the exit code is then 3. Damage is
/// remembered: the next ingest of the same data stores it again.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Check only what these snapshots need
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<Selector>,
    /// Threads that decode and check [default: from config.toml, else one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// The report as JSON.
#[derive(Serialize)]
struct Report<'a> {
    sound: bool,
    #[serde(flatten)]
    report: &'a VerifyReport,
}

impl Verify {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let report = connector.with_store(Purpose::Use, |store| {
            let names = resolve::snapshots(store.catalog(), &self.snapshots)?;
            let threads = connector::threads(self.threads, store.config()) as u32;
            let job = Job::Verify { snapshots: names.iter().map(ToString::to_string).collect(), threads };
            Ok(terminal.watch("verify", Unit::Bytes, |progress| store.run::<VerifyReport>(&job, progress))?)
        })?;
        let (output, sound) = (terminal, report.is_sound());
        let json = Report { sound, report: &report };
        if sound {
            output.report(&json, || summary(&report))?;
            return Ok(Exit::Done);
        }
        output.result(&json, || complaint(&report) + &summary(&report))?;
        Ok(Exit::DamageFound)
    }
}

/// The damage, for people.
pub(crate) fn complaint(report: &VerifyReport) -> String {
    let problems = report.problems.iter().map(|problem| format!("{problem}\n"));
    let damage = report.damage.iter().map(|range| {
        let end = range.offset_bytes.saturating_add(range.bytes);
        format!(
            "{}: bytes {} to {end} can't be read: {} is damaged or missing\n",
            range.snapshot, range.offset_bytes, range.id
        )
    });
    problems.chain(damage).collect()
}

/// The summary, for people.
pub(crate) fn summary(report: &VerifyReport) -> String {
    let rate = (report.plain_bytes as f64 / report.elapsed_s.max(1e-9)) as u64;
    let verdict = if report.is_sound() { "all sound" } else { "DAMAGED" };
    let healed = match report.healed_records {
        0 => String::new(),
        count => format!(
            "{}: whole copies exist, so nothing is lost; `vmstore repair` quarantines the damaged packs\n",
            counted(count, "damaged record"),
        ),
    };
    let partial = match report.partial_snapshots {
        0 => String::new(),
        count => format!(
            "{}: {} not fetched yet, which is no damage\n",
            counted(count, "partial snapshot"),
            counted(report.absent_records, "record"),
        ),
    };
    format!(
        "{verdict}: checked {} ({}) in {}, and {}, in {}, {}/s\n{healed}{partial}",
        counted(report.records, "record"),
        bytes(report.plain_bytes),
        counted(report.packs, "pack"),
        counted(report.snapshots, "snapshot"),
        seconds(report.elapsed_s),
        bytes(rate)
    )
}

#[cfg(test)]
mod tests {
    use chunkstore::maintenance::verify::DamagedRange;

    use super::*;

    #[test]
    fn damage_is_named() {
        let damage = DamagedRange { snapshot: "a@x".into(), offset_bytes: 4096, bytes: 8, id: "chunk 12".into() };
        let report =
            VerifyReport { problems: vec!["pack 3: short".into()], damage: vec![damage], ..VerifyReport::default() };
        assert_eq!(
            complaint(&report),
            "pack 3: short\na@x: bytes 4096 to 4104 can't be read: chunk 12 is damaged or missing\n"
        );
        assert!(summary(&report).starts_with("DAMAGED: checked 0 records"));
    }
}
