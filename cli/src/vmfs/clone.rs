//! `vmfs clone`: makes, lists, commits, discards and rolls back writable clones. Works with and without a mount.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use chunkstore::catalog::label::{self, Label};
use chunkstore::catalog::{ImageName, Selector, Snapshot, SnapshotName, SnapshotTime};
use chunkstore::ingest::IngestOptions;
use chunkstore::{Error, Progress};
use clap::{Args, Subcommand};
use disks::chunk_cache::ChunkCache;
use disks::clone::{CloneInfo, Clones, CommitOptions, Committed, FrozenDisk, Publisher};
use disks::names::LocalNames;
use jiff::Timestamp;
use replicate::rpc::wire::Job;
use serde::Serialize;

use crate::commands::resolve;
use crate::connector::{Access, Connector, Purpose};
use crate::failure::{Exit, Failure, Result};
use crate::snapshot_view::SnapshotView;
use crate::terminal::output::{bytes, table};
use crate::terminal::{Terminal, Unit};

const AFTER_HELP: &str = "\
Examples:
  vmfs clone create web01-test web01@20261120
  qemu-system-x86_64 -drive file=/mnt/vm/clones/web01-test.raw,format=raw ...
  vmfs clone commit web01-test --image web01-test
  vmfs clone discard web01-test";

/// Make and manage writable clones of snapshots
///
/// A clone is a writable disk, clones/NAME.raw in every mount of the store; it is made at once and takes no space. Its
/// writes go to files of its own. The snapshot does not change, and is held as long as the clone exists.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CloneCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    /// List clones; works while they are in use
    List,
    Commit(Commit),
    Discard(Discard),
    Rollback(Rollback),
}

/// Make a clone of a snapshot
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmfs clone create web01-test web01@latest")]
struct Create {
    /// Name of the clone
    name: String,
    /// The snapshot: IMAGE, IMAGE@latest or IMAGE@TIME
    snapshot: Selector,
}

/// Make a snapshot of a clone, even while it is written
///
/// The snapshot is what a power cut at this moment would leave on the disk. Only written blocks are read. Afterwards
/// the clone is based on the new snapshot.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmfs clone commit web01-test --label state=installed")]
struct Commit {
    /// The clone
    name: String,
    /// Image of the new snapshot [default: that of the clone's snapshot]
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
    /// Time of the new snapshot [default: now]
    #[arg(long, value_name = "TIME")]
    time: Option<SnapshotTime>,
    /// Add a label to the snapshot; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label::parse)]
    labels: Vec<Label>,
}

/// Delete a clone and all that was written to it
#[derive(Debug, Args)]
struct Discard {
    /// The clone
    name: String,
}

/// Discard what was written to a clone since it was created or last committed
#[derive(Debug, Args)]
struct Rollback {
    /// The clone
    name: String,
}

impl CloneCommand {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        match &self.command {
            Command::Create(args) => args.run(connector, terminal),
            Command::List => list(connector, terminal),
            Command::Commit(args) => args.run(connector, terminal),
            Command::Discard(args) => args.run(connector, terminal),
            Command::Rollback(args) => args.run(connector, terminal),
        }
    }
}

impl Create {
    fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let (_, catalog) = connector.catalog()?;
        let snapshot = resolve::snapshot(&catalog, &self.snapshot)?;
        let made = clones(connector, connector.store_dir()?)?.create(&self.name, &snapshot, Timestamp::now());
        let made = made.map_err(explain)?;
        terminal.report(&CloneView::new(&made), || {
            format!("clone {} of {}, {}\n", made.name, made.snapshot, bytes(made.size_bytes))
        })?;
        Ok(Exit::Done)
    }
}

impl Commit {
    fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let (options, clones) = (self.options(Timestamp::now())?, clones(connector, connector.store_dir()?)?);
        let (dir, (_, catalog)) = (connector.store_dir()?, connector.catalog()?);
        let cache =
            ChunkCache::new(Arc::new(connector.owner(dir, Purpose::Use)?), connector.runtime()?.handle().clone());
        let names = LocalNames::new(dir, catalog);
        let done = terminal.watch(&format!("commit {}", self.name), Unit::Bytes, |progress| {
            clones.commit(&self.name, &cache, &names, &options, progress)
        });
        let Committed { snapshot, base, written_bytes } = done.map_err(explain)?;
        let view = SnapshotView::new(&snapshot);
        let report = || {
            let nothing = format!("nothing was written since {base}: this snapshot equals it\n");
            view.ingest_report() + if written_bytes == 0 { &nothing } else { "" }
        };
        let json = CommitView { clone: &self.name, base: base.to_string(), written_bytes, snapshot: &view };
        terminal.report(&json, report)?;
        Ok(Exit::Done)
    }

    fn options(&self, now: Timestamp) -> Result<CommitOptions> {
        let labels: BTreeMap<_, _> = self.labels.iter().cloned().collect();
        if labels.len() < self.labels.len() {
            return Err(Failure::usage("a label is given twice"));
        }
        label::check(&labels)?;
        let time = self.time.map_or_else(|| SnapshotTime::new(now), Ok)?;
        Ok(CommitOptions { image: self.image.clone(), time, labels, now })
    }
}

