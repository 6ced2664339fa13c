//! The program `vmstore`: parses the command line, calls the library, prints, and says how it went by its exit code.
//!
//! Nothing but a command's result goes to standard output; logs, errors and progress go to standard error.

mod args;
mod commands;
mod context;
mod failure;
mod interrupt;
mod logging;
mod output;
mod progress;
mod snapshot_view;

use std::process::ExitCode;

use clap::Parser;
use indicatif::MultiProgress;

use crate::args::Cli;
use crate::context::Context;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return print_answer(&answer),
    };
    let console = MultiProgress::new();
    logging::start(&cli.global, &console);
    let log_format = cli.global.log_format;
    let context = Context::new(cli.global, console);
    let exit = match commands::run(&context, &cli.command) {
        Ok(exit) => exit,
        Err(failure) => failure.report(log_format),
    };
    ExitCode::from(exit as u8)
}

/// Help, the version, or what is wrong with the command line.
fn print_answer(answer: &clap::Error) -> ExitCode {
    // Whoever closed the stream does not want to read it.
    let _ = answer.print();
    ExitCode::from(answer.exit_code() as u8)
}
