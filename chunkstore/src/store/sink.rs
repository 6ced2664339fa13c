//! The seam for writing: what an ingest asks of a store and gives to it.
//!
//! A session of a store in this process is one ([`WriteSession`](crate::store::WriteSession)), a session over a
//! connection another. Whoever ingests can't tell them apart.

use std::collections::HashMap;
use std::mem;
use std::ops::Deref;
use std::sync::Arc;

use crate::catalog::{Entry, IngestReport, Snapshot};
use crate::error::Result;
use crate::format::{Record, RecordId, buffers};

/// What became of a record that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The store has it, sound and with its base if it is a delta, or it lies in a pack that is being written, or this
    /// session has taken it on before. gc keeps it while the session lives.
    Present,
    /// The store lacks it. The caller has taken on to put it.
    Yours,
    /// As [`Claim::Yours`], and there is a damaged record of this id: it must be put as a full record.
    YoursWhole,
    /// Another session has taken it on and not put it yet. To be asked for again.
    Elsewhere,
}

/// What a new record resembles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    /// This record, such as what the parent snapshot has at the same offset.
    Record(RecordId),
    /// Chunks with this sketch.
    Sketch(u32),
}

/// A full record to encode a delta against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub id: RecordId,
    /// Its plain bytes, verified. Several records may have the same base.
    pub bytes: Arc<BaseBytes>,
}

/// The bytes of a base. Their memory serves for the next when nobody needs them any more.
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

/// Takes content on its way into a store. Used by several threads at once.
pub trait Sink: Send + Sync {
    /// Asks which records the store lacks, and takes them on. Who takes on records must put them before waiting for
    /// those of others.
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>>;

    /// For each the base that a delta against it would have; `None` if there is none that can be read. gc keeps bases
    /// while the session lives.
    fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>>;

    /// Puts records. Those that are there already are dropped. Durable only when a snapshot is published.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if a delta's base is not there as a full record.
    fn put(&self, records: Vec<Record>) -> Result<()>;

    /// Publishes a snapshot. It is durable when this returns. The report's `stored_bytes` are filled in, and the time
    /// that publishing took is added.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) if there is a snapshot of this name;
    /// [`Error::Damaged`](crate::Error::Damaged), naming it, if something below the root is not there.
    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot>;
}
