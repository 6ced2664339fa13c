//! A far store behind the local one: missing records are fetched from it, verified, read, and kept here.
//!
//! A read asks the local store first. Missing records are queued (`queue`), fetched in batches (`fetch`, `decode`) over
//! connections that are renewed (`reconnect`), and put into the local store in the background (`cache_fill`). Far
//! snapshots are listed with the local ones (`merged_names`); the first open of one publishes it here as a partial
//! snapshot and fetches ahead what an earlier boot read (`on_open`, `boot_recorder`). A hydration (`hydrate`) is a pull
//! that gives way to readers. Imports `replicate` and `names`; knows nothing of disks, clones or FUSE.

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

/// How soon a record is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// No reader waits, and perhaps none ever will.
    Later,
    /// A sequential reader will soon want it.
    Ahead,
    /// A reader waits.
    Demand,
}

/// Fetches what the local source lacks or has only damaged. Waiting for it holds no thread.
///
/// Whoever reads asks the local source first, but for what [`FarSource::is_absent`] knows not to be there, and then
/// here. Demands that come close together travel as one request.
pub trait FarSource: Send + Sync {
    /// Whether the chunk is known to be missing from the local source.
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

    /// Announces the chunks of a segment, in order: after one of them is demanded, others will be.
    fn neighbours(&self, ids: &[ChunkId]);
}

/// Observes the reads of snapshots.
pub trait ReadObserver: Send + Sync {
    /// Called before a range of the snapshot with this entry is read. Returns at once.
    fn observe(&self, entry: EntryId, range: Range<u64>);
}

/// Runs a future on the runtime and blocks until it is ready.
fn wait_for<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = mpsc::channel();
    runtime.spawn(async move {
        // The receiver waits below.
        let _ = answer.send(future.await);
    });
    answered.recv().unwrap_or_else(|_| Err(Error::unreachable("the mount ends")))
}
