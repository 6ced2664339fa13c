//! The command line: global options and the commands. What a command takes is defined beside the command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::commands::{
    completions, diff, gc, hold, ingest, init, list, man, prune, reindex, remote, remove, repair, restore, serve, show,
    stats, token, transfer, verify,
};

/// A wait without end, which `Instant` can still count: 136 years.
const WAIT_SECONDS_MAX: &str = "4294967295";

const AFTER_HELP: &str = "\
Snapshots:
  A snapshot is named IMAGE or IMAGE@latest (the newest of the image) or IMAGE@TIME,
  where a unique beginning of the time is enough: web01@20261120.

Examples:
  vmstore --store /srv/vmstore init
  export VMSTORE_STORE=/srv/vmstore
  vmstore ingest web01.raw --image web01
  vmstore list
  vmstore restore web01@20261120 /var/lib/images/web01.raw
  vmstore prune --keep-daily 14 --keep-weekly 8 && vmstore gc

Exit codes:
    0  done, and durable
    1  failed
    2  the command line, or something it names, can't be right
    3  damage was found
    4  another process is using the store
    5  not found
    6  refused: a rule forbids it, and nothing was changed
    7  the other side can't be reached, or the connection was lost
    8  the other side does not allow it
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

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The store's directory
    #[arg(long, global = true, env = "VMSTORE_STORE", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no reports, progress or warnings; what was asked for, and errors, are still printed
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more; twice for even more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How logs and errors are written to standard error
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Whether to show progress on standard error: `auto` does on a terminal
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(crate) progress: ProgressMode,
    /// Open the store in this process alone, instead of through its owner beside everyone else
    #[arg(long, global = true, env = "VMSTORE_STANDALONE", value_parser = clap::builder::BoolishValueParser::new())]
    #[arg(action = ArgAction::SetTrue)]
    pub(crate) standalone: bool,
    /// How long an owner that a command starts waits for the next one
    #[arg(hide = true, long, global = true, env = "VMSTORE_IDLE_EXIT", value_name = "SECONDS")]
    pub(crate) idle_exit: Option<u64>,
    /// With --standalone: wait while another process uses the store, for at most this long if given
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = WAIT_SECONDS_MAX)]
    wait: Option<u32>,
}

impl Global {
    /// Those of a program that has fewer of them: the others are as if they had not been given.
    pub(crate) fn of(store: Option<PathBuf>, json: bool, quiet: bool, verbose: u8, log_format: LogFormat) -> Self {
        let (progress, standalone, idle_exit, wait) = (ProgressMode::Never, false, None, None);
        Self { store, json, quiet, verbose, log_format, progress, standalone, idle_exit, wait }
    }

    /// How long to wait for a store that is in use.
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_secs(self.wait.unwrap_or(0).into())
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// When progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// On a terminal
    Auto,
    /// Always; where there is no terminal, as a line a second
    Always,
    /// Never
    Never,
}

/// What to do.
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
    /// Whether the program runs as an owner that a command started.
    pub(crate) fn is_background(&self) -> bool {
        matches!(self, Self::Serve(serve) if serve.is_background())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn waiting() {
        let wait = |args: &[&str]| Cli::try_parse_from(args).unwrap().global.wait();
        assert_eq!(wait(&["vmstore", "list"]), Duration::ZERO);
        assert_eq!(wait(&["vmstore", "--wait=7", "list"]), Duration::from_secs(7));
        let endless = wait(&["vmstore", "list", "--wait", "web01"]);
        assert_eq!(endless, Duration::from_secs(u64::from(u32::MAX)));
        assert!(std::time::Instant::now().checked_add(endless).is_some());
    }
}
