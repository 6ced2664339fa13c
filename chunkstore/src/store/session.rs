//! A write session: takes records, seals packs, and finally publishes a snapshot.
//!
//! Many sessions write at the same time into shared packs. Records that a session put or found are pinned while it
//! exists. The order that makes a snapshot durable: records are appended to `.part` files; a full pack is synced,
//! renamed, and its directory synced; then its records enter the index in one synced batch; when all packs that the
//! session relies on are there, the snapshot's catalog file is written under a temporary name, synced, renamed, and its
//! directory synced.

use std::sync::Arc;

use crate::catalog::{Entry, IngestReport, Snapshot, SnapshotName};
use crate::error::{Error, Result};
use crate::format::{Header, Record, RecordId};
use crate::pack::{Class, EXTENT_BYTES_MAX, EXTENT_RECORDS_MAX, Extent, ExtentAllocator, RecordLocation};
use crate::store::claims::Taken;
use crate::store::open_packs::{OpenPacks, WriterHandle};
use crate::store::pins::PinSet;
use crate::store::sink::{Base, Claim, Like, Sink};
use crate::store::{Store, verify_record};

/// Content on its way into a store, written by several threads. A session that is dropped without publishing leaves its
/// records in the shared packs, where later sessions find them.
pub struct WriteSession {
    pub(super) handle: WriterHandle,
    pub(super) open_packs: Arc<OpenPacks>,
    parent: Option<Snapshot>,
    trusts_parent: bool,
}

/// The result of looking a record up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It is usable and pinned. `is_sealed`: it is already in the index.
    Sound {
        location: RecordLocation,
        is_sealed: bool,
    },
    /// There is one that can't be decoded.
    Unsound,
    Absent,
}

impl Store {
    /// Begins a session. The parent's content is kept from gc while the session exists.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the parent does not exist, or was just removed.
    pub fn session(self: &Arc<Self>, parent: Option<&SnapshotName>) -> Result<WriteSession> {
        let parent = parent.map(|name| self.catalog().read(name)).transpose()?;
        let roots = parent.iter().filter_map(|parent| parent.entry().root).collect();
        let handle = WriterHandle::new(self, roots);
        // gc lists the catalog before it reads the leases: a parent that still exists after the lease was taken is
        // marked.
        if let Some(parent) = &parent
            && self.catalog().read(&parent.name())?.entry_id() != parent.entry_id()
        {
            return Err(Error::not_found(format!("snapshot {} (replaced meanwhile)", parent.name())));
        }
        let is_whole = parent.as_ref().is_none_or(|parent| !parent.state.partial);
        let trusts_parent = is_whole && self.is_complete()?;
        Ok(WriteSession { handle, open_packs: Arc::clone(&self.open_packs), parent, trusts_parent })
    }

    /// Seals all open packs, so that the records of unpublished sessions outlive this process and need not be sent
    /// again.
    ///
    /// # Errors
    /// If a pack can't be sealed.
    pub fn flush_open_packs(self: &Arc<Self>) -> Result<()> {
        let handle = WriterHandle::new(self, Vec::new());
        self.count_on_pending(&handle)?;
        self.open_packs.flush(&handle)
    }

    /// Pins everything that is pending, and the bases of the deltas among it.
    pub(super) fn count_on_pending(&self, handle: &WriterHandle) -> Result<()> {
        let _look_up = self.collection_lock.look_up();
        let bases = self.open_packs.count_on_all(handle);
        self.locate(&bases)?.iter().flatten().for_each(|base| handle.bases.pin(base));
        Ok(())
    }
}

impl WriteSession {
    /// A session with packs of its own, which are discarded with it. For gc, which copies records.
    pub(crate) fn apart(store: &Arc<Store>) -> Self {
        let handle = WriterHandle::new(store, Vec::new());
        Self { handle, open_packs: Arc::default(), parent: None, trusts_parent: false }
    }

    /// The store that is written to.
    pub fn store(&self) -> &Arc<Store> {
        &self.handle.store
    }

    /// Whether records that the parent has need not be claimed: it is complete, no pack is missing, nothing is known to
    /// be damaged, and a verification found everything since the index was last rebuilt.
    pub fn trusts_parent(&self) -> bool {
        self.trusts_parent
    }

