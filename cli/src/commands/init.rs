//! `vmstore init`: makes a store.

use chunkstore::Error;
use chunkstore::format::ChunkParams;
use chunkstore::store::reserve::RESERVE_BYTES;
use chunkstore::store::{InitOptions, Store};
use clap::Args;
use fusefs::mounts::refuse_on_view;
use jiff::Timestamp;
use serde_json::json;

use crate::connector::{Connector, RemoteArgs};
use crate::failure::{Exit, Failure, Result};
use crate::random::random;
use crate::size;
use crate::terminal::Terminal;
use crate::terminal::output::{bytes, fields};

/// Create a store in the directory --store, which must be empty or missing
///
/// The chunk sizes can't be changed later. The defaults suit disk images; sizes are powers of two.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Do not reserve 256 MiB for a full disk
    #[arg(long)]
    no_reserve: bool,
    /// Use the chunk sizes of this store, so that snapshots can be copied between the two
    #[arg(long, value_name = "REMOTE", conflicts_with_all = ["chunk_avg", "chunk_min", "chunk_max", "zero_run_min"])]
    like: Option<String>,
    /// Average chunk size; minimum and maximum default to a quarter and four times of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    chunk_avg: Option<u32>,
    /// Minimum chunk size
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    chunk_min: Option<u32>,
    /// Maximum chunk size
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    chunk_max: Option<u32>,
    /// Minimum length of a run of zeros that is not stored
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    zero_run_min: Option<u32>,
    #[command(flatten)]
    access: RemoteArgs,
}

impl Init {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let dir = connector.store_dir()?;
        refuse_on_view(dir, "the store")?;
        let params = match &self.like {
            Some(remote) => self.access.chunk_params(connector, remote)?,
            None => self.params(),
        };
        let options = InitOptions { params, reserve: !self.no_reserve };
        Store::init(dir, &options, random()?, Timestamp::now()).map_err(|error| self.explain(error))?;
        let (config, _) = Store::open_catalog(dir)?;
        let format = &config.format;
        let reserve_bytes = if self.no_reserve { 0 } else { RESERVE_BYTES };
        let report = json!({
            "store": dir,
            "store_id": format.store_id,
            "chunk_min_bytes": format.chunk_min_bytes,
            "chunk_avg_bytes": format.chunk_avg_bytes,
            "chunk_max_bytes": format.chunk_max_bytes,
            "zero_run_min_bytes": format.zero_run_min_bytes,
            "reserve_bytes": reserve_bytes,
        });
        terminal.report(&report, || {
            let size = |size: u32| bytes(u64::from(size));
            let [min, avg, max] = [format.chunk_min_bytes, format.chunk_avg_bytes, format.chunk_max_bytes].map(size);
            let lines = [
                ("id", format.store_id.clone()),
                ("chunks", format!("{avg}, from {min} to {max}")),
                ("reserve", bytes(reserve_bytes)),
            ];
            format!("created a store in {}\n{}", dir.display(), fields(&lines))
        })?;
        Ok(Exit::Done)
    }

    fn params(&self) -> ChunkParams {
        let defaults = ChunkParams::default();
        let avg_bytes = self.chunk_avg.unwrap_or(defaults.avg_bytes);
        ChunkParams {
            min_bytes: self.chunk_min.unwrap_or(avg_bytes / 4),
            avg_bytes,
            max_bytes: self.chunk_max.unwrap_or(avg_bytes.saturating_mul(4)),
            zero_run_min_bytes: self.zero_run_min.unwrap_or(defaults.zero_run_min_bytes),
        }
    }

    fn explain(&self, error: Error) -> Failure {
        let is_full = matches!(error, Error::OutOfSpace { .. });
        let failure = Failure::from(error);
        if is_full && !self.no_reserve {
            return failure.hint("a store reserves 256 MiB; --no-reserve omits it");
        }
        failure
    }
}
