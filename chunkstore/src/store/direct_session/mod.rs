//! A session that writes all its packs directly: for tests.

use crate::catalog::{Entry, IngestReport, Snapshot};
use crate::error::Result;
use crate::format::{Record, RecordId};
use crate::pack::DirectWriter;
use crate::store::WriteSession;
use crate::store::sink::{Base, Claim, Like, Sink};

/// A session in this process that writes its packs directly, whatever their size: for tests.
pub struct DirectWriteSession<'a> {
    session: &'a WriteSession,
    beside: DirectWriter,
}

impl<'a> DirectWriteSession<'a> {
    /// A sink that puts into a session.
    pub fn new(session: &'a WriteSession) -> Self {
        Self { session, beside: DirectWriter::new(0) }
    }
}

impl Sink for DirectWriteSession<'_> {
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.session.claim(ids)
    }

    fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        self.session.bases(like)
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        let left = self.beside.put(self.session, &**self.session.store().storage(), records)?;
        if left.is_empty() { Ok(()) } else { self.session.put(left) }
    }

    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot> {
        self.session.publish(entry, report)
    }
}

#[cfg(test)]
mod tests;
