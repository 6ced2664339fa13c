//! Keeps snapshots of virtual machine images, deduplicated and compressed.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::vmstore()
}