    /// The leased snapshot.
    pub fn parent(&self) -> Option<&Snapshot> {
        self.parent.as_ref()
    }

    /// The parent whose content need not be looked up.
    pub(super) fn trusted_parent(&self) -> Option<&Snapshot> {
        self.parent.as_ref().filter(|_| self.trusts_parent)
    }

    /// Claims records: returns which of them this session is to put.
    ///
    /// # Errors
    /// If the session failed, or the index can't be read.
    pub fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.handle.pins.check()?;
        let claims = &self.store().claims;
        // Claimed before the lookup, so that no other session can put it unseen in between.
        let taken: Vec<Taken> = ids.iter().map(|id| claims.take(self.number(), *id)).collect();
        let found = self.look_up(ids).inspect_err(|_| claims.give_back(self.number(), ids))?;
        let given_back: Vec<RecordId> = (0..ids.len())
            .filter(|at| taken[*at] == Taken::Now && matches!(found[*at], Found::Sound { .. }))
            .map(|at| ids[at])
            .collect();
        claims.give_back(self.number(), &given_back);
        let damaged = self.store().damaged();
        let claim = |((id, taken), found): ((&RecordId, Taken), Found)| match (found, taken) {
            (Found::Sound { .. }, _) | (_, Taken::Before) => Claim::Present,
            (_, Taken::Elsewhere) => Claim::Elsewhere,
            (Found::Absent, Taken::Now) if !damaged.concerns(*id) => Claim::Yours,
            (_, Taken::Now) => Claim::YoursWhole,
        };
        Ok(ids.iter().zip(taken).zip(found).map(claim).collect())
    }

    /// Releases claims on records that were not put.
    pub(crate) fn release_claims(&self) {
        self.store().claims.release(self.number());
    }

    /// The ids of [`WriteSession::bases`], which are pinned. Whether they can be read shows when they are.
    ///
    /// # Errors
    /// As [`WriteSession::bases`].
    pub fn base_ids(&self, like: &[Like]) -> Result<Vec<Option<RecordId>>> {
        self.handle.pins.check()?;
        let wanted = self.store().base_ids(like)?;
        let ids: Vec<RecordId> = wanted.iter().flatten().copied().collect();
        self.pin_full(&ids, &self.handle.pins)?;
        Ok(wanted)
    }

    /// For each record the base of a delta against it: the record itself if it is full, otherwise its own base.
    ///
    /// # Errors
    /// If the session failed, or the index can't be read. A damaged record is never a base.
    pub fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        let wanted = self.base_ids(like)?;
        let ids: Vec<RecordId> = wanted.iter().flatten().copied().collect();
        let plain = self.store().bases(ids.into_iter())?;
        Ok(Base::from_plain(wanted, plain))
    }

    /// Appends records to the packs of their classes, without verifying them. Records that exist are dropped. Durable
    /// only after [`WriteSession::flush`].
    ///
    /// # Errors
    /// [`Error::Refused`] if a delta's base does not exist as a full record; nothing was put then. After any other
    /// error the session has failed.
    #[expect(clippy::needless_pass_by_value, reason = "as the seam has it, where a connection sends them away")]
    pub fn put(&self, records: Vec<Record>) -> Result<()> {
        self.handle.pins.check()?;
        let ids: Vec<RecordId> = records.iter().map(|record| record.header.id).collect();
        self.pin_bases(records.iter().map(|record| &record.header))?;
        let is_needed = self.needed(&ids)?;
        let needed = records.iter().zip(is_needed).filter(|(_, is_needed)| *is_needed);
        let put = needed.map(|(record, _)| record).try_for_each(|record| self.open_packs.append(&self.handle, record));
        self.store().claims.done(self.number(), &ids);
        put.inspect_err(|error| self.fail(error))
    }

    /// Lends an extent at the end of a pack to a client that can write to packs directly
    /// (`pack::write_records`). A session has one extent of a class at a time; a second call
    /// gives up what was not reported of the first. Without an extent, a client can still [put](WriteSession::put).
    ///
    /// # Errors
    /// If the session failed, or a pack can't be created; [`Error::Busy`] if too many packs are lent;
    /// [`Error::Invalid`] for more than [`EXTENT_BYTES_MAX`].
    pub fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        self.handle.pins.check()?;
        if bytes > EXTENT_BYTES_MAX {
            return Err(Error::invalid(format!("no pack has space for {bytes} bytes")));
        }
        self.open_packs.reserve(&self.handle, class, bytes)
    }

    /// Like [`WriteSession::put`], for records that were written one after another into this session's extent: only
    /// their headers are used, the payloads are not read. Returns whether the extent was still the session's; if its
    /// pack had to be sealed meanwhile, nothing was put.
    ///
    /// # Errors
    /// As [`WriteSession::put`]; [`Error::Invalid`] if the records do not fill the extent, or belong to another class.
    pub fn append_written(&self, extent: Extent, headers: &[Header]) -> Result<bool> {
        self.handle.pins.check()?;
        let is_of_class = |header: &Header| Class::of(header.kind, header.codec) == extent.class;
        let bytes: u64 = headers.iter().map(Header::record_bytes).sum();
        let is_too_many = headers.len() > EXTENT_RECORDS_MAX;
        if is_too_many || !headers.iter().all(is_of_class) || bytes != u64::from(extent.bytes) {
            return Err(Error::invalid("the records do not fill the extent"));
        }
        let ids: Vec<RecordId> = headers.iter().map(|header| header.id).collect();
        self.pin_bases(headers.iter())?;
        let is_needed = self.needed(&ids)?;
        let is_put = self.open_packs.append_written(&self.handle, extent, headers.iter().zip(is_needed));
        if is_put {
            self.store().claims.done(self.number(), &ids);
        }
        Ok(is_put)
    }

    /// Verifies records and puts them.
    ///
    /// # Errors
    /// If one of the records is not sound; nothing was put then. Otherwise as [`WriteSession::put`].
    pub fn put_verified(&self, records: Vec<Record>) -> Result<()> {
        records.iter().try_for_each(|record| verify_record(self.store(), record))?;
        self.put(records)
    }

    /// Copies a record that exists; the copy replaces it.
    pub(crate) fn copy(&self, record: &Record) -> Result<()> {
        self.handle.pins.check()?;
        self.open_packs.append(&self.handle, record).inspect_err(|error| self.fail(error))
    }

    /// Makes everything that this session put or relies on durable and known to the index.
    ///
    /// # Errors
    /// If the session failed because a record that it relies on was lost.
    pub fn flush(&self) -> Result<()> {
        self.open_packs.flush(&self.handle)
    }

    /// Bytes that this session added to packs.
    pub fn stored_bytes(&self) -> u64 {
        self.handle.stored_bytes()
    }

    fn number(&self) -> u64 {
        self.handle.pins.number()
    }

    fn fail(&self, error: &Error) {
        self.handle.pins.fail(error);
        self.release_claims();
    }

    /// Whether each of these records is to be put: those that the session claimed, and those that do not exist.
    fn needed(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        let claims = &self.store().claims;
        let mut needed = claims.are_of(self.number(), ids);
        let unclaimed: Vec<usize> = (0..ids.len()).filter(|at| !needed[*at]).collect();
        let asked: Vec<RecordId> = unclaimed.iter().map(|at| ids[*at]).collect();
        for (at, claim) in unclaimed.into_iter().zip(self.claim(&asked)?) {
            needed[at] = claim != Claim::Present;
            if claim == Claim::Elsewhere {
                // The session that claimed it will find it.
                claims.seize(self.number(), ids[at]);
            }
        }
        Ok(needed)
    }

    /// Looks records up and pins the usable ones.
    pub(super) fn look_up(&self, ids: &[RecordId]) -> Result<Vec<Found>> {
        let _look_up = self.store().collection_lock.look_up();
        // In this order: a record is in the index before it stops being pending.
        let pending = self.open_packs.find(ids, &self.handle.pins);
        let rest: Vec<RecordId> = (0..ids.len()).filter(|at| pending[*at].is_none()).map(|at| ids[at]).collect();
        let mut locations = self.store().locate(&rest)?.into_iter();
        let mut found = Vec::with_capacity(ids.len());
        let mut deltas = Vec::new();
        for (at, pending) in pending.into_iter().enumerate() {
            let is_sealed = pending.is_none();
            let location = match pending {
                Some(pending) => Some(pending.location),
                None => locations.next().expect("each of the rest was looked up"),
            };
            match location {
                None => found.push(Found::Absent),
                Some(location) if location.is_full() => {
                    self.handle.pins.pin(&location);
                    found.push(Found::Sound { location, is_sealed });
                }
                // Found before, together with its base.
                Some(location) if is_sealed && self.handle.pins.has(&location) => {
                    found.push(Found::Sound { location, is_sealed });
                }
                Some(location) => {
                    let base = pending.and_then(|pending| pending.base);
                    deltas.push((at, location, base));
                    found.push(Found::Unsound);
                }
            }
        }
        self.look_up_deltas(ids, deltas, &mut found)?;
        Ok(found)
    }

    /// Pins deltas, found at positions of `ids`, if their bases exist.
    fn look_up_deltas(
        &self,
        ids: &[RecordId],
        deltas: Vec<(usize, RecordLocation, Option<RecordId>)>,
        found: &mut [Found],
    ) -> Result<()> {
        let mut based = Vec::with_capacity(deltas.len());
        for (at, location, base) in deltas {
            let (location, base, is_sealed) = match base {
                Some(base) => (location, Some(base), false),
                None => match self.store().base_at(ids[at], location) {
                    Ok((location, base)) => (location, base, true),
                    // An unreadable header is damage; storing the content again heals it.
                    Err(Error::Damaged { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            based.push((at, location, base, is_sealed));
        }
        let bases: Vec<RecordId> = based.iter().map(|(at, _, base, _)| base.unwrap_or(ids[*at])).collect();
        for ((at, location, _, is_sealed), base) in based.into_iter().zip(self.store().locate(&bases)?) {
            if let Some(base) = base.filter(RecordLocation::is_full) {
                self.handle.pins.pin(&base);
                self.handle.pins.pin(&location);
                found[at] = Found::Sound { location, is_sealed };
            }
        }
        Ok(())
    }

    /// Pins those of these records that are in the index and full; returns their locations.
    fn pin_full(&self, ids: &[RecordId], pins: &PinSet) -> Result<Vec<Option<RecordLocation>>> {
        let _look_up = self.store().collection_lock.look_up();
        let mut locations = self.store().locate(ids)?;
        for location in &mut locations {
            *location = location.filter(RecordLocation::is_full);
            if let Some(location) = location {
                pins.pin(location);
            }
        }
        Ok(locations)
    }

    /// Pins the bases of deltas for the packs that the deltas go into.
    pub(super) fn pin_bases<'a>(&self, headers: impl Iterator<Item = &'a Header>) -> Result<()> {
        let mut ids: Vec<RecordId> = headers.filter_map(|header| header.base).collect();
        if ids.is_empty() {
            return Ok(());
        }
        ids.sort_unstable();
        ids.dedup();
        let locations = self.pin_full(&ids, &self.handle.bases)?;
        match ids.iter().zip(locations).find(|(_, location)| location.is_none()) {
            Some((id, _)) => Err(Error::refused(format!("a delta's base {id} is not in the store as a full record"))),
            None => Ok(()),
        }
    }
}

impl Sink for WriteSession {
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        Self::claim(self, ids)
    }

    fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        Self::bases(self, like)
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        Self::put(self, records)
    }

    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot> {
        Self::publish(self, entry, report)
    }
}

impl Drop for WriteSession {
    fn drop(&mut self) {
        self.release_claims();
        self.open_packs.take_back(&self.handle);
        if !Arc::ptr_eq(&self.open_packs, &self.handle.store.open_packs) {
            self.open_packs.discard(&self.handle);
        }
    }
}

impl ExtentAllocator for WriteSession {
    fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        Self::reserve(self, class, bytes)
    }

    fn append_written(&self, extent: Extent, headers: &[Header]) -> Result<bool> {
        Self::append_written(self, extent, headers)
    }
}
