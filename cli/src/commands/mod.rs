//! The commands, a file each: what one takes, what it asks of the library, what it prints.

pub(crate) mod completions;
pub(crate) mod diff;
pub(crate) mod gc;
pub(crate) mod hold;
pub(crate) mod ingest;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod prune;
mod qcow2;
pub(crate) mod reindex;
pub(crate) mod remote;
pub(crate) mod remove;
pub(crate) mod repair;
pub(crate) mod resolve;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod show;
pub(crate) mod stats;
pub(crate) mod token;
pub(crate) mod transfer;
pub(crate) mod verify;

use clap::ValueEnum;

use crate::args::Command;
use crate::context::Context;
use crate::failure::{Exit, Result};

/// Runs a command.
pub(crate) fn run(context: &Context, command: &Command) -> Result<Exit> {
    match command {
        Command::Init(args) => args.run(context),
        Command::Ingest(args) => args.run(context),
        Command::List(args) => args.run(context),
        Command::Show(args) => args.run(context),
        Command::Restore(args) => args.run(context),
        Command::Diff(args) => args.run(context),
        Command::Verify(args) => args.run(context),
        Command::Remove(args) => args.run(context),
        Command::Hold(args) => args.run(context),
        Command::Release(args) => args.run(context),
        Command::Prune(args) => args.run(context),
        Command::Gc(args) => args.run(context),
        Command::Stats(args) => args.run(context),
        Command::Reindex(args) => args.run(context),
        Command::Repair(args) => args.run(context),
        Command::Push(args) => args.run(context),
        Command::Pull(args) => args.run(context),
        Command::Remote(args) => args.run(context),
        Command::Serve(args) => args.run(context),
        Command::Token(args) => args.run(context),
        Command::Completions(args) => args.run(context),
        Command::Man(args) => args.run(context),
    }
}

/// A format of image files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The disk's bytes as they are
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}
