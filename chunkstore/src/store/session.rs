//! A write session: records in, sealed packs and at last a published snapshot out.
//!
//! Many sessions write at once, into common packs. What a session put or found is protected from gc while it lives.
//! The order that makes a snapshot durable: records are appended to `.part` files; a full pack is synced, renamed and
//! its directory synced; then its records enter the index in one synced batch; and only when all packs that the session
//! counts on are there is the snapshot's catalog entry written aside, synced, renamed, and its directory synced.

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

/// Content on its way into a store. Used by several threads at once. Dropped without publishing, it leaves its records
/// in the common packs, where the next session finds them.
pub struct WriteSession {
    pub(super) handle: WriterHandle,
    pub(super) open_packs: Arc<OpenPacks>,
    parent: Option<Snapshot>,
    trusts_parent: bool,
}

/// What was found of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It can be counted on, and is protected. Whether it is in the index already.
    Sound {
        place: RecordLocation,
        is_sealed: bool,
    },
    /// There is one that can't be decoded.
    Unsound,
    Absent,
}

impl Store {
    /// Begins a session. What the parent has is safe from gc while the session lives.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the parent is no snapshot, or none any more.
    pub fn session(self: &Arc<Self>, parent: Option<&SnapshotName>) -> Result<WriteSession> {
        let parent = parent.map(|name| self.catalog().read(name)).transpose()?;
        let roots = parent.iter().filter_map(|parent| parent.entry().root).collect();
        let handle = WriterHandle::new(self, roots);
        // gc lists the catalog before it asks for leases: what is still there now, after the lease, is marked.
        if let Some(parent) = &parent
            && self.catalog().read(&parent.name())?.entry_id() != parent.entry_id()
        {
            return Err(Error::not_found(format!("snapshot {}, which was replaced just now,", parent.name())));
        }
        let is_whole = parent.as_ref().is_none_or(|parent| !parent.state.partial);
        let trusts_parent = is_whole && self.is_complete()?;
        Ok(WriteSession { handle, open_packs: Arc::clone(&self.open_packs), parent, trusts_parent })
    }

    /// Seals all packs that are being written, so that what unpublished sessions put outlives this process and is not
    /// sent again.
    ///
    /// # Errors
    /// If a pack can't be sealed.
    pub fn flush_open_packs(self: &Arc<Self>) -> Result<()> {
        let handle = WriterHandle::new(self, Vec::new());
        self.count_on_pending(&handle)?;
        self.open_packs.flush(&handle)
    }

    /// Lets an author count on all that is pending; as everybody who counts on a delta, also on its base.
    pub(super) fn count_on_pending(&self, handle: &WriterHandle) -> Result<()> {
        let _look_up = self.collection_lock.look_up();
        let bases = self.open_packs.count_on_all(handle);
        self.places(&bases)?.iter().flatten().for_each(|base| handle.bases.pin(base));
        Ok(())
    }
}

impl WriteSession {
    /// A session with packs of its own, which are given up with it: for gc, which copies records.
    pub(crate) fn apart(store: &Arc<Store>) -> Self {
        let handle = WriterHandle::new(store, Vec::new());
        Self { handle, open_packs: Arc::default(), parent: None, trusts_parent: false }
    }

    /// The store written to.
    pub fn store(&self) -> &Arc<Store> {
        &self.handle.store
    }

    /// Whether what the parent has need not be claimed: it is not partial, no pack is missing, nothing is known to be
    /// damaged, and the index has not been rebuilt since a verification found everything.
    pub fn trusts_parent(&self) -> bool {
        self.trusts_parent
    }

    /// The snapshot that it leases.
    pub fn parent(&self) -> Option<&Snapshot> {
        self.parent.as_ref()
    }

    /// The parent whose content need not be looked up.
    pub(super) fn trusted_parent(&self) -> Option<&Snapshot> {
        self.parent.as_ref().filter(|_| self.trusts_parent)
    }

