//! Copies snapshots from one store to another: push and pull are the same, seen from either end.
//!
//! Both stores are [`Client`]s. For each snapshot the manifest tree is compared with that of a snapshot of the image
//! that both have, so that only differences are considered (`walk`). These records are claimed at the receiving store
//! in batches, many in flight at once; missing ones are read from the sending store as stored and put (`send`): as a
//! delta if the receiver has the base, otherwise encoded again. The snapshot is published last.

mod boot_order;
mod nodes;
mod plan;
mod report;
mod send;
mod walk;

use std::sync::Arc;
use std::time::Instant;

use chunkstore::catalog::Catalog;
use chunkstore::{Error, Progress, Result};

pub use self::plan::Wanted;
use self::plan::{Item, Plan};
use self::report::TransferCounters;
pub use self::report::TransferReport;
use self::send::Sending;
use crate::rpc::client::{Client, ClientSession};
use crate::rpc::wire::{Purpose, Welcome};

/// Which of the two stores is on this side of the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The sending one.
    Push,
    /// The receiving one.
    Pull,
}

/// The snapshots to transfer, and how.
#[derive(Clone, Debug)]
pub struct TransferOptions {
    /// From here or to here.
    pub direction: Direction,
    /// Which snapshots.
    pub wanted: Wanted,
    /// Only determines what would be sent.
    pub dry_run: bool,
}

/// The two ends of a transfer.
pub struct Ends {
    /// The owner of the store on this side.
    pub near: Client,
    /// The catalog of the store on this side.
    pub catalog: Catalog,
    /// The owner of the store on the other side; several connections share the work.
    pub far: Vec<Client>,
}

impl Ends {
    fn source(&self, direction: Direction) -> &Client {
        if direction == Direction::Push { &self.near } else { &self.far[0] }
    }

    fn sinks(&self, direction: Direction) -> &[Client] {
        if direction == Direction::Push { &self.far } else { std::slice::from_ref(&self.near) }
    }
}

/// Transfers snapshots. When this returns, they are durable at the receiving store.
///
/// # Errors
/// [`Error::Refused`] if the stores cut chunks differently; [`Error::NotFound`] if there is no such snapshot;
/// [`Error::Unreachable`] if a connection was lost: records that the receiver has stored are not sent again.
pub async fn transfer(ends: &Ends, options: &TransferOptions, progress: &Arc<Progress>) -> Result<TransferReport> {
    let mut report = TransferReport::default();
    transfer_on(ends, options, progress, &mut report).await?;
    Ok(report)
}

/// As [`transfer`], after attempts whose connections were lost. This attempt is added to their report, even if it
/// fails.
///
/// # Errors
/// As [`transfer`].
pub async fn transfer_on(
    ends: &Ends,
    options: &TransferOptions,
    progress: &Arc<Progress>,
    report: &mut TransferReport,
) -> Result<()> {
    let started = Instant::now();
    let counters = Arc::new(TransferCounters::default());
    let done = attempt(ends, options, &counters, progress, report).await;
    report.add_counters(&counters);
    report.add_meters(&ends.far);
    report.elapsed_s += started.elapsed().as_secs_f64();
    done
}

async fn attempt(
    ends: &Ends,
    options: &TransferOptions,
    counters: &Arc<TransferCounters>,
    progress: &Arc<Progress>,
    report: &mut TransferReport,
) -> Result<()> {
    check_params(ends.near.welcome(), ends.far[0].welcome())?;
    let mut plan = Plan::make(ends, options).await?;
    report.dry_run = options.dry_run;
    // An earlier attempt may have sent some.
    report.snapshots_present = plan.present.saturating_sub(report.snapshots_sent.len() as u64);
    report.snapshots_failed.clear();
    let mut seen = Arc::new(send::Seen::default());
    for number in 0..plan.items.len() {
        progress.check()?;
        let item = plan.items[number].clone();
        let mut sent = one(ends, options, &item, &Shared { counters, seen: &seen, progress }).await;
        if let Err(error @ (Error::Damaged { .. } | Error::NotFound { .. })) = &sent {
            // The parent, or a record sent before, may be damaged, or gone since the plan was made.
            tracing::debug!("{} is sent once more, without a parent: {error}", item.name);
            seen = Arc::default();
            let shared = Shared { counters, seen: &seen, progress };
            sent = one(ends, options, &item.clone().alone(), &shared).await;
        }
        match sent {
            Ok(()) => report.snapshots_sent.push(item.name.to_string()),
            // Damage to one snapshot must not keep the others from being copied.
            Err(error @ (Error::Damaged { .. } | Error::NotFound { .. })) => {
                tracing::error!("{}: {error}", item.name);
                report.snapshots_failed.push(item.name.to_string());
                continue;
            }
            Err(error) => return Err(error),
        }
        // The next night of the image builds on this one.
        plan.add_common(&item, options.dry_run);
    }
    Ok(())
}

/// Shared by the transfers of several snapshots.
struct Shared<'a> {
    counters: &'a Arc<TransferCounters>,
    seen: &'a Arc<send::Seen>,
    progress: &'a Arc<Progress>,
}

/// Makes sure that two stores cut chunks the same way.
///
/// # Errors
/// [`Error::Refused`] if they do not.
pub fn check_params(near: &Welcome, far: &Welcome) -> Result<()> {
    if near.chunk_params == far.chunk_params {
        return Ok(());
    }
    Err(Error::refused(format!(
        "the stores cut chunks differently ({:?} here, {:?} there: least, average, most bytes, least zero run); \
         `vmstore init --like REMOTE` makes a store that fits",
        near.chunk_params, far.chunk_params
    )))
}

/// Transfers one snapshot.
async fn one(ends: &Ends, options: &TransferOptions, item: &Item, shared: &Shared<'_>) -> Result<()> {
    let source = ends.source(options.direction).clone();
    let sinks = ends.sinks(options.direction);
    // gc keeps the snapshot meanwhile.
    let reading = ClientSession::begin(&source, Purpose::Read, Some(&item.name)).await?;
    let first = ClientSession::begin(&sinks[0], Purpose::Receive, item.parent_there().as_ref()).await?;
    let mut sessions = Vec::with_capacity(sinks.len());
    for sink in &sinks[1..] {
        sessions.push(Arc::new(first.attach(sink).await?));
    }
    sessions.insert(0, Arc::new(first));
    let near = ends.near.clone();
    let of_parent = if item.parent_is_planned { source.clone() } else { near.clone() };
    let nodes = nodes::Nodes { source: source.clone(), near, of_parent, direction: options.direction };
    let sending = Sending::new(source, sessions.clone(), options.dry_run, shared);
    let (batches, walked) = walk::start(nodes, item, Arc::clone(shared.progress));
    let order = boot_order::begin(ends.source(options.direction), item);
    sending.run(batches).await?;
    walked.await.map_err(|_| Error::refused("the walk over the manifest failed"))??;
    if options.dry_run {
        shared.seen.publish_planned();
    } else {
        sessions[0].publish(item.encoding.clone(), None).await?;
        boot_order::bring(order, &sinks[0], item).await;
    }
    drop(reading);
    Ok(())
}
