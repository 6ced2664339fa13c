//! `vmstore reindex`: rebuilds the index.

use clap::Args;
use serde_json::json;

use crate::connector::{Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::terminal::Terminal;
use crate::terminal::output::counted;

/// Rebuild the index from the packs
///
/// Rarely needed: a missing, damaged or outdated index is detected and rebuilt when the store is opened.
#[derive(Debug, Args)]
pub(crate) struct Reindex {}

impl Reindex {
    #[expect(clippy::unused_self, reason = "all commands are called alike")]
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let done = connector.reindex(Purpose::ReclaimSpace)?;
        let damaged = done.damaged_packs;
        let json = json!({ "packs": done.packs, "records": done.records, "damaged_packs": damaged });
        terminal.report(&json, || {
            let found = if damaged == 0 { String::new() } else { format!("; {} damaged", counted(damaged, "pack")) };
            format!("indexed {} in {}{found}\n", counted(done.records, "record"), counted(done.packs, "pack"))
        })?;
        Ok(if damaged == 0 { Exit::Done } else { Exit::DamageFound })
    }
}
