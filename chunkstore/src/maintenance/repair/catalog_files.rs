//! Restoring catalog files from the entries that packs contain.
//!
//! A snapshot's state is lost with its file, so a restored snapshot is held: it can't be pruned before someone has
//! looked.

use super::{HOLD, Mending};
use crate::catalog::{Snapshot, SnapshotName, State};
use crate::error::{Error, Result};
use crate::format::{EntryId, RecordId};
use crate::maintenance::verify;
use crate::storage::quarantine;
use crate::store::Store;

impl Mending<'_> {
    /// Restores what can be restored and quarantines the rest, so that gc can work again.
    pub(super) fn restore_catalog(&mut self) -> Result<()> {
        let check = &self.found.catalog;
        for (name, entries) in &check.unreadable {
            self.progress.check()?;
            match self.newest(entries)? {
                Some(snapshot) => self.restore(snapshot)?,
                None => self.give_up(name)?,
            }
        }
        self.restore_unlisted(&check.unlisted)?;
        for path in &check.strangers {
            self.put_away(path)?;
        }
        Ok(())
    }

    /// The latest of the snapshots with these entries; snapshots that were not removed come first.
    fn newest(&self, entries: &[EntryId]) -> Result<Option<Snapshot>> {
        let snapshots = entries.iter().map(|id| read_entry(self.store, *id)).collect::<Result<Vec<_>>>()?;
        let removed = self.store.catalog().tombstones()?;
        let was_removed = |snapshot: &Snapshot| removed.iter().any(|tombstone| tombstone.is_of(snapshot));
        Ok(snapshots.into_iter().max_by_key(|snapshot| (!was_removed(snapshot), snapshot.entry().created)))
    }

    /// Replaces a damaged file.
    fn restore(&mut self, snapshot: Snapshot) -> Result<()> {
        let snapshot = self.with_state(snapshot)?;
        if !self.dry_run {
            let copy = self.store.catalog().restore(&snapshot)?;
            self.report.quarantined.extend(copy);
        }
        self.tell_restored(&snapshot, "was damaged");
        Ok(())
    }

    fn restore_unlisted(&mut self, unlisted: &[(SnapshotName, EntryId)]) -> Result<()> {
        let mut snapshots = Vec::with_capacity(unlisted.len());
        for (_, id) in unlisted {
            snapshots.push(read_entry(self.store, *id)?);
        }
        snapshots.sort_unstable_by_key(|snapshot| std::cmp::Reverse(snapshot.entry().created));
        for snapshot in snapshots {
            self.progress.check()?;
            let name = snapshot.name();
            if let Err(Error::NotFound { .. }) = self.store.catalog().read(&name) {
                let snapshot = self.with_state(snapshot)?;
                if !self.dry_run {
                    self.store.catalog().publish(&snapshot)?;
                }
                self.tell_restored(&snapshot, "was missing");
                continue;
            }
            // A name is given out again only after a removal.
            if !self.dry_run {
                self.store.catalog().bury(&snapshot)?;
            }
            self.tell(format!("catalog: the tombstone of {name}, an older removed snapshot, restored"));
        }
        Ok(())
    }

    /// The state of a snapshot that lost its own.
    fn with_state(&self, mut snapshot: Snapshot) -> Result<Snapshot> {
        let mut state = State::default();
        state.hold(HOLD)?;
        state.partial = verify::absent_below(self.store, &snapshot, self.progress)? > 0;
        snapshot.state = state;
        Ok(snapshot)
    }

    fn tell_restored(&mut self, snapshot: &Snapshot, why: &str) {
        let name = snapshot.name();
        if snapshot.state.partial {
            self.report.restored_in_part.push(name.to_string());
        }
        self.tell(format!("catalog: {name} {why}; restored from the entry in a pack, and held ({HOLD:?})"));
    }

    fn give_up(&mut self, name: &SnapshotName) -> Result<()> {
        if !self.dry_run {
            let to = self.store.catalog().put_away(name)?;
            self.report.quarantined.push(to);
        }
        self.report.beyond_help.push(format!(
            "snapshot {name}: its catalog file is damaged and its entry is in no pack; pull it from a site that has \
             it"
        ));
        self.tell(format!("catalog: the damaged file of {name} quarantined"));
        Ok(())
    }

    /// Quarantines a file that does not belong where it is.
    pub(super) fn put_away(&mut self, path: &str) -> Result<()> {
        if !self.dry_run {
            let to = quarantine::put_away(&**self.store.storage(), path)?;
            self.report.quarantined.push(to);
        }
        self.tell(format!("{path}: quarantined, it does not belong there"));
        Ok(())
    }
}

/// The snapshot whose entry a pack contains.
fn read_entry(store: &Store, id: EntryId) -> Result<Snapshot> {
    let mut read = None;
    store.records(&[RecordId::from(id)], &mut |_, record| {
        read = Some(record);
        Ok(())
    })?;
    let record = read.expect("every position is handed over")?;
    let damaged = |detail| Error::damaged(format!("snapshot entry {id}"), detail);
    let (header, payload) = (record.header, record.payload);
    let plain = store.codec().decode(&header, &payload, None).map_err(damaged)?;
    Snapshot::from_entry(id, plain, State::default())
}
