//! `vmstore hold` and `vmstore release`: whether snapshots may be removed and pruned.

use chunkstore::catalog::{DEFAULT_HOLD, Snapshot, State};
use chunkstore::name::Selector;
use chunkstore::{Error, store::Store};
use clap::Args;

use super::resolve;
use crate::context::{Context, Purpose};
use crate::failure::{Exit, Result};
use crate::snapshot_view::SnapshotView;

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
    pub(crate) fn run(&self, context: &Context) -> Result<Exit> {
        let store = context.open(Purpose::Use)?;
        let snapshot = change(&store, &self.snapshot, |_, state| state.hold(&self.reason).map(drop))?;
        context.output().report(&SnapshotView::new(&snapshot), || {
            format!("{} is held: {}\n", snapshot.name(), reasons(&snapshot.state))
        })?;
        Ok(Exit::Done)
    }
}

impl Release {
    pub(crate) fn run(&self, context: &Context) -> Result<Exit> {
        let store = context.open(Purpose::Use)?;
        let snapshot = change(&store, &self.snapshot, |name, state| self.release(name, state))?;
        context.output().report(&SnapshotView::new(&snapshot), || {
            let name = snapshot.name();
            if snapshot.state.is_held() {
                format!("{name} is still held: {}\n", reasons(&snapshot.state))
            } else {
                format!("{name} is not held any more\n")
            }
        })?;
        Ok(Exit::Done)
    }

    fn release(&self, name: &str, state: &mut State) -> chunkstore::Result<()> {
        if !state.is_held() {
            return Err(Error::not_found(format!("a hold of snapshot {name}")));
        }
        if self.all {
            state.holds.clear();
        } else if !state.release(&self.reason) {
            let (reason, others) = (&self.reason, reasons(state));
            return Err(Error::not_found(format!("hold {reason:?} of snapshot {name} (it is held: {others})")));
        }
        Ok(())
    }
}

/// Changes a snapshot's state, durably.
fn change(
    store: &Store,
    selector: &Selector,
    change: impl FnOnce(&str, &mut State) -> chunkstore::Result<()>,
) -> Result<Snapshot> {
    let name = resolve::snapshot(store.catalog(), selector)?;
    let mut snapshot = store.catalog().read(&name)?;
    let before = snapshot.state.clone();
    change(&name.to_string(), &mut snapshot.state)?;
    if snapshot.state != before {
        store.catalog().rewrite(&snapshot)?;
    }
    Ok(snapshot)
}

fn reasons(state: &State) -> String {
    state.holds.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
