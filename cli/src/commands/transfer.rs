//! `vmstore push` and `vmstore pull`: copy snapshots to and from another store.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use chunkstore::catalog::{ImageName, Selector};
use chunkstore::{Backoff, Error, Progress};
use clap::{ArgGroup, Args};
use replicate::transfer::{self, Direction, Ends, TransferOptions, TransferReport, Wanted};

use crate::connector::{Connector, RemoteArgs};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::output::{bytes, counted, seconds};
use crate::terminal::{Terminal, Unit};

/// The first pause before another attempt; each later one is twice as long.
const DELAYS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
/// More connections only compete.
const STREAMS_MAX: u32 = 16;

const ADDRESSES: &str = "\
REMOTE is a name from `vmstore remote add` or an address:
  /srv/vmstore, ./store     a store on this machine
  unix:PATH                 the socket of a store's owner
  ssh://[USER@]HOST[:PORT]/PATH
  tls://HOST[:PORT]

Examples:
  vmstore push site-b --all
  vmstore push ssh://backup@hv8/srv/vmstore web01@latest
  vmstore pull site-b --image web01";

/// Copy snapshots to another store; only what it lacks is sent
///
/// The snapshots are durable there when the command returns. After an interruption, the same command resumes.
#[derive(Debug, Args)]
#[command(after_help = ADDRESSES, override_usage = "vmstore push [OPTIONS] REMOTE <SNAPSHOT...|--image NAME|--all>")]
#[command(group = ArgGroup::new("which").required(true).multiple(false))]
pub(crate) struct Push {
    #[command(flatten)]
    args: TransferArgs,
}

/// Copy snapshots from another store; only what is missing here is sent
///
/// The snapshots are durable here when the command returns. After an interruption, the same command resumes.
#[derive(Debug, Args)]
#[command(after_help = ADDRESSES, override_usage = "vmstore pull [OPTIONS] REMOTE <SNAPSHOT...|--image NAME|--all>")]
#[command(group = ArgGroup::new("which").required(true).multiple(false))]
pub(crate) struct Pull {
    #[command(flatten)]
    args: TransferArgs,
}

/// The arguments of push and pull.
#[derive(Debug, Args)]
struct TransferArgs {
    /// The other store: a remote's name or an address
    #[arg(value_name = "REMOTE")]
    remote: String,
    /// The snapshots: IMAGE, IMAGE@latest or IMAGE@TIME
    #[arg(value_name = "SNAPSHOT", group = "which")]
    snapshots: Vec<Selector>,
    /// Copy all snapshots of this image
    #[arg(long, value_name = "NAME", group = "which")]
    image: Option<ImageName>,
    /// All snapshots
    #[arg(long, group = "which")]
    all: bool,
    /// Print what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Limit the transfer to this many bytes per second, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_positive)]
    limit_rate: Option<NonZeroU64>,
    /// Number of connections, for links that one can't fill
    #[arg(long, value_name = "N")]
    streams: Option<NonZeroU32>,
    /// Number of retries after the connection is lost
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
    #[command(flatten)]
    access: RemoteArgs,
}

impl Push {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        self.args.run(connector, terminal, Direction::Push)
    }
}

impl Pull {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        self.args.run(connector, terminal, Direction::Pull)
    }
}

impl TransferArgs {
    fn run(&self, connector: &Connector, terminal: &Terminal, direction: Direction) -> Result<Exit> {
        let options = TransferOptions { direction, wanted: self.wanted(), dry_run: self.dry_run };
        let label = if direction == Direction::Push { "push" } else { "pull" };
        let progress = terminal.progress();
        let report = terminal.watch(label, Unit::Transfer, |_| self.attempts(connector, &options, progress))?;
        terminal.report(&report, || to_text(&report, direction))?;
        Ok(if report.snapshots_failed.is_empty() { Exit::Done } else { Exit::DamageFound })
    }

    fn wanted(&self) -> Wanted {
        match &self.image {
            Some(image) => Wanted::Image(image.clone()),
            None if self.all => Wanted::All,
            None => Wanted::Snapshots(self.snapshots.clone()),
        }
    }

    /// Transfers, and retries after a pause when the connection is lost; what was stored is not sent again.
    fn attempts(
        &self,
        connector: &Connector,
        options: &TransferOptions,
        progress: &Arc<Progress>,
    ) -> Result<TransferReport> {
        let mut report = TransferReport::default();
        let mut delays = DELAYS;
        let mut left = self.retries;
        loop {
            match self.attempt(connector, options, progress, &mut report) {
                Err(failure) if matches!(failure.error(), Error::Unreachable { .. }) && left > 0 => {
                    let delay = delays.next_delay();
                    tracing::warn!("{}; trying again in {} s", failure.error(), delay.as_secs());
                    progress.sleep(delay)?;
                    left -= 1;
                }
                result => return result.map(|()| report),
            }
        }
    }

    fn attempt(
        &self,
        connector: &Connector,
        options: &TransferOptions,
        progress: &Arc<Progress>,
        report: &mut TransferReport,
    ) -> Result<()> {
        let near = connector.near()?;
        let remote = self.access.resolve(connector, &self.remote)?;
        let limit = remote.rate(self.limit_rate)?;
        let streams = self.streams.or(remote.streams).map_or(1, NonZeroU32::get).min(STREAMS_MAX);
        let transferred = connector.runtime()?.block_on(async {
            let mut far = Vec::with_capacity(streams as usize);
            for _ in 0..streams {
                far.push(remote.connect(limit.clone()).await?);
            }
            let ends = Ends { near: near.client.clone(), catalog: near.catalog.clone(), far };
            transfer::transfer_on(&ends, options, progress, report).await.map_err(Failure::from)
        });
        transferred.map_err(|failure| if self.dry_run { failure } else { with_hint(failure) })
    }
}

/// Adds that what was stored is kept.
fn with_hint(failure: Failure) -> Failure {
    match failure.error() {
        Error::Interrupted | Error::Unreachable { .. } => {
            failure.hint("what has arrived is kept; the same command resumes from there")
        }
        _ => failure,
    }
}

fn to_text(report: &TransferReport, direction: Direction) -> String {
    let verb = match (report.dry_run, direction) {
        (true, _) => "would bring",
        (false, Direction::Push) => "pushed",
        (false, Direction::Pull) => "pulled",
    };
    let moved = report.wire_bytes_sent + report.wire_bytes_received;
    let failed = report.snapshots_failed.iter().map(|name| format!("failed: {name}\n"));
    let lines = report.snapshots_sent.iter().map(|name| format!("{verb} {name}\n"));
    let sum = format!(
        "{verb} {}, {} there already; {} of records in {} ({} as deltas), {} over the link in {}, {} saved\n",
        counted(report.snapshots_sent.len() as u64, "snapshot"),
        report.snapshots_present,
        bytes(report.record_bytes),
        counted(report.chunks_sent, "chunk"),
        report.deltas_sent,
        bytes(moved),
        seconds(report.elapsed_s),
        bytes(report.saved_bytes),
    );
    lines.chain(failed).chain([sum]).collect()
}
