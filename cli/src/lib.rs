//! The programs `vmstore` and `vmfs`: parse the command line, call the libraries, print, and say how it went by the exit code.
//!
//! Nothing but a command's result goes to standard output; logs, errors and progress go to standard error.

mod access;
mod args;
mod commands;
mod context;
mod failure;
#[doc(hidden)]
pub mod fuzzing;
mod interrupt;
mod log_file;
mod logging;
mod memory;
mod output;
mod progress;
mod size;
mod snapshot_view;
mod vmfs;

use std::process::ExitCode;

use clap::Parser;
use indicatif::MultiProgress;
use replicate::rpc::transport::take_inherited;

use crate::args::Cli;
use crate::context::Context;
use crate::failure::Failure;
pub use crate::vmfs::vmfs;

/// The program `vmstore`.
pub fn vmstore() -> ExitCode {
    // SAFETY: the first thing of all, before there are other threads.
    let inherited = unsafe { take_inherited() };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return print_answer(&answer),
    };
    let console = MultiProgress::new();
    logging::start(&cli.global, &console, cli.command.is_background());
    let log_format = cli.global.log_format;
    let run = inherited.map_err(Failure::from).and_then(|inherited| {
        let context = Context::new(cli.global, console, inherited);
        commands::run(&context, &cli.command)
    });
    let exit = match run {
        Ok(exit) => exit,
        Err(failure) => failure.report("vmstore", log_format),
    };
    ExitCode::from(exit as u8)
}

/// Help, the version, or what is wrong with the command line.
fn print_answer(answer: &clap::Error) -> ExitCode {
    // Whoever closed the stream does not want to read it.
    let _ = answer.print();
    ExitCode::from(answer.exit_code() as u8)
}
