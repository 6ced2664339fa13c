//! `vmstore man`: the manual.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use crate::failure::{Exit, Failure, Result};
use crate::terminal::output::print;

/// Print the manual page, or write the pages of all commands
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmstore man | man -l -\n  vmstore man --dir /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the manual of a program.
    pub(crate) fn run(&self, program: clap::Command) -> Result<Exit> {
        match &self.dir {
            Some(dir) => write_pages(program, dir)?,
            None => print(&page(program)?)?,
        }
        Ok(Exit::Done)
    }
}

fn page(program: clap::Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(program).render(&mut page);
    rendered.map_err(|error| Failure::io("writing", "the manual", error))?;
    Ok(page)
}

fn write_pages(program: clap::Command, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| Failure::io("creating", dir, error))?;
    clap_mangen::generate_to(program, dir).map_err(|error| Failure::io("writing to", dir, error))
}
