//! `vmstore ingest`: makes snapshots of disks.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use chunkstore::Error;
use chunkstore::catalog::label::{self, Label};
use chunkstore::catalog::{Catalog, ImageName, Selector, Snapshot, SnapshotName, SnapshotTime};
use chunkstore::ingest::{Base, IngestOptions};
use chunkstore::source::{self, Overlay, SnapshotFile, Source};
use clap::{Args, ValueHint};
use jiff::Timestamp;

use super::{ImageFormat, resolve};
use crate::connector::{self, Access, Connector, Purpose};
use crate::failure::{Exit, Failure, Result};
use crate::snapshot_view::SnapshotView;
use crate::terminal::{Terminal, Unit};

/// The source that is standard input.
const STDIN: &str = "-";

const AFTER_HELP: &str = "\
Examples:
  vmstore ingest web01.raw --image web01
  vmstore ingest /dev/vg0/web01-snap --image web01 --label os=debian12 --label app=mysql
  vmstore ingest web02.qcow2 --image web02 --base template@latest
  vmstore ingest vda.raw vdb.raw --image db1-vda --image db1-vdb --group db1
  zstdcat web01.raw.zst | vmstore ingest - --image web01 --time 2026-11-20T02:00:00Z";

/// Make a snapshot of a disk, or of several disks with a common time
///
/// A source is a raw file, a block device, a qcow2 file with its backing files, or - for standard input. If the backing
/// file of a qcow2 file is its base in a mount, only the clusters of the qcow2 file are read. All sources are opened
/// before the first is read. With --json, each snapshot is printed as one object on a line of its own. The snapshots
/// are durable when the command returns; after an interruption, the next ingest reuses what was stored.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Ingest {
    /// The disks to read
    #[arg(required = true, value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    sources: Vec<String>,
    /// Name of the image; once for each source, in the same order
    #[arg(long = "image", required = true, value_name = "NAME")]
    images: Vec<ImageName>,
    /// Time of the snapshot [default: now]
    #[arg(long, value_name = "TIME")]
    time: Option<SnapshotTime>,
    /// Add a label to the snapshot; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label::parse)]
    labels: Vec<Label>,
    /// Snapshot of any image that the disk resembles, or `none` [default: the newest of the same image]
    #[arg(long, value_name = "SNAPSHOT")]
    base: Option<BaseArg>,
    /// Name that the disks of one machine share
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Format of the sources [default: qcow2 for the suffixes .qcow2 and .qcow, else raw; never by content]
    #[arg(long, value_enum)]
    format: Option<ImageFormat>,
    /// Allow qcow2 backing files in this directory, besides the image's own
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    backing_dir: Option<PathBuf>,
    /// Read an image that QEMU has open for writing; the snapshot may be inconsistent
    #[arg(long)]
    live: bool,
    /// Threads that read, chunk and compress [default: from config.toml, else one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// The value of `--base`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum BaseArg {
    None,
    Snapshot(Selector),
}

impl FromStr for BaseArg {
    type Err = Error;

    fn from_str(text: &str) -> chunkstore::Result<Self> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::Snapshot) }
    }
}

/// A source and the snapshot to make of it.
struct Job<'a> {
    source: &'a str,
    name: SnapshotName,
}

impl Ingest {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let now = Timestamp::now();
        let labels = self.labels()?;
        label::check_text("a snapshot's group", self.group.as_deref().unwrap_or_default())?;
        let jobs = self.jobs(now)?;
        let (mut attempts, mut done) = (0, 0);
        connector.with_store(Purpose::Use, |store| {
            attempts += 1;
            if attempts > 1 {
                done += report_made(terminal, store.catalog(), &jobs[done..], now)?;
                refuse_second_reading(&jobs[done..])?;
            }
            // Jobs that were done before a retry are not repeated.
            let jobs = &jobs[done..];
            refuse_duplicates(store.catalog(), jobs)?;
            let base = self.base(store.catalog())?;
            for (job, (source, base)) in jobs.iter().zip(self.open(store.catalog(), jobs, &base)?) {
                let options = IngestOptions {
                    name: job.name.clone(),
                    labels: labels.clone(),
                    group: self.group.clone(),
                    base,
                    threads: connector::threads(self.threads, store.config()),
                    now,
                };
                report(terminal, &ingest_one(terminal, store, source, &options)?)?;
                done += 1;
            }
            Ok(Exit::Done)
        })
    }

    /// The jobs by the command line, checked without opening the store or the sources.
    fn jobs(&self, now: Timestamp) -> Result<Vec<Job<'_>>> {
        let (sources, images) = (&self.sources, &self.images);
        if sources.len() != images.len() {
            let counts = format!("{} sources, but {} --image options", sources.len(), images.len());
            return Err(Failure::usage(counts).hint("give one --image for each source, in the same order"));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = images.iter().find(|image| !seen.insert(*image)) {
            return Err(Failure::usage(format!("image {twice} is given twice; it can have one snapshot at a time")));
        }
        self.check_stdin()?;
        let time = self.time.map_or_else(|| SnapshotTime::new(now), Ok)?;
        let names = images.iter().map(|image| SnapshotName::new(image.clone(), time));
        Ok(sources.iter().zip(names).map(|(source, name)| Job { source, name }).collect())
    }

    fn check_stdin(&self) -> Result<()> {
        match self.sources.iter().filter(|source| *source == STDIN).count() {
            1 if io::stdin().is_terminal() => Err(Failure::usage("standard input is a terminal, not an image")),
            0 | 1 => Ok(()),
            _ => Err(Failure::usage("standard input can be read only once")),
        }
    }

    fn labels(&self) -> Result<BTreeMap<String, String>> {
        let mut labels = BTreeMap::new();
        for (key, value) in &self.labels {
            if labels.insert(key.clone(), value.clone()).is_some_and(|before| before != *value) {
                return Err(Failure::usage(format!("label {key} is given two values")));
            }
        }
        label::check(&labels)?;
        Ok(labels)
    }

    fn base(&self, catalog: &Catalog) -> Result<Base> {
        Ok(match &self.base {
            None => Base::Newest,
            Some(BaseArg::None) => Base::None,
            Some(BaseArg::Snapshot(selector)) => Base::Snapshot(resolve::snapshot(catalog, selector)?),
        })
    }

    /// Opens all sources, each with its base.
    fn open(&self, catalog: &Catalog, jobs: &[Job<'_>], base: &Base) -> Result<Vec<(Opened, Base)>> {
        let format = self.format.map(|format| match format {
            ImageFormat::Raw => source::Format::Raw,
            ImageFormat::Qcow2 => source::Format::Qcow2,
        });
        let options = source::OpenOptions { format, backing_dir: self.backing_dir.clone(), live: self.live };
        jobs.iter().map(|job| open(catalog, job, base, &options)).collect()
    }
}

