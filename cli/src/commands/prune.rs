//! `vmstore prune`: removes the snapshots that a retention policy does not keep.
//!
//! Each image, and within it each origin, is counted separately: a store that pushes here can't evict the snapshots of
//! another.

use std::collections::BTreeMap;

use chunkstore::Error;
use chunkstore::catalog::retention::{self, Decision, Reason, Retention};
use chunkstore::catalog::{Catalog, ImageName, Snapshot, SnapshotName};
use chunkstore::store::Config;
use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{gc, resolve};
use crate::connector::{Access, Connector, Purpose};
use crate::failure::{self, Exit, Failure, Result};
use crate::terminal::Terminal;
use crate::terminal::output::{counted, table};

const AFTER_HELP: &str = "\
Examples:
  vmstore prune --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run
  vmstore prune --keep-last 3 --image web01 --gc";

/// Remove the snapshots that no rule keeps
///
/// Each rule keeps the newest snapshot of each of the N latest periods that have one; a snapshot that no rule keeps is
/// removed. Each image, and within it each store that snapshots come from, is counted separately. Without rules on the
/// command line, those of config.toml apply. Held snapshots are kept.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Prune {
    #[command(flatten)]
    keep: Keep,
    /// Prune only this image; may be repeated
    #[arg(long = "image", value_name = "NAME")]
    images: Vec<ImageName>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Time zone for the rules, such as Europe/Berlin [default: from config.toml]
    #[arg(long, value_name = "NAME", value_parser = parse_zone)]
    time_zone: Option<TimeZone>,
    /// Free the space afterwards, as `vmstore gc` does
    #[arg(long, conflicts_with = "dry_run")]
    gc: bool,
}

#[derive(Clone, Copy, Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the fields are named like their options")]
struct Keep {
    /// Keep the newest N snapshots
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest snapshot of each of N hours
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the newest snapshot of each of N days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep the newest snapshot of each of N weeks, Monday to Sunday
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep the newest snapshot of each of N months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep the newest snapshot of each of N years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
}

impl Keep {
    /// The rules; `None` if none is given.
    fn retention(self) -> Option<Retention> {
        let retention = Retention {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
        };
        (retention != Retention::default()).then_some(retention)
    }
}

pub(crate) fn parse_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| "unknown time zone; use a name such as UTC or Europe/Berlin".to_owned())
}

/// The action on a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Keep,
    Remove,
}

/// The action on a snapshot, and its reasons.
#[derive(Debug, Serialize)]
struct Verdict {
    #[serde(serialize_with = "as_text")]
    snapshot: SnapshotName,
    action: Action,
    /// The rules that keep it, `held`, or `unreadable`.
    reasons: Vec<&'static str>,
    #[serde(skip)]
    error: Option<Error>,
}

fn as_text<S: serde::Serializer>(name: &SnapshotName, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// The report as JSON.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    kept: usize,
    removed: usize,
    snapshots: &'a [Verdict],
    #[serde(skip_serializing_if = "Option::is_none")]
    gc: Option<chunkstore::maintenance::gc::GcReport>,
}

impl Prune {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let (verdicts, collected) = if self.dry_run {
            let (config, catalog) = connector.catalog()?;
            (self.judge(&config, &catalog)?, None)
        } else {
            let store = connector.access(Purpose::ReclaimSpace)?;
            let verdicts = self.judge(store.config(), store.catalog())?;
            remove(&store, &verdicts)?;
            (verdicts, self.gc.then(|| gc::collect(terminal, &store, false, None)))
        };
        // Removals are reported even if the collection failed.
        let (gc, failed) = collected.transpose().map_or_else(|failure| (None, Some(failure)), |gc| (gc, None));
        let removed = verdicts.iter().filter(|verdict| verdict.action == Action::Remove).count();
        let kept = verdicts.len() - removed;
        let report = Report { dry_run: self.dry_run, kept, removed, snapshots: &verdicts, gc };
        terminal.report(&report, || to_text(&report))?;
        match (failed, report_unreadable(&verdicts)) {
            (Some(failure), _) => Err(failure),
            (None, Exit::Done) => Ok(report.gc.as_ref().map_or(Exit::Done, gc::exit_of)),
            (None, exit) => Ok(exit),
        }
    }

    fn judge(&self, config: &Config, catalog: &Catalog) -> Result<Vec<Verdict>> {
        let retention = self.keep.retention().unwrap_or(config.defaults.retention);
        if retention.is_empty() {
            return Err(Failure::usage("no retention rule is given")
                .hint("give one, such as --keep-daily 14, or set [defaults.retention] in config.toml"));
        }
        let zone = self.time_zone.clone().map_or_else(|| config.defaults.zone(), Ok)?;
        self.images.iter().try_for_each(|image| resolve::image(catalog, image))?;
        let images = if self.images.is_empty() { catalog.images()? } else { self.images.clone() };
        let mut verdicts = Vec::new();
        for image in images {
            judge_image(catalog, &image, retention, &zone, &mut verdicts)?;
        }
        verdicts.sort_by(|a, b| a.snapshot.cmp(&b.snapshot));
        verdicts.dedup_by(|a, b| a.snapshot == b.snapshot);
        Ok(verdicts)
    }
}

