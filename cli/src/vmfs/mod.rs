//! The program `vmfs`: its command line, and its commands, a file each.
//!
//! `background` leaves a mount behind in a process of its own; `probe` asks a mount that may hang. Imports `connector`
//! and `terminal`, and from `commands` what both programs have.

mod background;
mod clone;
pub(crate) mod mount;
pub(crate) mod probe;
pub(crate) mod status;
mod umount;
mod upstream;

use std::mem::ManuallyDrop;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use indicatif::MultiProgress;

use crate::commands::{completions, man};
use crate::connector::Connector;
use crate::failure::{Exit, Result};
use crate::options::{Common, Global};
use crate::terminal::interrupt::Interrupt;
use crate::terminal::output::print_answer;
use crate::terminal::{Terminal, logging};

const AFTER_HELP: &str = "\
Examples:
  vmfs mount /mnt/vm --store /srv/vmstore
  qemu-system-x86_64 -drive file=/mnt/vm/snapshots/web01/latest.raw,format=raw,snapshot=on ...
  vmfs status
  vmfs umount /mnt/vm

Files of a mount:
  snapshots/IMAGE/TIME.raw    a snapshot, read-only
  snapshots/IMAGE/latest.raw  a link to the newest snapshot of the image
  clones/NAME.raw             a clone, writable

Exit codes:
    0  success
    1  failed
    2  invalid command line or input
    3  damage was found
    4  in use
    5  not found
    6  refused by a rule; nothing was changed
    7  a mount or a store does not answer
    8  not permitted
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

/// The global options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct VmfsGlobal {
    #[command(flatten)]
    common: Common,
    /// Set for the process that a command leaves in the background
    #[arg(hide = true, long = background::FLAG)]
    in_background: bool,
}

/// The commands.
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
    let Cli { global: VmfsGlobal { common, in_background }, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return print_answer(&answer),
    };
    let log_format = common.log_format;
    let console = MultiProgress::new();
    logging::start(&common, &console, in_background);
    let global = Global::of(common);
    let interrupt = Interrupt::new();
    let terminal = Terminal::new(&global, console, interrupt.clone());
    // Its runtime would wait for reads of what can't be reached.
    let connector = ManuallyDrop::new(Connector::new(global, interrupt, Vec::new()));
    let exit = match run(&connector, &terminal, &command, in_background) {
        Ok(exit) => exit,
        Err(failure) if in_background => background::tell_starter(&failure),
        Err(failure) => failure.report("vmfs", log_format),
    };
    ExitCode::from(exit as u8)
}

fn run(connector: &Connector, terminal: &Terminal, command: &Command, in_background: bool) -> Result<Exit> {
    match command {
        Command::Mount(args) => args.run(connector, in_background),
        Command::Umount(args) => args.run(),
        Command::Status(args) => args.run(terminal),
        Command::Clone(args) => args.run(connector, terminal),
        Command::Completions(args) => args.run(Cli::command()),
        Command::Man(args) => args.run(Cli::command()),
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
