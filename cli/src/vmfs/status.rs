//! `vmfs status`: how mounts are doing.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use fusefs::mounts::{self, Mount};
use fusefs::status::Status;
use serde::Serialize;

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
    let mut lines = vec![("store", view.store.display().to_string())];
    lines.push((
        "state",
        view.detail.as_ref().map_or(view.state.to_owned(), |detail| format!("{}: {detail}", view.state)),
    ));
    if let Some(status) = &view.status {
        lines
            .push(("process", format!("{}, version {}, for {}", status.pid, status.version, seconds(status.uptime_s))));
        lines.push(("open", counted(status.open_files, "file")));
        let requests = &status.requests;
        lines.push(("read", format!("{} in {}", bytes(requests.read_bytes), counted(requests.reads, "request"))));
        lines
            .push(("written", format!("{} in {}", bytes(requests.written_bytes), counted(requests.writes, "request"))));
        lines.push(("failed", counted(requests.failures, "request")));
        lines.extend(status.more.iter().map(|(name, value)| (name.as_str(), value.to_string())));
    }
    format!("{}\n{}", view.mountpoint.display(), fields(&lines))
}
