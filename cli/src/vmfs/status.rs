//! `vmfs status`: how mounts are doing.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use fusefs::mounts::{self, Mount};
use fusefs::stats::{Latency, Statistics};
use fusefs::status::Status;
use serde::Serialize;

use super::mount::READING;
use super::probe::{Probed, probe};
use super::umount::find;
use crate::context::Context;
use crate::failure::{Exit, Result};
use crate::output::{bytes, counted, fields, seconds};

/// Show how the mounts of this machine are doing
///
/// Ends with 7 if one does not answer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmfs status\n  vmfs status /mnt/vm --json")]
pub(crate) struct StatusCommand {
    /// Only the one that is mounted here
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    mountpoint: Option<PathBuf>,
}

/// A mount in the output.
#[derive(Debug, Serialize)]
struct MountView {
    mountpoint: PathBuf,
    store: PathBuf,
    /// `mounted`, `dead`, `hangs`, `closed` or `strange`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(flatten)]
    status: Option<Box<Status>>,
}

impl StatusCommand {
    pub(crate) fn run(&self, context: &Context) -> Result<Exit> {
        let mounts = match &self.mountpoint {
            Some(mountpoint) => vec![find(mountpoint)?],
            None => mounts::views()?,
        };
        let views: Vec<_> = mounts.into_iter().map(view).collect();
        let text = || views.iter().map(text).collect::<Vec<_>>().join("\n");
        match self.mountpoint {
            Some(_) => context.output().result(&views[0], text)?,
            None => context.output().result(&views, text)?,
        }
        let is_bad = views.iter().any(|view| ["dead", "hangs"].contains(&view.state));
        Ok(if is_bad { Exit::Unreachable } else { Exit::Done })
    }
}

fn view(mount: Mount) -> MountView {
    let (state, detail, status) = match probe(&mount.mountpoint) {
        Probed::Well(status) => ("mounted", None, Some(status)),
        Probed::Dead => ("dead", Some("its vmfs was killed; `vmfs umount --force` takes it away".to_owned()), None),
        Probed::Hangs => ("hangs", Some("it does not answer; `vmfs umount --force` takes it away".to_owned()), None),
        Probed::Closed => ("closed", Some("it is another user's, mounted without --allow-other".to_owned()), None),
        Probed::Strange(said) => ("strange", Some(said), None),
    };
    MountView { mountpoint: mount.mountpoint, store: mount.source, state, detail, status }
}

fn text(view: &MountView) -> String {
    let state = view.detail.as_ref().map_or(view.state.to_owned(), |detail| format!("{}: {detail}", view.state));
    let mut lines = vec![("store", view.store.display().to_string()), ("state", state)];
    if let Some(status) = &view.status {
        lines.extend(served(status));
        for (name, value) in &status.more {
            match serde_json::from_value(value.clone()) {
                Ok(statistics) if name == READING => lines.extend(reading(&statistics)),
                _ => lines.push((name, value.to_string())),
            }
        }
    }
    format!("{}\n{}", view.mountpoint.display(), fields(&lines))
}

/// What the view tells.
fn served(status: &Status) -> [(&'static str, String); 5] {
    let Status { pid, version, requests, .. } = status;
    let in_requests = |count, of| format!("{} in {}", bytes(of), counted(count, "request"));
    [
        ("process", format!("{pid}, version {version}, for {}", seconds(status.uptime_s))),
        ("open", counted(status.open_files, "file")),
        ("read", in_requests(requests.reads, requests.read_bytes)),
        ("written", in_requests(requests.writes, requests.written_bytes)),
        ("failed", counted(requests.failures, "request")),
    ]
}

/// What the data path tells.
fn reading(of: &Statistics) -> [(&'static str, String); 4] {
    let looked_up = (of.cache_hits + of.cache_misses).max(1);
    let hit_percent = 100.0 * of.cache_hits as f64 / looked_up as f64;
    let Latency { p50_us, p90_us, p99_us, max_us } = of.latency;
    let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
    let [p50, p90, p99, max] = [p50_us, p90_us, p99_us, max_us].map(ms);
    [
        ("cache", format!("{} of {}, {hit_percent:.0} % hits", bytes(of.cache_bytes), bytes(of.cache_bytes_max))),
        ("fetched", format!("{} here, {} from the upstream", bytes(of.local_bytes), bytes(of.upstream_bytes))),
        ("latency", format!("half within {p50}, 90 % {p90}, 99 % {p99}, all {max}")),
        ("waiting", counted(of.waiting_reads, "read")),
    ]
}
