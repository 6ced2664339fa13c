//! A far store behind the local one: what is missing here is fetched from there, verified, given, and kept here.
//!
//! A read asks the local store, and what that can't give is queued here (`queue`), fetched in batches over connections
//! that come back (`fetch`, `reconnect`), and put into the local store in the background (`cache_fill`). A far snapshot
//! appears beside the local ones (`merged_names`); when it is first opened it becomes a partial one of the local store,
//! and what an earlier boot of it touched is fetched ahead (`on_open`, `boot_recorder`). A hydration (`hydrate`) is a
//! pull that gives way to readers.

mod boot_recorder;
mod cache_fill;
mod decode;
mod fetch;
mod hydrate;
mod manifest_walk;
mod merged_names;
mod negative_cache;
mod neighbourhood;
mod on_open;
mod queue;
mod reconnect;
mod service;
#[cfg(test)]
mod tests;
mod unsealed_cache;

use std::ops::Range;
use std::pin::Pin;
use std::sync::mpsc;

use chunkstore::format::manifest::Node;
use chunkstore::format::{Chunk, ChunkId, EntryId, NodeId};
use chunkstore::{Error, Result};
use tokio::runtime::Handle;

pub use self::hydrate::{Hydration, HydrationState};
pub use self::reconnect::Connect;
pub use self::service::{UpstreamService, UpstreamServiceOptions, UpstreamStatus};

/// A future that owns what it needs.
pub type Fetching<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// How soon something is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody waits, and perhaps nobody ever will.
    Later,
    /// A reader will want it soon, as it goes on as it does.
    Ahead,
    /// A reader waits.
    Demand,
}

/// Gives what the local source lacks, or has only damaged. Waiting for it holds no thread.
///
/// Whoever reads asks the local source first, but for what [`FarSource::is_absent`] knows not to be there, and then
/// here. Demands that come close together travel as one request.
pub trait FarSource: Send + Sync {
    /// Whether the local source need not be asked.
    fn is_absent(&self, id: ChunkId) -> bool;

    /// Fetches a chunk that the local source could not give.
    ///
    /// # Errors
    /// [`chunkstore::Error::Unreachable`] if the far store is away for long: worth another try.
    /// [`chunkstore::Error::Damaged`] if it has not got it either, or what it gave is something else.
    fn fetch(&self, id: ChunkId, urgency: Urgency) -> Fetching<Chunk>;

    /// Fetches a manifest node that the local source could not give.
    ///
    /// # Errors
    /// As [`FarSource::fetch`].
    fn fetch_node(&self, id: NodeId, urgency: Urgency) -> Fetching<Node>;

    /// Tells which chunks make up a segment, in order: when one of them is demanded, others will be.
    fn neighbours(&self, ids: &[ChunkId]);
}

/// Is told what readers of snapshots ask for, whether it is here or not.
pub trait ReadObserver: Send + Sync {
    /// A range of the snapshot with this entry is about to be read. Returns at once.
    fn observe(&self, entry: EntryId, range: Range<u64>);
}

/// Waits on a thread that may wait for what runs on the runtime.
fn wait_for<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = mpsc::channel();
    runtime.spawn(async move {
        // Who asked is waiting.
        let _ = answer.send(future.await);
    });
    answered.recv().unwrap_or_else(|_| Err(Error::unreachable("the mount ends")))
}
