//! The commands of `vmstore`, a file each: its arguments, its calls of the library, its output.
//!
//! `completions`, `man` and `resolve` serve `vmfs` as well. Imports `connector` and `terminal`; does not know the whole
//! command line, which `args` makes of them.

pub(crate) mod completions;
pub(crate) mod diff;
pub(crate) mod gc;
pub(crate) mod hold;
pub(crate) mod ingest;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod prune;
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

/// A format of image files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The plain bytes of the disk
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}
