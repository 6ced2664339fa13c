//! `vmfs umount`: ends a mount.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chunkstore::Error;
use clap::{Args, ValueHint};
use fusefs::mounts::{self, Unmounted};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::probe::{Probed, probe};
use crate::failure::{Exit, Failure, Result};

/// Writes to clones are durable within this time.
const ENDS_WITHIN: Duration = Duration::from_mins(1);
/// Most users of a mount to name.
const NAMED_MAX: usize = 10;

/// Unmount
///
/// Writes to clones are durable when the command returns.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmfs umount /mnt/vm")]
pub(crate) struct Umount {
    /// The mount point
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    mountpoint: PathBuf,
    /// Unmount while in use, and clean up after a crash; pending requests fail
    #[arg(long)]
    force: bool,
}

impl Umount {
    pub(crate) fn run(&self) -> Result<Exit> {
        let mount = find(&self.mountpoint)?;
        let probed = probe(&mount.mountpoint);
        if self.force {
            mount.force()?;
        } else {
            match (&probed, mount.unmount()?) {
                (_, Unmounted::Gone) => {}
                (_, Unmounted::Busy) => return Err(busy(&mount.mountpoint)),
            }
        }
        if let Probed::Well(status) = probed {
            await_end(status.pid);
        }
        Ok(Exit::Done)
    }
}

/// The view that is mounted there.
pub(crate) fn find(mountpoint: &Path) -> Result<mounts::Mount> {
    let mount = mounts::at(mountpoint)?.filter(|mount| mount.kind == mounts::TYPE);
    mount.ok_or_else(|| {
        let failure = Failure::from(Error::not_found(format!("a mount of vmfs at {}", mountpoint.display())));
        failure.hint("`vmfs status` lists them")
    })
}

fn busy(mountpoint: &Path) -> Failure {
    let users = users(mountpoint);
    let by = if users.is_empty() { "another process".to_owned() } else { users.join(", ") };
    let failure = Failure::from(Error::busy(mountpoint.display().to_string(), by));
    failure.hint("`vmfs umount --force` unmounts while in use")
}

/// The processes that use something below a directory, as far as this user may know.
fn users(mountpoint: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // This process inherits its open files from the one that started it.
    let users: BTreeSet<_> = pids.filter(|pid| *pid != std::process::id() && uses(*pid, mountpoint)).collect();
    users.into_iter().take(NAMED_MAX).map(named).collect()
}

fn uses(pid: u32, mountpoint: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let lies_below = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    ["cwd", "root", "exe"].iter().any(|link| lies_below(&proc.join(link)))
        || ["fd", "map_files"].iter().any(|dir| {
            fs::read_dir(proc.join(dir))
                .is_ok_and(|links| links.filter_map(Result::ok).any(|link| lies_below(&link.path())))
        })
}

fn named(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", name.trim())
}

/// Waits until the process that served a mount has ended.
fn await_end(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let limit = Timespec { tv_sec: ENDS_WITHIN.as_secs() as i64, tv_nsec: 0 };
    let ended = rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
    if !matches!(ended, Ok(1)) {
        tracing::warn!("process {} has not ended: writes to clones may not be durable yet", pid.as_raw_nonzero());
    }
}
