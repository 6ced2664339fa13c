//! `vmfs status`: the state of mounts.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use disks::stats::{Latency, Statistics};
use fusefs::mounts::{self, Mount};
use fusefs::status::Status;
use replicate::rpc::wire::shown;
use serde::Serialize;

use super::mount::{METRICS, READING};
use super::probe::{Probed, probe};
use super::umount::find;
use crate::failure::{Exit, Result};
use crate::terminal::Terminal;
use crate::terminal::output::{bytes, counted, fields, seconds};

/// Show the state of the mounts on this machine
///
/// The exit code is 7 if one does not answer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmfs status\n  vmfs status /mnt/vm --json")]
pub(crate) struct StatusCommand {
    /// Show only this mount
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    mountpoint: Option<PathBuf>,
}

/// A mount in the output.
#[derive(Debug, Serialize)]
pub(crate) struct MountView {
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
    pub(crate) fn run(&self, terminal: &Terminal) -> Result<Exit> {
        let mounts = match &self.mountpoint {
            Some(mountpoint) => vec![find(mountpoint)?],
            None => mounts::views()?,
        };
        let ask = |mount: Mount| {
            let probed = probe(&mount.mountpoint);
            view(mount, probed)
        };
        let views: Vec<_> = mounts.into_iter().map(ask).collect();
        let text = || views.iter().map(text).collect::<Vec<_>>().join("\n");
        match self.mountpoint {
            Some(_) => terminal.result(&views[0], text)?,
            None => terminal.result(&views, text)?,
        }
        let is_bad = views.iter().any(|view| ["dead", "hangs"].contains(&view.state));
        Ok(if is_bad { Exit::Unreachable } else { Exit::Done })
    }
}

/// A mount and what it answered.
pub(crate) fn view(mount: Mount, probed: Probed) -> MountView {
    let (state, detail, status) = match probed {
        Probed::Well(status) => ("mounted", None, Some(status)),
        Probed::Dead => ("dead", Some("its process was killed; `vmfs umount --force` removes it".to_owned()), None),
        Probed::Hangs => ("hangs", Some("it does not answer; `vmfs umount --force` removes it".to_owned()), None),
        Probed::Closed => {
            ("closed", Some("it belongs to another user, mounted without --allow-other".to_owned()), None)
        }
        Probed::Strange(said) => ("strange", Some(said), None),
    };
    MountView { mountpoint: mount.mountpoint, store: mount.source, state, detail, status }
}

/// A mount for people. Another user may serve it, so control characters are escaped.
pub(crate) fn text(view: &MountView) -> String {
    let state = view.detail.as_ref().map_or(view.state.to_owned(), |detail| format!("{}: {detail}", view.state));
    let mut lines = vec![("store", view.store.display().to_string()), ("state", state)];
    if let Some(status) = &view.status {
        lines.extend(served(status));
        // All metrics are for programs: people get those that say something to them.
        for (name, value) in status.more.iter().filter(|(name, _)| *name != METRICS) {
            match serde_json::from_value(value.clone()) {
                Ok(statistics) if name == READING => lines.extend(reading(&statistics)),
                _ => lines.push((name, value.to_string())),
            }
        }
    }
    let names: Vec<_> = lines.iter().map(|(name, _)| shown(name)).collect();
    let lines: Vec<_> = names.iter().zip(&lines).map(|(name, (_, value))| (name.as_str(), shown(value))).collect();
    format!("{}\n{}", shown(&view.mountpoint.display().to_string()), fields(&lines))
}

/// The view's counters.
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

/// The data path's statistics.
fn reading(of: &Statistics) -> [(&'static str, String); 4] {
    let looked_up = of.cache_hits.saturating_add(of.cache_misses).max(1);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::probe::understand;
    use super::*;

    #[test]
    fn whatever_a_mount_says_is_shown_without_controlling_the_terminal() {
        let status = json!({
            "version": "\u{1b}[2J", "pid": 1, "store": "/srv", "uptime_s": 1e300, "open_files": 1, "requests": {},
            "reading": { "cache_hits": u64::MAX, "cache_misses": u64::MAX }, "\u{1b}[2J": "\u{9b}2J",
        });
        for told in [status.to_string(), "\u{1b}[2J".to_owned()] {
            let [mountpoint, source] = ["/mnt/vm", "/srv/\u{1b}[2J"].map(Into::into);
            let mount = Mount { mountpoint, device: "0:53".to_owned(), kind: mounts::TYPE.to_owned(), source };
            let text = text(&view(mount, understand(&told, "")));
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        }
    }
}