/// An opened source.
enum Opened {
    Source(Source),
    /// Read only where it differs from a snapshot.
    Overlay(Overlay),
}

/// Opens a source: only the overlay, if the source is one on top of its base.
fn open(catalog: &Catalog, job: &Job<'_>, base: &Base, options: &source::OpenOptions) -> Result<(Opened, Base)> {
    let overlay = if *base == Base::None { None } else { source::open_overlay(job.source, options)? };
    let Some(overlay) = overlay else { return Ok((Opened::Source(source::open(job.source, options)?), base.clone())) };
    let below = overlay.below();
    if let Some(snapshot) = snapshot_below(catalog, below, base) {
        let is_own = *base == Base::Snapshot(snapshot.clone()) || snapshot.image == job.name.image || below.is_allowed;
        if is_own {
            return Ok((Opened::Overlay(overlay), Base::Snapshot(snapshot)));
        }
        // The author of the overlay chose its backing file, and must not choose another machine's disk.
        let what = format!("{}: its backing file shows {snapshot}, a snapshot of another image", job.source);
        return Err(Failure::refused(what).hint(format!("--base {snapshot} allows it")));
    }
    tracing::warn!(
        "{}: its backing file {} differs from the base in this store, and is read as a file",
        job.source,
        below.path
    );
    Ok((Opened::Source(source::open(job.source, options)?), base.clone()))
}

/// The snapshot of this store that a backing file shows, if it is the base or none was named.
fn snapshot_below(catalog: &Catalog, below: &SnapshotFile, base: &Base) -> Option<SnapshotName> {
    let name = match base {
        Base::None => return None,
        Base::Newest => below.snapshot.as_ref()?,
        Base::Snapshot(name) => name,
    };
    let snapshot = catalog.read(name).ok()?;
    (snapshot.entry().root == below.root).then(|| name.clone())
}

/// Reports the snapshots that an attempt made whose answers were lost with the connection. Returns their number.
fn report_made(terminal: &Terminal, catalog: &Catalog, jobs: &[Job<'_>], now: Timestamp) -> Result<usize> {
    let made = |job: &Job<'_>| catalog.read(&job.name).ok().filter(|snapshot| snapshot.entry().created == now);
    let made: Vec<_> = jobs.iter().map_while(made).collect();
    made.iter().try_for_each(|snapshot| report(terminal, snapshot))?;
    Ok(made.len())
}

/// Standard input can't be read again: its rest alone would be another image.
fn refuse_second_reading(jobs: &[Job<'_>]) -> Result<()> {
    if jobs.iter().any(|job| job.source == STDIN) {
        let what = "the connection to the store's owner was lost, and standard input can't be read again";
        return Err(Failure::from(Error::unreachable(what)).hint("no snapshot was made; repeat the command"));
    }
    Ok(())
}

fn refuse_duplicates(catalog: &Catalog, jobs: &[Job<'_>]) -> Result<()> {
    for Job { name, .. } in jobs {
        if catalog.times(&name.image)?.contains(&name.time) {
            return Err(Failure::refused(format!("snapshot {name} exists already")));
        }
    }
    Ok(())
}

fn ingest_one(terminal: &Terminal, store: &Access, source: Opened, options: &IngestOptions) -> Result<Snapshot> {
    let label = format!("ingest {}", options.name.image);
    let ingested = terminal.watch(&label, Unit::Bytes, |progress| match source {
        Opened::Source(source) => store.ingest(source, options, progress),
        Opened::Overlay(overlay) => store.ingest_overlay(&overlay, options, progress),
    });
    ingested.map_err(|error| {
        let interrupted = matches!(error, Error::Interrupted);
        let failure = Failure::from(error);
        if interrupted { failure.hint("no snapshot was made; the next ingest reuses what was stored") } else { failure }
    })
}

fn report(terminal: &Terminal, snapshot: &Snapshot) -> Result<()> {
    let view = SnapshotView::new(snapshot);
    terminal.report(&view, || view.ingest_report())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases() {
        assert_eq!("none".parse::<BaseArg>().unwrap(), BaseArg::None);
        let named = BaseArg::Snapshot("template@latest".parse().unwrap());
        assert_eq!("template".parse::<BaseArg>().unwrap(), named);
        assert!("a/b".parse::<BaseArg>().is_err());
    }
}
