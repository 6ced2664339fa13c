//! Shows the snapshots of a store as files, and writable clones of them.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::vmfs()
}
