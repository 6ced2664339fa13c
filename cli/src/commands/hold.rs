//! `vmstore hold` and `vmstore release`: protect snapshots from removal and pruning.

use chunkstore::catalog::{DEFAULT_HOLD, Selector, State};
use clap::Args;
use replicate::rpc::wire::Job;

use super::resolve;
use crate::connector::{Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::snapshot_view::SnapshotView;
use crate::terminal::Terminal;

/// Hold a snapshot: until it is released, it can't be removed or pruned
///
/// A snapshot can be held for several reasons; each is released separately.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmstore hold web01@20261120 --reason 'audit 2026'")]
pub(crate) struct Hold {
    /// The snapshot: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
    /// Reason for the hold
    #[arg(long, default_value = DEFAULT_HOLD)]
    reason: String,
}

/// Release a snapshot that is held
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The snapshot: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
    /// Reason to release
    #[arg(long, default_value = DEFAULT_HOLD)]
    reason: String,
    /// Release all holds
    #[arg(long, conflicts_with = "reason")]
    all: bool,
}

impl Hold {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let snapshot = connector.with_store(Purpose::Use, |store| {
            let snapshot = resolve::snapshot(store.catalog(), &self.snapshot)?.to_string();
            Ok(store.run_on_snapshot(&Job::Hold { snapshot, reason: self.reason.clone() })?)
        })?;
        terminal.report(&SnapshotView::new(&snapshot), || {
            format!("{} is held: {}\n", snapshot.name(), reasons(&snapshot.state))
        })?;
        Ok(Exit::Done)
    }
}

impl Release {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let snapshot = connector.with_store(Purpose::Use, |store| {
            let snapshot = resolve::snapshot(store.catalog(), &self.snapshot)?.to_string();
            let reason = (!self.all).then(|| self.reason.clone());
            Ok(store.run_on_snapshot(&Job::Release { snapshot, reason })?)
        })?;
        terminal.report(&SnapshotView::new(&snapshot), || {
            let name = snapshot.name();
            if snapshot.state.is_held() {
                format!("{name} is still held: {}\n", reasons(&snapshot.state))
            } else {
                format!("{name} is no longer held\n")
            }
        })?;
        Ok(Exit::Done)
    }
}

fn reasons(state: &State) -> String {
    state.holds.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
