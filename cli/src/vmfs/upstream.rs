//! `--upstream`, `--hydrate` and `--record`: a store elsewhere behind the mounted one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chunkstore::catalog::{Catalog, Selector};
use chunkstore::format::manifest::ChunkSource;
use chunkstore::metrics::Metrics;
use clap::Args;
use disks::upstream::{Connect, UpstreamService, UpstreamServiceOptions};
use fusefs::mounts;
use replicate::owner;
use serde_json::{Map, Value};

use crate::connector::{Connector, Purpose, RemoteArgs};
use crate::failure::Result;

/// The options for a store elsewhere.
#[derive(Debug, Args)]
#[command(next_help_heading = "Upstream store")]
pub(crate) struct UpstreamOptions {
    /// Also show the snapshots of this store, a remote's name or an address; what is read is kept in the local store
    #[arg(long, value_name = "REMOTE")]
    upstream: Option<String>,
    /// Copy a snapshot of the other store completely, in the background; may be repeated
    #[arg(long, value_name = "SNAPSHOT", requires = "upstream")]
    hydrate: Vec<Selector>,
    /// Record what is read in the first two minutes of each snapshot, so that later mounts prefetch it
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    access: RemoteArgs,
}

/// The mounted store.
pub(crate) struct Local<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) catalog: &'a Catalog,
    pub(crate) source: &'a Arc<dyn ChunkSource>,
    pub(crate) metrics: &'a Metrics,
}

impl UpstreamOptions {
    /// Starts the upstream service; none without these options.
    pub(crate) fn start(
        &self,
        connector: &Connector,
        local: &Local<'_>,
        read_timeout: Duration,
    ) -> Result<Option<Arc<UpstreamService>>> {
        if self.upstream.is_none() && !self.record {
            return Ok(None);
        }
        let runtime = connector.runtime()?;
        let options = UpstreamServiceOptions {
            runtime: runtime.handle().clone(),
            dir: local.dir.to_path_buf(),
            catalog: local.catalog.clone(),
            local: Arc::clone(local.source),
            near: near(connector, local.dir)?,
            far: self.upstream.as_deref().map(|remote| self.far(connector, remote)).transpose()?,
            address: self.upstream.clone().unwrap_or_default(),
            read_timeout,
            hydrate: self.hydrate.clone(),
            record: self.record,
            metrics: local.metrics.clone(),
        };
        Ok(Some(runtime.block_on(UpstreamService::start(options))?))
    }

    fn far(&self, connector: &Connector, remote: &str) -> Result<Connect> {
        let reachable = Arc::new(self.access.resolve(connector, remote)?);
        if let Some(dir) = reachable.dir() {
            mounts::refuse_on_view(dir, "the other store")?;
        }
        Ok(Arc::new(move |limit| {
            let reachable = Arc::clone(&reachable);
            Box::pin(async move { reachable.connect(limit).await })
        }))
    }
}

/// Connects to the mounted store's owner, which is started if there is none.
fn near(connector: &Connector, dir: &Path) -> Result<Connect> {
    let (dir, starter) = (dir.to_path_buf(), connector.starter(Purpose::Use)?);
    Ok(Arc::new(move |_| {
        let (dir, starter) = (dir.clone(), starter.clone());
        Box::pin(async move { owner::connect(&dir, Some(&starter)).await })
    }))
}

/// Its part of the mount's status.
pub(crate) fn status(site: Option<&UpstreamService>) -> Map<String, Value> {
    let upstream = site.and_then(UpstreamService::status).and_then(|status| serde_json::to_value(status).ok());
    upstream.into_iter().map(|status| ("upstream".to_owned(), status)).collect()
}