fn remove(store: &Access, verdicts: &[Verdict]) -> Result<()> {
    for Verdict { snapshot, .. } in verdicts.iter().filter(|verdict| verdict.action == Action::Remove) {
        super::remove::remove(store, snapshot)?;
        tracing::info!("removed {snapshot}");
    }
    Ok(())
}

fn judge_image(
    catalog: &Catalog,
    image: &ImageName,
    retention: Retention,
    zone: &TimeZone,
    verdicts: &mut Vec<Verdict>,
) -> Result<()> {
    let mut by_origin: BTreeMap<Origin, Vec<Snapshot>> = BTreeMap::new();
    for listed in catalog.list(Some(image))? {
        match listed.snapshot {
            Ok(snapshot) => by_origin.entry(origin_of(&snapshot)).or_default().push(snapshot),
            Err(error) => verdicts.push(unreadable(listed.name, error)),
        }
    }
    for snapshots in by_origin.into_values() {
        let times: Vec<_> = snapshots.iter().map(|snapshot| snapshot.entry().time).collect();
        let mut decisions: BTreeMap<_, _> = retention::plan(&times, retention, zone).into_iter().collect();
        for snapshot in &snapshots {
            let decision = decisions.remove(&snapshot.entry().time);
            verdicts.push(verdict(snapshot, decision.expect("the plan decides about every time")));
        }
    }
    Ok(())
}

/// The origin of a snapshot: the token that pushed it, which can't be forged, and the store that its entry names.
type Origin = (Option<String>, String);

fn origin_of(snapshot: &Snapshot) -> Origin {
    (snapshot.state.received_from.clone(), snapshot.entry().origin.clone())
}

fn verdict(snapshot: &Snapshot, decision: Decision) -> Verdict {
    let mut reasons: Vec<_> = match decision {
        Decision::Keep(reasons) => reasons.into_iter().map(Reason::as_str).collect(),
        Decision::Remove => Vec::new(),
    };
    if snapshot.state.is_held() {
        reasons.push("held");
    }
    let action = if reasons.is_empty() { Action::Remove } else { Action::Keep };
    Verdict { snapshot: snapshot.name(), action, reasons, error: None }
}

/// An unreadable snapshot may be held, so it is kept.
fn unreadable(snapshot: SnapshotName, error: Error) -> Verdict {
    Verdict { snapshot, action: Action::Keep, reasons: vec!["unreadable"], error: Some(error) }
}

fn to_text(report: &Report<'_>) -> String {
    let [keep, remove] = if report.dry_run { ["keep", "remove"] } else { ["kept", "removed"] };
    let row = |verdict: &Verdict| {
        let action = if verdict.action == Action::Keep { keep } else { remove };
        [verdict.snapshot.to_string(), action.to_owned(), verdict.reasons.join(", ")]
    };
    let rows = report.snapshots.iter().map(row).collect();
    let would = if report.dry_run { "would have " } else { "" };
    let sum = format!("{would}removed {} and kept {}\n", counted(report.removed as u64, "snapshot"), report.kept);
    let then = match (&report.gc, report.removed) {
        (Some(gc), _) => gc::to_text(gc),
        (None, 0) => String::new(),
        (None, _) => "`vmstore gc` frees the space\n".to_owned(),
    };
    table(["SNAPSHOT", "", "BECAUSE"], &[], rows) + &sum + &then
}

fn report_unreadable(verdicts: &[Verdict]) -> Exit {
    let errors: Vec<_> = verdicts.iter().filter_map(|verdict| verdict.error.as_ref()).collect();
    for error in &errors {
        tracing::error!("{error}");
    }
    errors.first().map_or(Exit::Done, |error| failure::exit_of(error))
}
