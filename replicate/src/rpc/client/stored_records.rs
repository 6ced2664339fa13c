//! Reads records as stored, directly from packs, for a transfer to send on.

use std::collections::HashSet;
use std::sync::Arc;

use chunkstore::Result;
use chunkstore::format::{Codec, Record, RecordId};
use chunkstore::pack::RecordReader;

use super::{Arrived, Client, LocalPacks, LocalReader};
use crate::rpc::wire::Fetch;

/// Records that are read, and in memory, together.
const GROUP_RECORDS: usize = 64;

impl Client {
    /// [`Client::records`] for a client that reads packs: records that can't be read there in this form come through
    /// the connection.
    pub(super) async fn read_records(
        &self,
        packs: &Arc<LocalPacks>,
        ids: &[RecordId],
        fetch: Fetch,
        each: &mut (dyn FnMut(Arrived) -> Result<()> + Send),
    ) -> Result<()> {
        let mut left = Vec::new();
        let mut bases_given = HashSet::new();
        for (group, ids) in ids.chunks(GROUP_RECORDS).enumerate() {
            let records = self.read_group(packs, ids.to_vec()).await?;
            if fetch == Fetch::WithBases {
                let bases = records.iter().flatten().filter_map(|record| record.header.base);
                let bases: HashSet<_> = bases.filter(|base| !bases_given.contains(base)).collect();
                let bases = self.read_group(packs, bases.into_iter().collect()).await?.into_iter().flatten();
                for base in bases.filter(|base| base.header.codec != Codec::Delta) {
                    bases_given.insert(base.header.id);
                    each(Arrived::Base(base))?;
                }
            }
            for (at, record) in records.into_iter().enumerate() {
                let at = group * GROUP_RECORDS + at;
                match record.filter(|record| is_wanted(record, fetch, &bases_given)) {
                    Some(record) => each(Arrived::Wanted(at, Ok(record)))?,
                    None => left.push(at),
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let asked: Vec<RecordId> = left.iter().map(|at| ids[*at]).collect();
        self.fetch_records(&asked, fetch, &mut |arrived| match arrived {
            Arrived::Wanted(at, record) => each(Arrived::Wanted(left[at], record)),
            base @ Arrived::Base(_) => each(base),
        })
        .await
    }

    /// Records in the order of `ids`, as far as they can be read.
    async fn read_group(&self, packs: &Arc<LocalPacks>, ids: Vec<RecordId>) -> Result<Vec<Option<Record>>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let packs = Arc::clone(packs);
        self.block(move |client| {
            let mut records: Vec<Option<Record>> = vec![None; ids.len()];
            RecordReader::new(&LocalReader::new(&packs, client)).records(&ids, &mut |at, record| {
                records[at] = record.ok();
                Ok(())
            })?;
            Ok(records)
        })
        .await?
    }
}

/// Whether a record has the requested form.
fn is_wanted(record: &Record, fetch: Fetch, bases: &HashSet<RecordId>) -> bool {
    match fetch {
        Fetch::Stored => true,
        Fetch::WithBases => record.header.base.is_none_or(|base| bases.contains(&base)),
        Fetch::Whole => record.header.codec != Codec::Delta,
    }
}
