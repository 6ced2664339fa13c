//! Rereads records that a reader could not read, and lists those that are really damaged.

use crate::error::{Error, Result};
use crate::format::manifest::ChunkSource;
use crate::format::{ChunkId, Codec, Kind, NodeId, Record, RecordId};
use crate::pack::RecordLocation;
use crate::store::damaged::BadRecord;
use crate::store::{Store, verify_record};

impl Store {
    /// Reads records that were reported as damaged. Those that are, and damaged bases of others, are added to the list
    /// of damaged records, so that they count as absent until they are put again. Returns for each whether it can't be
    /// read.
    ///
    /// # Errors
    /// If the index can't be read, or the list of damaged records can't be written.
    pub fn check_suspects(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        let mut found = Vec::new();
        let mut answers = Vec::with_capacity(ids.len());
        for (id, location) in ids.iter().zip(self.locate(ids)?) {
            let is_bad = match location {
                None => true,
                Some(location) if self.can_read(*id, location.kind)? => false,
                Some(location) => {
                    self.blame(*id, location, &mut found)?;
                    true
                }
            };
            answers.push(is_bad);
        }
        for record in &found {
            tracing::error!("pack {} at offset {}: record {} is damaged", record.pack, record.offset, record.id);
        }
        if !found.is_empty() {
            self.add_damaged(&found)?;
        }
        Ok(answers)
    }

    fn can_read(&self, id: RecordId, kind: Kind) -> Result<bool> {
        let read = match kind {
            Kind::Chunk => self.chunk(ChunkId::from_bytes(*id.as_bytes())).map(drop),
            Kind::Node => self.node(NodeId::from_bytes(*id.as_bytes())).map(drop),
            Kind::Entry => self.stored(id).and_then(|record| verify_record(self, &record)),
        };
        match read {
            Ok(()) => Ok(true),
            Err(Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Finds the damage: in the record itself, or in its base.
    fn blame(&self, id: RecordId, location: RecordLocation, found: &mut Vec<BadRecord>) -> Result<()> {
        let lost_base = match self.stored(id) {
            Ok(record) if record.header.codec == Codec::Delta => record.header.base,
            Ok(_) | Err(Error::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        let lost_base = match lost_base {
            Some(base) if self.bases(std::iter::once(base))?.is_empty() => Some(base),
            _ => None,
        };
        let mut add = |id, location: RecordLocation, base_lost| {
            let pack = self.packs().row(location.pack).map(|row| row.id);
            found.extend(pack.map(|pack| BadRecord { pack, offset: location.offset, id, base_lost }));
        };
        add(id, location, lost_base.is_some());
        if let Some(base) = lost_base
            && let Some(location) = self.locate(&[base])?[0]
        {
            add(base, location, false);
        }
        Ok(())
    }

    fn stored(&self, id: RecordId) -> Result<Record> {
        let mut stored = None;
        self.records(&[id], &mut |_, record| {
            stored = Some(record);
            Ok(())
        })?;
        stored.expect("every position is handed over")
    }
}
