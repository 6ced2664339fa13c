//! `vmstore restore`: writes a snapshot out.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use chunkstore::catalog::{Lease, Selector, Snapshot};
use chunkstore::restore::{self, RestoreOptions, RestoreReport};
use clap::{Args, ValueHint};
use serde::Serialize;

use super::{ImageFormat, resolve};
use crate::connector::{self, Access, Connector, Purpose};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::output::{STDOUT, bytes, seconds};
use crate::terminal::{Terminal, Unit};

/// The destination that is standard output.
const STREAM: &str = "-";

const AFTER_HELP: &str = "\
Examples:
  vmstore restore web01 /var/lib/images/web01.raw
  vmstore restore web01@20261120 /dev/vg0/web01 --force
  vmstore restore web01@20261120 web01.qcow2
  vmstore restore web01 - | ssh hv8 'cat > web01.raw'";

/// Write a snapshot to a file, a block device or standard output; every byte is verified
///
/// A file becomes sparse, and appears whole or not at all. The bytes are on disk when the command returns. Standard
/// output gets the whole image, zeros included, and nothing else.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Restore {
    /// The snapshot: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
    /// The destination: a file, a block device, or - for standard output
    #[arg(value_name = "DEST", value_hint = ValueHint::AnyPath)]
    dest: PathBuf,
    /// Replace an existing file, or write to a block device
    #[arg(long)]
    force: bool,
    /// Return before the bytes are on disk, as `cp` does
    #[arg(long)]
    no_sync: bool,
    /// Format to write; qcow2 needs `qemu-img` [default: qcow2 for the suffix .qcow2, else raw]
    #[arg(long, value_enum)]
    format: Option<ImageFormat>,
    /// Threads that decode and verify [default: from config.toml, else one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// The report as JSON.
#[derive(Serialize)]
struct Report<'a> {
    snapshot: String,
    dest: &'a Path,
    format: &'a str,
    #[serde(flatten)]
    done: RestoreReport,
}

impl Restore {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let format = self.format();
        if self.dest.as_os_str() == STREAM {
            return self.to_stream(connector, terminal, format);
        }
        if format == ImageFormat::Qcow2 {
            restore::check_qcow2(&self.dest, self.force)?;
        }
        connector.with_store(Purpose::Use, |store| {
            let (_lease, snapshot) = self.snapshot(store)?;
            let report = self.to_file(terminal, store, &snapshot, format)?;
            self.report(terminal, &snapshot, format, report)?;
            Ok(Exit::Done)
        })
    }

    fn format(&self) -> ImageFormat {
        let suffix = self.dest.extension().filter(|suffix| suffix.eq_ignore_ascii_case("qcow2"));
        self.format.unwrap_or(if suffix.is_some() { ImageFormat::Qcow2 } else { ImageFormat::Raw })
    }

    fn snapshot(&self, store: &Access) -> Result<(Option<Lease>, Snapshot)> {
        let name = resolve::snapshot(store.catalog(), &self.snapshot)?;
        let (lease, snapshot) = store.read(&name)?;
        snapshot.check_whole()?;
        Ok((lease, snapshot))
    }

    fn options(&self, store: &Access) -> RestoreOptions {
        let threads = connector::threads(self.threads, store.config());
        RestoreOptions { force: self.force, sync: !self.no_sync, threads }
    }

    fn to_file(
        &self,
        terminal: &Terminal,
        store: &Access,
        snapshot: &Snapshot,
        format: ImageFormat,
    ) -> Result<RestoreReport> {
        let options = self.options(store);
        let write = match format {
            ImageFormat::Raw => restore::restore,
            ImageFormat::Qcow2 => restore::restore_to_qcow2,
        };
        let label = format!("restore {}", snapshot.name());
        let report = terminal.watch(&label, Unit::Bytes, |progress| {
            write(store.source(), snapshot.entry(), &self.dest, &options, progress)
        });
        Ok(report?)
    }

    /// Not repeated after a damaged index: part of the stream may have been read already.
    fn to_stream(&self, connector: &Connector, terminal: &Terminal, format: ImageFormat) -> Result<Exit> {
        if format == ImageFormat::Qcow2 {
            return Err(Failure::usage("qcow2 can't be written to a stream").hint("name a file, or use --format raw"));
        }
        if io::stdout().is_terminal() {
            return Err(Failure::usage("standard output is a terminal; redirect it, or name a file"));
        }
        let store = connector.access(Purpose::Use)?;
        let (_lease, snapshot) = self.snapshot(&store)?;
        let descriptor = io::stdout().as_fd().try_clone_to_owned();
        let mut stdout = File::from(descriptor.map_err(|error| Failure::io("opening", STDOUT, error))?);
        terminal.watch(&format!("restore {}", snapshot.name()), Unit::Bytes, |progress| {
            restore::restore_to_stream(store.source(), snapshot.entry(), &mut stdout, &self.options(&store), progress)
        })?;
        Ok(Exit::Done)
    }

    fn report(
        &self,
        terminal: &Terminal,
        snapshot: &Snapshot,
        format: ImageFormat,
        report: RestoreReport,
    ) -> Result<()> {
        let snapshot = snapshot.name().to_string();
        let dest = self.dest.as_path();
        let format = if format == ImageFormat::Raw { "raw" } else { "qcow2" };
        terminal.report(&Report { snapshot: snapshot.clone(), dest, format, done: report }, || {
            let (size, data) = (bytes(report.virtual_bytes), bytes(report.data_bytes));
            let time = seconds(report.elapsed_s);
            format!("restored {snapshot} to {}: {size}, {data} of data, in {time}\n", dest.display())
        })
    }
}
