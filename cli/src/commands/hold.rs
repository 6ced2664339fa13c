//! `vmstore hold` and `vmstore release`: whether snapshots may be removed and pruned.

use chunkstore::catalog::{DEFAULT_HOLD, Selector, State};
use clap::Args;
use replicate::rpc::wire::Job;

use super::resolve;
use crate::connector::{Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::snapshot_view::SnapshotView;
use crate::terminal::Terminal;

/// Hold a snapshot: it is neither removed nor pruned until it is released
///
/// A snapshot may be held for several reasons, and each has to be released.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmstore hold web01@20261120 --reason 'audit 2026'")]
pub(crate) struct Hold {
    /// Which one: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
    /// Why
    #[arg(long, default_value = DEFAULT_HOLD)]
    reason: String,
}

/// Release a snapshot that is held
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// Which one: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
    /// The reason that it was held for
    #[arg(long, default_value = DEFAULT_HOLD)]
    reason: String,
    /// Release it whatever it is held for
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
                format!("{name} is not held any more\n")
            }
        })?;
        Ok(Exit::Done)
    }
}

fn reasons(state: &State) -> String {
    state.holds.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
