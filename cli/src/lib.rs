//! The programs `vmstore` and `vmfs`: parse the command line, call the libraries, print, and end with an exit
//! code.
//!
//! Only a command's result goes to standard output; logs, errors and progress go to standard error.

mod args;
mod commands;
mod connector;
mod failure;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzzing;
mod options;
mod process_limits;
mod random;
mod size;
mod snapshot_view;
mod terminal;
mod vmfs;

use std::process::ExitCode;

use clap::Parser;
use indicatif::MultiProgress;
use replicate::rpc::transport::take_inherited;

use crate::args::Cli;
use crate::connector::Connector;
use crate::failure::Failure;
use crate::terminal::interrupt::Interrupt;
use crate::terminal::output::print_answer;
use crate::terminal::{Terminal, logging};
pub use crate::vmfs::vmfs;

/// The program `vmstore`.
pub fn vmstore() -> ExitCode {
    // SAFETY: the first thing of all, before there are other threads.
    let inherited = unsafe { take_inherited() };
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return print_answer(&answer),
    };
    let console = MultiProgress::new();
    logging::start(&global.common, &console, command.is_background());
    let log_format = global.common.log_format;
    let interrupt = Interrupt::new();
    let terminal = Terminal::new(&global, console, interrupt.clone());
    let run = inherited
        .map_err(Failure::from)
        .and_then(|inherited| command.run(&Connector::new(global, interrupt, inherited), &terminal));
    let exit = match run {
        Ok(exit) => exit,
        Err(failure) => failure.report("vmstore", log_format),
    };
    ExitCode::from(exit as u8)
}
