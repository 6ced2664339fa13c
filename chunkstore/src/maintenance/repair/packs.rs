//! Replacing damaged packs.
//!
//! Their intact records are copied to new packs. When these are durable and in the index, the old files move to
//! `quarantine/`. A file that lies under another pack's name is searched as well.

use std::collections::HashSet;

use super::Mending;
use crate::catalog::Snapshot;
use crate::error::{Error, Result};
use crate::format::{PackId, RecordId};
use crate::maintenance::verify::NO_PACK;
use crate::pack::{self, Inventory, PackReader, TableEntry};
use crate::storage::quarantine;
use crate::store::damaged::{BadRecord, Damaged};
use crate::store::index::Change;
use crate::store::{Store, WriteSession, entry_record, verify_record};

/// Records that are looked up together.
const BATCH_RECORDS: usize = 4096;

impl Mending<'_> {
    /// Replaces damaged packs, and adds entries that are no longer in any pack.
    pub(super) fn replace_packs(&mut self) -> Result<()> {
        let unfit: Vec<PackId> = self.found.unfit.iter().map(|row| row.id).collect();
        let strangers = Inventory::read(&**self.store.storage())?.strangers;
        let misplaced: Vec<PackId> =
            strangers.iter().filter_map(|name| name.strip_suffix(".pack")?.parse().ok()).collect();
        let lacking = self.unrepeated_entries()?;
        if !self.dry_run {
            let files: Vec<PackId> = unfit.iter().chain(&misplaced).copied().collect();
            let mut rescue = Rescue { store: self.store, unfit: numbers(&unfit), copied: HashSet::new() };
            // Bases first: deltas are checked against them.
            for of_deltas in [false, true] {
                let session = WriteSession::apart(self.store);
                for id in &files {
                    self.progress.check()?;
                    rescue.copy(*id, of_deltas, &session)?;
                }
                if !of_deltas {
                    lacking
                        .iter()
                        .try_for_each(|snapshot| session.copy(&entry_record(self.store.codec(), snapshot)))?;
                }
                session.flush()?;
            }
            self.report.copied_records += rescue.copied.len() as u64;
            self.quarantine(&unfit)?;
            if !self.store.missing_packs().is_empty() {
                self.store.forget_missing_packs()?;
            }
        }
        for row in self.found.missing.iter() {
            self.tell(format!("pack {}: missing; the records that snapshots need from it are listed as lost", row.id));
        }
        for id in unfit {
            self.tell(format!("pack {id}: its intact records moved to new packs, the file quarantined"));
        }
        for snapshot in lacking {
            self.tell(format!("catalog: the entry of {} is in a pack again", snapshot.name()));
        }
        strangers.iter().try_for_each(|name| self.put_away(&format!("{}/{name}", pack::DIR)))
    }

    /// The snapshots whose entry is in no pack.
    fn unrepeated_entries(&self) -> Result<Vec<Snapshot>> {
        let snapshots = &self.found.catalog.snapshots;
        let ids: Vec<RecordId> = snapshots.iter().map(|snapshot| snapshot.entry_id().into()).collect();
        let unrepeated = snapshots.iter().zip(self.store.locate(&ids)?).filter(|(_, location)| location.is_none());
        Ok(unrepeated.map(|(snapshot, _)| snapshot.clone()).collect())
    }

    /// Takes packs out of the index, then out of `packs/`, then out of the list of damaged records.
    fn quarantine(&mut self, packs: &[PackId]) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let gone = numbers(packs);
        forget(self.store, &gone)?;
        for id in packs {
            self.store.packs().forget(id.number);
            let to = quarantine::put_away(&**self.store.storage(), &pack::path(*id))?;
            self.report.quarantined.push(to);
        }
        let mut damaged = Damaged::clone(&self.store.damaged());
        damaged.retain(|record| !packs.contains(&record.pack));
        for id in &self.found.lost {
            if !damaged.concerns(*id) {
                // The next backup must not skip it because its parent has it.
                damaged.insert(BadRecord { pack: NO_PACK, offset: 0, id: *id, base_lost: false });
            }
        }
        self.store.set_damaged(damaged)
    }
}

fn numbers(packs: &[PackId]) -> HashSet<u32> {
    packs.iter().map(|id| id.number).collect()
}

/// Takes packs, and those of their records that are nowhere else, out of the index.
fn forget(store: &Store, gone: &HashSet<u32>) -> Result<()> {
    let mut ids = Vec::new();
    store.index().each_record(&mut |id, location| {
        if gone.contains(&location.pack) {
            ids.push(id);
        }
        Ok(())
    })?;
    let _index = store.change_index();
    let mut change = Change::default();
    for (id, location) in ids.iter().zip(store.index().locate(&ids)?) {
        if location.is_some_and(|location| gone.contains(&location.pack)) {
            change.forget(*id);
        }
    }
    for number in gone {
        change.forget_pack(*number);
    }
    store.index().apply(&change)
}

/// Copies intact records.
struct Rescue<'a> {
    store: &'a Store,
    /// Numbers of the packs that will go.
    unfit: HashSet<u32>,
    copied: HashSet<RecordId>,
}

impl Rescue<'_> {
    /// Copies the intact records of a file that are in no remaining pack.
    fn copy(&mut self, id: PackId, of_deltas: bool, session: &WriteSession) -> Result<()> {
        let found = PackReader::open(&**self.store.storage(), id).and_then(|reader| Ok((reader.scan()?, reader)));
        let (mut entries, reader) = match found {
            Ok((scanned, reader)) => (scanned.entries, reader),
            Err(error) if error.is_damage() => return Ok(()),
            Err(error) => return Err(error),
        };
        entries.retain(|entry| entry.base.is_some() == of_deltas);
        for entries in entries.chunks(BATCH_RECORDS) {
            let ids: Vec<RecordId> = entries.iter().map(|entry| entry.id).collect();
            for (entry, location) in entries.iter().zip(self.store.locate(&ids)?) {
                let stays = location.is_some_and(|location| !self.unfit.contains(&location.pack));
                if !stays && !self.copied.contains(&entry.id) && self.copy_record(&reader, entry, session)? {
                    self.copied.insert(entry.id);
                }
            }
        }
        Ok(())
    }

    /// Copies a record if it is intact; a delta without its base may become useful when the base is found.
    fn copy_record(&self, reader: &PackReader, entry: &TableEntry, session: &WriteSession) -> Result<bool> {
        let record = match reader.record(u64::from(entry.offset), entry.stored_bytes) {
            Err(error) if error.is_damage() => return Ok(false),
            record => record?,
        };
        let lacks_base = match record.header.base {
            Some(base) => !self.store.is_full(&[base])?[0],
            None => false,
        };
        match verify_record(self.store, &record) {
            Err(Error::Damaged { .. }) if !lacks_base => Ok(false),
            // Entries of a newer version are kept as they are.
            Ok(()) | Err(Error::Damaged { .. } | Error::Refused { .. }) => session.copy(&record).map(|()| true),
            Err(error) => Err(error),
        }
    }
}
