//! `vmstore show`: the details of one snapshot.

use chunkstore::catalog::Selector;
use clap::Args;

use super::resolve;
use crate::connector::Connector;
use crate::failure::{Exit, Result};
use crate::snapshot_view::SnapshotView;
use crate::terminal::Terminal;

/// Show the details of a snapshot; works while the store is in use
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The snapshot: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
}

impl Show {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let (_, catalog) = connector.catalog()?;
        let snapshot = catalog.read(&resolve::snapshot(&catalog, &self.snapshot)?)?;
        let view = SnapshotView::new(&snapshot);
        terminal.result(&view, || view.description())?;
        Ok(Exit::Done)
    }
}
