//! `vmstore show`: all about one snapshot.

use chunkstore::catalog::name::Selector;
use clap::Args;

use super::resolve;
use crate::context::Context;
use crate::failure::{Exit, Result};
use crate::snapshot_view::SnapshotView;

/// Show all about a snapshot; works while the store is in use
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Which one: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
}

impl Show {
    pub(crate) fn run(&self, context: &Context) -> Result<Exit> {
        let (_, catalog) = context.catalog()?;
        let snapshot = catalog.read(&resolve::snapshot(&catalog, &self.snapshot)?)?;
        let view = SnapshotView::new(&snapshot);
        context.output().result(&view, || view.description())?;
        Ok(Exit::Done)
    }
}