    /// Asks which records the store lacks, and takes them on.
    ///
    /// # Errors
    /// If the session failed, or the index can't be read.
    pub fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.handle.pins.check()?;
        let claims = &self.store().claims;
        // Taken before it is looked up: nobody else puts it unseen in between.
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

    /// Frees what was taken on and not put.
    pub(crate) fn release_claims(&self) {
        self.store().claims.release(self.number());
    }

    /// The names of [`WriteSession::bases`], which are protected; whether they can be read shows when they are.
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

    /// For each the base that a delta against it would have: the record itself if it is full, else its own base.
    ///
    /// # Errors
    /// If the session failed, or the index can't be read. What is damaged is no base.
    pub fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        let wanted = self.base_ids(like)?;
        let ids: Vec<RecordId> = wanted.iter().flatten().copied().collect();
        let plain = self.store().bases(ids.into_iter())?;
        Ok(Base::from_plain(wanted, plain))
    }

    /// Appends records to the packs of their classes, taking them for what they say. What is there already is dropped.
    /// Durable only after [`WriteSession::flush`].
    ///
    /// # Errors
    /// [`Error::Refused`] if a delta's base is not there as a full record; nothing was put then. After any other error
    /// the session has failed.
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

    /// Lends room at the end of a pack, to whoever can write into it beside this process
    /// (`pack::write_records`). The session has one room of a class at a time: what was written
    /// into another and not put yet is given up. Whoever is lent none can [put](WriteSession::put) all the same.
    ///
    /// # Errors
    /// If the session failed, or a pack can't be begun; [`Error::Busy`] if too many are lent; [`Error::Invalid`] if it
    /// is more than [`EXTENT_BYTES_MAX`].
    pub fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        self.handle.pins.check()?;
        if bytes > EXTENT_BYTES_MAX {
            return Err(Error::invalid(format!("no pack has room for {bytes} bytes")));
        }
        self.open_packs.reserve(&self.handle, class, bytes)
    }

    /// As [`WriteSession::put`], of records that were written into room that this session was lent, one after another:
    /// they are taken for what their headers say, and not read. Returns whether the room was the session's still; it is
    /// not if the pack had to be sealed meanwhile, and nothing was put then.
    ///
    /// # Errors
    /// As [`WriteSession::put`]; [`Error::Invalid`] if the records don't fill the room, or belong into a pack of
    /// another class.
    pub fn append_written(&self, extent: Extent, headers: &[Header]) -> Result<bool> {
        self.handle.pins.check()?;
        let is_of_class = |header: &Header| Class::of(header.kind, header.codec) == extent.class;
        let bytes: u64 = headers.iter().map(Header::record_bytes).sum();
        let is_too_many = headers.len() > EXTENT_RECORDS_MAX;
        if is_too_many || !headers.iter().all(is_of_class) || bytes != u64::from(extent.bytes) {
            return Err(Error::invalid("the records are not those for which there is room"));
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

    /// Makes a copy of a record that is there already, which takes its place.
    pub(crate) fn copy(&self, record: &Record) -> Result<()> {
        self.handle.pins.check()?;
        self.open_packs.append(&self.handle, record).inspect_err(|error| self.fail(error))
    }

    /// Makes all that this session put or counts on durable and known to the index.
    ///
    /// # Errors
    /// If the session failed: something that it counts on was lost.
    pub fn flush(&self) -> Result<()> {
        self.open_packs.flush(&self.handle)
    }

    /// Bytes by which packs grew because of it.
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

    /// Which of these records are to be put: those that the session has taken on, and those that are not there.
    fn needed(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        let claims = &self.store().claims;
        let mut needed = claims.are_of(self.number(), ids);
        let unclaimed: Vec<usize> = (0..ids.len()).filter(|at| !needed[*at]).collect();
        let asked: Vec<RecordId> = unclaimed.iter().map(|at| ids[*at]).collect();
        for (at, claim) in unclaimed.into_iter().zip(self.claim(&asked)?) {
            needed[at] = claim != Claim::Present;
            if claim == Claim::Elsewhere {
                // Whoever was to put it will find it there.
                claims.seize(self.number(), ids[at]);
            }
        }
        Ok(needed)
    }

    /// Looks records up and protects those that can be counted on.
    pub(super) fn look_up(&self, ids: &[RecordId]) -> Result<Vec<Found>> {
        let _look_up = self.store().collection_lock.look_up();
        // In this order: a record is in the index before it ceases to be pending.
        let pending = self.open_packs.find(ids, &self.handle.pins);
        let rest: Vec<RecordId> = (0..ids.len()).filter(|at| pending[*at].is_none()).map(|at| ids[at]).collect();
        let mut places = self.store().places(&rest)?.into_iter();
        let mut found = Vec::with_capacity(ids.len());
        let mut deltas = Vec::new();
        for (at, pending) in pending.into_iter().enumerate() {
            let is_sealed = pending.is_none();
            let place = match pending {
                Some(pending) => Some(pending.place),
                None => places.next().expect("each of the rest was looked up"),
            };
            match place {
                None => found.push(Found::Absent),
                Some(place) if place.is_full() => {
                    self.handle.pins.pin(&place);
                    found.push(Found::Sound { place, is_sealed });
                }
                // Found before, with its base.
                Some(place) if is_sealed && self.handle.pins.has(&place) => {
                    found.push(Found::Sound { place, is_sealed });
                }
                Some(place) => {
                    let base = pending.and_then(|pending| pending.base);
                    deltas.push((at, place, base));
                    found.push(Found::Unsound);
                }
            }
        }
        self.look_up_deltas(ids, deltas, &mut found)?;
        Ok(found)
    }

    /// Protects deltas, found at positions of `ids`, if their bases are there.
    fn look_up_deltas(
        &self,
        ids: &[RecordId],
        deltas: Vec<(usize, RecordLocation, Option<RecordId>)>,
        found: &mut [Found],
    ) -> Result<()> {
        let mut based = Vec::with_capacity(deltas.len());
        for (at, place, base) in deltas {
            let (place, base, is_sealed) = match base {
                Some(base) => (place, Some(base), false),
                None => match self.store().base_at(ids[at], place) {
                    Ok((place, base)) => (place, base, true),
                    // A header that can't be read is damage; to store the content again heals it.
                    Err(Error::Damaged { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            based.push((at, place, base, is_sealed));
        }
        let bases: Vec<RecordId> = based.iter().map(|(at, _, base, _)| base.unwrap_or(ids[*at])).collect();
        for ((at, place, _, is_sealed), base) in based.into_iter().zip(self.store().places(&bases)?) {
            if let Some(base) = base.filter(RecordLocation::is_full) {
                self.handle.pins.pin(&base);
                self.handle.pins.pin(&place);
                found[at] = Found::Sound { place, is_sealed };
            }
        }
        Ok(())
    }

    /// Protects those of these records that are in the index and full; returns where they are.
    fn pin_full(&self, ids: &[RecordId], pins: &PinSet) -> Result<Vec<Option<RecordLocation>>> {
        let _look_up = self.store().collection_lock.look_up();
        let mut places = self.store().places(ids)?;
        for place in &mut places {
            *place = place.filter(RecordLocation::is_full);
            if let Some(place) = place {
                pins.pin(place);
            }
        }
        Ok(places)
    }

    /// Protects the bases of deltas for the packs that these go into.
    pub(super) fn pin_bases<'a>(&self, headers: impl Iterator<Item = &'a Header>) -> Result<()> {
        let mut ids: Vec<RecordId> = headers.filter_map(|header| header.base).collect();
        if ids.is_empty() {
            return Ok(());
        }
        ids.sort_unstable();
        ids.dedup();
        let places = self.pin_full(&ids, &self.handle.bases)?;
        match ids.iter().zip(places).find(|(_, place)| place.is_none()) {
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
