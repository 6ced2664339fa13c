//! The command line of `vmstore`: its commands, and the call that runs each. A command's arguments are in its own file.

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    completions, diff, gc, hold, ingest, init, list, man, prune, reindex, remote, remove, repair, restore, serve, show,
    stats, token, transfer, verify,
};
use crate::connector::Connector;
use crate::failure::{Exit, Result};
use crate::options::Global;
use crate::terminal::Terminal;

const AFTER_HELP: &str = "\
Snapshots:
  IMAGE or IMAGE@latest is the newest snapshot of an image, IMAGE@TIME a certain one.
  A unique beginning of the time is enough: web01@20261120.

Examples:
  vmstore --store /srv/vmstore init
  export VMSTORE_STORE=/srv/vmstore
  vmstore ingest web01.raw --image web01
  vmstore list
  vmstore restore web01@20261120 /var/lib/images/web01.raw
  vmstore prune --keep-daily 14 --keep-weekly 8 && vmstore gc

Exit codes:
    0  success; all changes are durable
    1  failed
    2  invalid command line or input
    3  damage was found
    4  the store is in use by another process
    5  not found
    6  refused by a rule; nothing was changed
    7  unreachable, or the connection was lost
    8  not permitted by the other side
  130  interrupted";

/// Keeps snapshots of virtual machine images, deduplicated and compressed.
#[derive(Debug, Parser)]
#[command(name = "vmstore", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::Init),
    Ingest(ingest::Ingest),
    List(list::List),
    Show(show::Show),
    Restore(restore::Restore),
    Diff(diff::Diff),
    Verify(verify::Verify),
    Remove(remove::Remove),
    Hold(hold::Hold),
    Release(hold::Release),
    Prune(prune::Prune),
    Gc(gc::Gc),
    Stats(stats::Stats),
    Reindex(reindex::Reindex),
    Repair(Box<repair::Repair>),
    Push(transfer::Push),
    Pull(transfer::Pull),
    Remote(remote::RemoteCommand),
    Serve(serve::Serve),
    Token(token::TokenCommand),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        match self {
            Self::Init(args) => args.run(connector, terminal),
            Self::Ingest(args) => args.run(connector, terminal),
            Self::List(args) => args.run(connector, terminal),
            Self::Show(args) => args.run(connector, terminal),
            Self::Restore(args) => args.run(connector, terminal),
            Self::Diff(args) => args.run(connector, terminal),
            Self::Verify(args) => args.run(connector, terminal),
            Self::Remove(args) => args.run(connector, terminal),
            Self::Hold(args) => args.run(connector, terminal),
            Self::Release(args) => args.run(connector, terminal),
            Self::Prune(args) => args.run(connector, terminal),
            Self::Gc(args) => args.run(connector, terminal),
            Self::Stats(args) => args.run(connector, terminal),
            Self::Reindex(args) => args.run(connector, terminal),
            Self::Repair(args) => args.run(connector, terminal),
            Self::Push(args) => args.run(connector, terminal),
            Self::Pull(args) => args.run(connector, terminal),
            Self::Remote(args) => args.run(connector, terminal),
            Self::Serve(args) => args.run(connector),
            Self::Token(args) => args.run(connector, terminal),
            Self::Completions(args) => args.run(Cli::command()),
            Self::Man(args) => args.run(Cli::command()),
        }
    }

    /// Whether the program runs as an owner that a command started.
    pub(crate) fn is_background(&self) -> bool {
        matches!(self, Self::Serve(serve) if serve.is_background())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
