//! `vmstore completions`: scripts that let shells complete the command line.

use clap::Args;
use clap_complete::Shell;

use crate::failure::{Exit, Result};
use crate::terminal::output::print;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmstore completions bash > /etc/bash_completion.d/vmstore")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script for a program.
    pub(crate) fn run(&self, mut program: clap::Command) -> Result<Exit> {
        let mut script = Vec::new();
        let name = program.get_name().to_owned();
        clap_complete::generate(self.shell, &mut program, name, &mut script);
        print(&script)?;
        Ok(Exit::Done)
    }
}
