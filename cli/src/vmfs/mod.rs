//! The program `vmfs`: its command line, and what its commands share.

mod background;
mod clone;
pub(crate) mod mount;
pub(crate) mod probe;
pub(crate) mod status;
mod umount;
mod upstream;

use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use indicatif::MultiProgress;

use crate::args::{Global, LogFormat};
use crate::commands::{completions, man};
use crate::context::Context;
use crate::failure::{Exit, Result};
use crate::{logging, print_answer};

const AFTER_HELP: &str = "\
Examples:
  vmfs mount /mnt/vm --store /srv/vmstore
  qemu-system-x86_64 -drive file=/mnt/vm/snapshots/web01/latest.raw,format=raw,snapshot=on ...
  vmfs status
  vmfs umount /mnt/vm

Files of a mount:
  snapshots/IMAGE/TIME.raw    a snapshot's bytes, as they were
  snapshots/IMAGE/latest.raw  leads to the newest of the image
  clones/NAME.raw             a disk that can be written

Exit codes:
    0  done
    1  failed
    2  the command line, or something it names, can't be right
    3  damage was found
    4  in use
    5  not found
    6  refused: a rule forbids it, and nothing was changed
    7  what is asked does not answer
    8  not allowed
  130  interrupted";

/// Shows the snapshots of a store as files, and writable clones of them.
#[derive(Debug, Parser)]
#[command(name = "vmfs", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: VmfsGlobal,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct VmfsGlobal {
    /// The store's directory
    #[arg(long, global = true, env = "VMSTORE_STORE", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    store: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Print no reports or warnings; what was asked for, and errors, are still printed
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Log more; twice for even more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// How logs and errors are written to standard error
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// How long an owner that a command starts waits for the next one
    #[arg(hide = true, long, global = true, env = "VMSTORE_IDLE_EXIT", value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// Set for the process that a command leaves in the background
    #[arg(hide = true, long = background::FLAG)]
    in_background: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Mount),
    Umount(umount::Umount),
    Status(status::StatusCommand),
    Clone(clone::CloneCommand),
    /// Print a script that completes vmfs's command line in a shell
    #[command(after_help = "Example:\n  vmfs completions bash > /etc/bash_completion.d/vmfs")]
    Completions(completions::Completions),
    /// Print the manual page, or write one for each command
    #[command(after_help = "Examples:\n  vmfs man | man -l -\n  vmfs man --dir /usr/local/share/man/man1")]
    Man(man::Man),
}

/// The program `vmfs`.
pub fn vmfs() -> ExitCode {
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return print_answer(&answer),
    };
    let (in_background, log_format) = (global.in_background, global.log_format);
    let console = MultiProgress::new();
    let global = global.into();
    logging::start(&global, &console, in_background);
    // Its runtime would wait for reads of what can't be reached.
    let context = ManuallyDrop::new(Context::new(global, console, Vec::new()));
    let exit = match run(&context, &command, in_background) {
        Ok(exit) => exit,
        Err(failure) if in_background => background::tell_starter(&failure),
        Err(failure) => failure.report("vmfs", log_format),
    };
    ExitCode::from(exit as u8)
}

fn run(context: &Context, command: &Command, in_background: bool) -> Result<Exit> {
    match command {
        Command::Mount(args) => args.run(context, in_background),
        Command::Umount(args) => args.run(context),
        Command::Status(args) => args.run(context),
        Command::Clone(args) => args.run(context),
        Command::Completions(args) => args.write(Cli::command()),
        Command::Man(args) => args.write(Cli::command()),
    }
}

impl From<VmfsGlobal> for Global {
    fn from(global: VmfsGlobal) -> Self {
        let VmfsGlobal { store, json, quiet, verbose, log_format, idle_exit, .. } = global;
        let mut all = Self::of(store, json, quiet, verbose, log_format);
        all.idle_exit = idle_exit;
        all
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
