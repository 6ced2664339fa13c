//! `vmstore remove`: removes snapshots.

use chunkstore::Progress;
use chunkstore::catalog::{Catalog, Selector, SnapshotName};
use clap::Args;
use replicate::rpc::wire::Job;
use serde_json::json;

use super::resolve;
use crate::connector::{Access, Connector, Purpose};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::Terminal;

/// Remove snapshots; `vmstore gc` then frees what no other snapshot needs
///
/// All are looked up before the first is removed; if one is missing or held, none is removed. IMAGE alone is its newest
/// snapshot, not all of them.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmstore remove web01@20261119 web01@20261120")]
pub(crate) struct Remove {
    /// The snapshots: IMAGE, IMAGE@latest or IMAGE@TIME
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<Selector>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Remove {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let removed = if self.dry_run {
            self.chosen(&connector.catalog()?.1)?
        } else {
            let store = connector.access(Purpose::ReclaimSpace)?;
            let chosen = self.chosen(store.catalog())?;
            chosen.iter().try_for_each(|name| remove(&store, name))?;
            chosen
        };
        let names: Vec<_> = removed.iter().map(ToString::to_string).collect();
        let verb = if self.dry_run { "would remove" } else { "removed" };
        terminal.report(&json!({ "dry_run": self.dry_run, "removed": names }), || {
            let lines: Vec<_> = names.iter().map(|name| format!("{verb} {name}\n")).collect();
            lines.concat()
        })?;
        Ok(Exit::Done)
    }

    /// The selected snapshots, none of which is held.
    fn chosen(&self, catalog: &Catalog) -> Result<Vec<SnapshotName>> {
        let names = resolve::snapshots(catalog, &self.snapshots)?;
        for name in &names {
            let state = catalog.read(name)?.state;
            if state.is_held() {
                let holds: Vec<_> = state.holds.iter().map(String::as_str).collect();
                return Err(Failure::refused(format!(
                    "snapshot {name} is held ({}); nothing was removed",
                    holds.join(", ")
                ))
                .hint(format!("`vmstore release {name} --all` releases it")));
            }
        }
        Ok(names)
    }
}

/// Removes a snapshot, durably.
pub(crate) fn remove(store: &Access, name: &SnapshotName) -> chunkstore::Result<()> {
    store.run(&Job::Remove { snapshot: name.to_string() }, &Progress::default())
}
