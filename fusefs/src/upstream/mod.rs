//! A far store behind the local one: what is missing here is fetched from there, verified, given, and kept here.

use std::ops::Range;
use std::pin::Pin;

use chunkstore::Result;
use chunkstore::chunk::Chunk;
use chunkstore::id::{ChunkId, EntryId, NodeId};
use chunkstore::manifest::Node;

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
/// Whoever reads asks the local source first, but for what [`Far::is_absent`] knows not to be there, and then here.
/// Demands that come close together travel as one request.
pub trait Far: Send + Sync {
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
    /// As [`Far::fetch`].
    fn fetch_node(&self, id: NodeId, urgency: Urgency) -> Fetching<Node>;

    /// Tells which chunks make up a segment, in order: when one of them is demanded, others will be.
    fn neighbours(&self, ids: &[ChunkId]);
}

/// Is told what readers of snapshots ask for, whether it is here or not.
pub trait Watcher: Send + Sync {
    /// A range of the snapshot with this entry is about to be read. Returns at once.
    fn touched(&self, entry: EntryId, range: Range<u64>);
}