impl Discard {
    fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let name = &self.name;
        clones(connector, connector.store_dir()?)?.discard(name).map_err(explain)?;
        terminal.report(&Discarded { discarded: name }, || format!("discarded clone {name}\n"))?;
        Ok(Exit::Done)
    }
}

impl Rollback {
    fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let done = clones(connector, connector.store_dir()?)?.rollback(&self.name).map_err(explain)?;
        terminal.report(&CloneView::new(&done), || format!("clone {} is {} again\n", done.name, done.snapshot))?;
        Ok(Exit::Done)
    }
}

fn list(connector: &Connector, terminal: &Terminal) -> Result<Exit> {
    connector.catalog()?;
    let clones = Clones::new(connector.store_dir()?);
    let (mut infos, mut exit) = (Vec::new(), Exit::Done);
    for name in clones.list()? {
        match clones.info(&name) {
            Ok(info) => infos.push(info),
            // Discarded since its name was listed.
            Err(Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::error!("clone {name}: {error}");
                exit = Exit::DamageFound;
            }
        }
    }
    let views: Vec<_> = infos.iter().map(CloneView::new).collect();
    terminal.result(&views, || to_table(&infos))?;
    Ok(exit)
}

fn to_table(infos: &[CloneInfo]) -> String {
    let row = |info: &CloneInfo| {
        let open_by = info.open_by.map_or_else(String::new, |pid| format!("process {pid}"));
        let [size, written] = [info.size_bytes, info.written_bytes].map(bytes);
        [info.name.to_string(), info.snapshot.to_string(), size, written, open_by]
    };
    table(["CLONE", "SNAPSHOT", "SIZE", "WRITTEN", "OPEN"], &[2, 3], infos.iter().map(row).collect())
}

/// A clone as JSON.
#[derive(Serialize)]
struct CloneView<'a> {
    clone: &'a ImageName,
    snapshot: String,
    size_bytes: u64,
    written_bytes: u64,
    created: Timestamp,
    /// The number of the process.
    open_by: Option<u32>,
}

impl<'a> CloneView<'a> {
    fn new(info: &'a CloneInfo) -> Self {
        let &CloneInfo { size_bytes, written_bytes, created, open_by, .. } = info;
        let snapshot = info.snapshot.to_string();
        Self { clone: &info.name, snapshot, size_bytes, written_bytes, created, open_by }
    }
}

#[derive(Serialize)]
struct CommitView<'a> {
    clone: &'a str,
    base: String,
    written_bytes: u64,
    #[serde(flatten)]
    snapshot: &'a SnapshotView<'a>,
}

#[derive(Serialize)]
struct Discarded<'a> {
    discarded: &'a str,
}

/// The clones of the store in `dir`, which are changed through its owner.
pub(super) fn clones(connector: &Connector, dir: &Path) -> Result<Clones> {
    let access = Access::served(dir, connector.owner(dir, Purpose::Use)?)?;
    Ok(Clones::new(dir).with_publisher(Arc::new(StorePublisher { access })))
}

fn explain(error: Error) -> Failure {
    let hint = match &error {
        Error::Busy { what, .. } if what.starts_with("clone") => {
            "close what uses it; `vmfs clone list` shows the process"
        }
        Error::NotFound { what } if what.starts_with("clone") => "`vmfs clone list` lists them",
        _ => return error.into(),
    };
    Failure::from(error).hint(hint)
}

/// The store as clones use it.
struct StorePublisher {
    access: Access,
}

impl StorePublisher {
    /// Runs an idempotent job, and repeats it if the owner ended meanwhile.
    fn run(&self, job: &Job) -> chunkstore::Result<Snapshot> {
        match self.access.run_on_snapshot(job) {
            Err(Error::Unreachable { .. }) => self.access.run_on_snapshot(job),
            done => done,
        }
    }
}

impl Publisher for StorePublisher {
    fn hold(&self, snapshot: &SnapshotName, reason: &str) -> chunkstore::Result<Snapshot> {
        self.run(&Job::Hold { snapshot: snapshot.to_string(), reason: reason.to_owned() })
    }

    fn release(&self, snapshot: &SnapshotName, reason: &str) -> chunkstore::Result<()> {
        match self.run(&Job::Release { snapshot: snapshot.to_string(), reason: Some(reason.to_owned()) }) {
            Err(Error::NotFound { .. }) => Ok(()),
            done => done.map(drop),
        }
    }

    fn ingest(&self, disk: FrozenDisk, options: &IngestOptions, progress: &Progress) -> chunkstore::Result<Snapshot> {
        self.access.ingest_changes(&disk, &disk, options, progress)
    }
}
