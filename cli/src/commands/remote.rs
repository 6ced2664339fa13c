//! `vmstore remote`: names for other stores.

use std::num::{NonZeroU32, NonZeroU64};

use clap::{Args, Subcommand};
use replicate::remotes::{Remote, Remotes};
use replicate::rpc::address::Address;
use serde::Serialize;

use crate::connector::{Connector, RemoteArgs, check_rate};
use crate::failure::{Exit, Result};
use crate::terminal::Terminal;
use crate::terminal::output::table;

/// Manage names of other stores to push to and pull from
#[derive(Debug, Args)]
pub(crate) struct RemoteCommand {
    #[command(subcommand)]
    action: Action,
}

/// The actions on remotes.
#[derive(Debug, Subcommand)]
enum Action {
    /// Add a name for a store, with what is needed to reach it
    Add(Box<Add>),
    /// List the named stores
    List,
    /// Remove a name
    Remove {
        /// The name to remove
        name: String,
    },
}

/// The arguments of `remote add`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  vmstore remote add site-b tls://b.example:7878 --pin sha256:… --token-file /etc/vmstore/site-b"
)]
struct Add {
    /// Name of the store
    name: String,
    /// Address: a path, unix:PATH, ssh://… or tls://…
    address: Address,
    #[command(flatten)]
    access: RemoteArgs,
    /// Limit transfers to this many bytes per second, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_positive)]
    limit_rate: Option<NonZeroU64>,
    /// Number of connections
    #[arg(long, value_name = "N")]
    streams: Option<NonZeroU32>,
}

/// A line of the list.
#[derive(Serialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    remote: Remote,
}

impl RemoteCommand {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let remotes = Remotes::new(connector.store_dir()?);
        match &self.action {
            Action::Add(add) => {
                check_rate(&add.address, add.limit_rate)?;
                let remote = Remote {
                    limit_rate_bytes_per_s: add.limit_rate,
                    streams: add.streams,
                    ..add.access.remote(add.address.clone())
                };
                remotes.add(&add.name, remote)?;
            }
            Action::Remove { name } => remotes.remove(name)?,
            Action::List => list(terminal, &remotes)?,
        }
        Ok(Exit::Done)
    }
}

fn list(terminal: &Terminal, remotes: &Remotes) -> Result<()> {
    let lines: Vec<_> = remotes.list()?.into_iter().map(|(name, remote)| Line { name, remote }).collect();
    terminal.result(&lines, || {
        let row = |line: &Line| [line.name.clone(), line.remote.address.to_string()];
        table(["NAME", "ADDRESS"], &[], lines.iter().map(row).collect())
    })
}
