//! A store as commands use it: opened by this process alone, or through its owner, which others use as well.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunkstore::catalog::{Catalog, Lease, Snapshot, SnapshotName};
use chunkstore::format::manifest::ChunkSource;
use chunkstore::ingest::{self, IngestInto, IngestOptions};
use chunkstore::source::ChangedRanges;
use chunkstore::source::{DiskSource, Overlay, Source};
use chunkstore::store::{Config, Store};
use chunkstore::{Error, Progress};
use replicate::owner::Reconnecting;
use replicate::rpc::client::{Client, ClientSession};
use replicate::rpc::server;
use replicate::rpc::wire::{Job, Purpose};
use serde::de::DeserializeOwned;

use crate::failure::Result;

/// A store that a command works on.
pub(crate) enum Access {
    /// Opened by this process.
    Own(Arc<Store>),
    /// Behind its owner.
    Served(Box<Served>),
}

/// A store behind its owner. Configuration and catalog are read from its directory, without the owner.
pub(crate) struct Served {
    dir: PathBuf,
    config: Config,
    catalog: Catalog,
    owner: Reconnecting,
}

impl Access {
    /// The store in `dir` through a connection to its owner.
    pub(crate) fn served(dir: &Path, owner: Reconnecting) -> chunkstore::Result<Self> {
        let (config, catalog) = Store::open_catalog(dir)?;
        Ok(Self::Served(Box::new(Served { dir: dir.to_path_buf(), config, catalog, owner })))
    }

    pub(crate) fn config(&self) -> &Config {
        match self {
            Self::Own(store) => store.config(),
            Self::Served(served) => &served.config,
        }
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        match self {
            Self::Own(store) => store.catalog(),
            Self::Served(served) => &served.catalog,
        }
    }

    /// Where chunks come from.
    pub(crate) fn source(&self) -> &dyn ChunkSource {
        match self {
            Self::Own(store) => &**store,
            Self::Served(served) => &served.owner,
        }
    }

    /// Reads a snapshot, and protects what it needs from gc until the lease is dropped, even if the owner ends.
    pub(crate) fn read(&self, name: &SnapshotName) -> chunkstore::Result<(Option<Lease>, Snapshot)> {
        match self {
            Self::Own(store) => Ok((None, store.catalog().read(name)?)),
            Self::Served(served) => {
                let (lease, snapshot) = Lease::of(&served.dir, &served.catalog, name)?;
                Ok((Some(lease), snapshot))
            }
        }
    }

    /// Runs a job and returns its report.
    pub(crate) fn run<T: DeserializeOwned>(&self, job: &Job, progress: &Progress) -> chunkstore::Result<T> {
        let report = self.report(job, progress)?;
        serde_json::from_slice(&report).map_err(|error| Error::invalid(format!("the report can't be read: {error}")))
    }

    /// Runs a job whose report is a snapshot.
    pub(crate) fn run_on_snapshot(&self, job: &Job) -> chunkstore::Result<Snapshot> {
        Snapshot::read_file(&self.report(job, &Progress::default())?)
    }

    fn report(&self, job: &Job, progress: &Progress) -> chunkstore::Result<Vec<u8>> {
        match self {
            Self::Own(store) => server::run_job(store, job, progress),
            Self::Served(served) => served.owner.client()?.run_blocking(job.clone(), progress),
        }
    }

    /// Ingests a source.
    pub(crate) fn ingest(
        &self,
        source: Source,
        options: &IngestOptions,
        progress: &Progress,
    ) -> chunkstore::Result<Snapshot> {
        match self {
            Self::Own(store) => ingest::ingest(store, source, options, progress),
            Self::Served(served) => served.ingest(options, |into, options| into.ingest(source, options, progress)),
        }
    }

    /// Ingests the disk of an overlay over the snapshot that the options name as base.
    pub(crate) fn ingest_overlay(
        &self,
        overlay: &Overlay,
        options: &IngestOptions,
        progress: &Progress,
    ) -> chunkstore::Result<Snapshot> {
        match self {
            Self::Own(store) => ingest::ingest_overlay(store, overlay, options, progress),
            Self::Served(served) => {
                served.ingest(options, |into, options| into.ingest_overlay(overlay, options, progress))
            }
        }
    }

    /// Ingests a disk whose differences from the base named in the options are known.
    pub(crate) fn ingest_changes(
        &self,
        disk: &dyn DiskSource,
        changed: &dyn ChangedRanges,
        options: &IngestOptions,
        progress: &Progress,
    ) -> chunkstore::Result<Snapshot> {
        match self {
            Self::Own(store) => ingest::ingest_changes(store, disk, changed, options, progress),
            Self::Served(served) => {
                served.ingest(options, |into, options| into.ingest_changes(disk, changed, options, progress))
            }
        }
    }
}

impl Served {
    fn ingest(
        &self,
        options: &IngestOptions,
        ingest: impl FnOnce(&IngestInto<'_>, &IngestOptions) -> chunkstore::Result<Snapshot>,
    ) -> chunkstore::Result<Snapshot> {
        let parent = ingest::find_parent(&self.catalog, options)?;
        let name = parent.as_ref().map(Snapshot::name);
        let client: Client = self.owner.client()?;
        let session = ClientSession::begin_blocking(&client, Purpose::Ingest, name.as_ref())?;
        let into = IngestInto {
            sink: &session,
            source: &client,
            params: self.config.format.chunk_params(),
            codec: client.codec().clone(),
            store_id: &self.config.format.store_id,
            trusts_parent: session.trusts_parent(),
            parent,
        };
        // While one thread waits for the owner's answer another computes.
        let options = IngestOptions { threads: options.threads + options.threads.div_ceil(2), ..options.clone() };
        ingest(&into, &options)
    }
}

/// Whether to repeat a command: the owner ended, or the index was found damaged.
pub(crate) fn is_worth_another_try<T>(result: &Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|failure| matches!(failure.error(), Error::Unreachable { .. } | Error::IndexDamaged { .. }))
}
