//! The program `vmfs`.

use std::process::ExitCode;

use clap::Parser;

/// Shows the snapshots of a store as files, and writable clones of them.
#[derive(Debug, Parser)]
#[command(name = "vmfs", version, max_term_width = 110)]
struct Cli {}

/// The program `vmfs`.
pub fn vmfs() -> ExitCode {
    Cli::parse();
    ExitCode::SUCCESS
}
