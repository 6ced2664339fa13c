//! The seam for writing: the requests that an ingest makes of a store.
//!
//! Both a session of a store in this process ([`WriteSession`](crate::store::WriteSession)) and one over a connection
//! implement it. An ingest does not depend on which it uses.

use std::collections::HashMap;
use std::mem;
use std::ops::Deref;
use std::sync::Arc;

use crate::catalog::{Entry, IngestReport, Snapshot};
use crate::error::Result;
use crate::format::{Record, RecordId, buffers};

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The store has it, intact and with its base if it is a delta, or it lies in a pack that is being written, or this
    /// session has claimed it before. gc keeps it while the session exists.
    Present,
    /// The store lacks it, and the caller is to put it.
    Yours,
    /// As [`Claim::Yours`], but a damaged record of this id exists: it must be put as a full record.
    YoursWhole,
    /// Another session has claimed it and not put it yet. Ask again later.
    Elsewhere,
}

/// Selects a base for a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    /// This record, for example the one that the parent snapshot has at the same offset.
    Record(RecordId),
    /// A chunk with this sketch.
    Sketch(u32),
}

/// A full record to encode a delta against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its id.
    pub id: RecordId,
    /// Its plain bytes, verified. Several records may share a base.
    pub bytes: Arc<BaseBytes>,
}

/// The bytes of a base. The memory is reused when the last reference is dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct BaseBytes(Vec<u8>);

impl Deref for BaseBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for BaseBytes {
    fn drop(&mut self) {
        buffers::give(mem::take(&mut self.0));
    }
}

impl Base {
    /// The bases with these ids, in their order, from the plain bytes of those that could be read.
    pub fn from_plain(
        ids: impl IntoIterator<Item = Option<RecordId>>,
        plain: HashMap<RecordId, Vec<u8>>,
    ) -> Vec<Option<Self>> {
        let shared: HashMap<RecordId, Arc<BaseBytes>> =
            plain.into_iter().map(|(id, bytes)| (id, Arc::new(BaseBytes(bytes)))).collect();
        let base = |id: RecordId| shared.get(&id).map(|bytes| Self { id, bytes: Arc::clone(bytes) });
        ids.into_iter().map(|id| id.and_then(base)).collect()
    }
}

/// Takes content on its way into a store, from several threads.
pub trait Sink: Send + Sync {
    /// Claims records. A caller must put the records that it claimed before it waits for those of others.
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>>;

    /// For each the base of a delta against it; `None` if none can be read. gc keeps bases while the session exists.
    fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>>;

    /// Puts records; those that exist are dropped. Durable only when a snapshot is published.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if a delta's base does not exist as a full record.
    fn put(&self, records: Vec<Record>) -> Result<()>;

    /// Publishes a snapshot. It is durable when this returns. Fills in the report's `stored_bytes` and adds the time
    /// that publishing took.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if another snapshot has the name;
    /// [`Error::Damaged`](crate::Error::Damaged) with the name of a record below the root that is missing.
    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot>;
}
