//! The packs being written by all sessions of a store: one shared open pack for each class, packs that are lent to one
//! writer, and packs being sealed.
//!
//! Appending copies to the page cache under one lock. Sealing runs on separate threads. A record is *pending* from when
//! it is appended until its pack is in the index or lost. If a pack can't be written or sealed, its pending records are
//! dropped and every session that pinned one of them fails.
//!
//! A writer that can open the store's files may borrow a pack of its own, reserve an extent at its end, write into it
//! directly, and then report the records. An extent is never lent twice: what the borrower has not reported when the
//! pack is sealed becomes a gap, so a late write into it does no harm.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::limits::{CHUNK_BYTES_MIN, PACK_BYTES_MAX, PACK_BYTES_TARGET, SEGMENT_BYTES};
use crate::format::{HEADER_BYTES, Header, NodeId, PackId, Record, RecordId};
use crate::pack::{
    Class, EXTENT_BYTES_MAX, EXTENT_RECORDS_MAX, Extent, FOOTER_BYTES, PACK_HEADER_BYTES, PackHeader, PackWriter,
    RecordLocation, TABLE_ENTRY_BYTES, part_path,
};
use crate::store::pins::PinSet;
use crate::store::{Store, pack_row};
use crate::truth_lock::{Condvar, TruthGuard, TruthMutex};

/// Packs being sealed at a time before writers wait.
const SEALING_MAX: usize = 2;

/// The packs being written by all sessions, or by one that has packs of its own.
pub(crate) struct OpenPacks {
    state: TruthMutex<State>,
    /// Notified when a pack was sealed or lost.
    sealed: Condvar,
}

type Spawn = fn(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;

struct State {
    open: Vec<OpenPack>,
    sealing: HashSet<u32>,
    pending: HashMap<RecordId, Pending>,
    /// Starts a sealing thread. Tests replace it with one that fails.
    spawn: Spawn,
}

impl Default for OpenPacks {
    fn default() -> Self {
        let state = State {
            open: Vec::new(),
            sealing: HashSet::new(),
            pending: HashMap::new(),
            spawn: |work| thread::Builder::new().name("seal".into()).spawn(work),
        };
        Self { state: TruthMutex::new("the open packs", state), sealed: Condvar::new() }
    }
}

struct OpenPack {
    writer: PackWriter,
    /// Pins of the bases of its deltas, kept until gc finds the bases through the sealed pack.
    bases: Vec<Arc<PinSet>>,
    /// The writer that borrowed it; `None` if it is shared.
    borrower: Option<u64>,
    /// Bytes at its end that its borrower may be writing.
    lent_bytes: u64,
}

const _: () = assert!(EXTENT_RECORDS_MAX > 3 * SEGMENT_BYTES / CHUNK_BYTES_MIN);
const _: () = assert!(EXTENT_BYTES_MAX as u64 + PACK_BYTES_TARGET < PACK_BYTES_MAX);
const _: () =
    assert!(EXTENT_BYTES_MAX as usize > 3 * SEGMENT_BYTES + 3 * SEGMENT_BYTES / CHUNK_BYTES_MIN * HEADER_BYTES);

/// Packs lent at a time. Each is an open file; further writers send their records instead.
const LENT_PACKS_MAX: usize = 64;

/// A record that is not yet in the index.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    /// Its future location.
    pub(super) location: RecordLocation,
    /// Its base, if it is a delta.
    pub(super) base: Option<RecordId>,
}

/// One writer: its pins, and the threads that seal the packs that it filled.
pub(super) struct WriterHandle {
    pub(super) store: Arc<Store>,
    /// Dropped before `bases`, so that no delta is pinned without its base.
    pub(super) pins: PinSet,
    /// The bases of its deltas, shared with the open packs that contain them. gc's moves apply to it even before a
    /// delta is appended.
    pub(super) bases: Arc<PinSet>,
    stored_bytes: AtomicU64,
    sealers: Mutex<Vec<JoinHandle<()>>>,
}

impl WriterHandle {
    pub(super) fn new(store: &Arc<Store>, roots: Vec<NodeId>) -> Self {
        Self {
            store: Arc::clone(store),
            pins: store.pin_sets.pin_set(roots),
            bases: Arc::new(store.pin_sets.pin_set(Vec::new())),
            stored_bytes: AtomicU64::new(0),
            sealers: Mutex::default(),
        }
    }

    /// Bytes that this writer added to packs: records, their table entries, and the fixed parts of new packs.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    fn add_stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn number(&self) -> u64 {
        self.pins.number()
    }
}

impl Drop for WriterHandle {
    /// The threads hold references to the store: after dropping the writer and then the store, the store must be
    /// closed.
    fn drop(&mut self) {
        for sealer in std::mem::take(self.sealers.get_mut()) {
            let _ = sealer.join();
        }
    }
}

impl OpenPacks {
    /// Appends a record to an open pack of its class, unless an equivalent one is pending, and pins it. A delta's base
    /// must already be in the writer's `bases`.
    pub(super) fn append(self: &Arc<Self>, handle: &WriterHandle, record: &Record) -> Result<()> {
        let mut state = self.lock();
        let header = &record.header;
        if state.serves(handle, header) {
            return Ok(());
        }
        let at = state.open_pack(handle, Class::of(header.kind, header.codec))?;
        if let Err(error) = state.open[at].writer.append(record) {
            return Err(state.void(handle, at, error));
        }
        state.add_pending(handle, at, header);
        if state.open[at].writer.is_full(handle.store.pack_bytes) {
            self.close_in_turn(&mut state, handle, at);
        }
        Ok(())
    }

    /// Lends a writer an extent at the end of a pack of this class. Whatever it has not reported of an earlier extent
    /// there becomes a gap. A full pack is sealed first; the call waits while too many are being sealed.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many packs are lent; any error of creating a pack.
    pub(super) fn reserve(self: &Arc<Self>, handle: &WriterHandle, class: Class, bytes: u32) -> Result<Extent> {
        let mut state = self.lock();
        let at = loop {
            let Some(at) = state.lent_to(handle, class) else { break state.lend_another(handle, class)? };
            state.open[at].leave_gap(handle);
            if !state.open[at].writer.is_full(handle.store.pack_bytes) {
                break at;
            }
            self.close_in_turn(&mut state, handle, at);
        };
        let pack = &mut state.open[at];
        pack.lent_bytes = bytes.into();
        Ok(pack.extent())
    }

    /// Appends records that a writer has written one after another into its extent, each with whether it is needed. A
    /// record that is not needed, or already pending, becomes a gap. Returns whether the extent was still the writer's;
    /// otherwise nothing was appended.
    pub(super) fn append_written<'a>(
        self: &Arc<Self>,
        handle: &WriterHandle,
        extent: Extent,
        written: impl Iterator<Item = (&'a Header, bool)>,
    ) -> bool {
        let mut state = self.lock();
        let Some(at) = state.open.iter().position(|pack| pack.is_lent(handle, extent)) else { return false };
        state.open[at].lent_bytes = 0;
        for (header, is_needed) in written {
            if is_needed && !state.serves(handle, header) {
                state.open[at].writer.add_written(header);
                state.add_pending(handle, at, header);
            } else {
                state.open[at].writer.skip(header.record_bytes());
                handle.add_stored(header.record_bytes());
            }
        }
        true
    }

    /// Ends a writer's loans: its packs are shared from now on if they have records and space for more, and closed
    /// otherwise.
    pub(super) fn take_back(self: &Arc<Self>, handle: &WriterHandle) {
        let mut state = self.lock();
        while let Some(at) = state.open.iter().position(|pack| pack.borrower == Some(handle.number())) {
            let pack = &mut state.open[at];
            pack.borrower = None;
            pack.leave_gap(handle);
            if pack.writer.entries().is_empty() || pack.writer.is_full(handle.store.pack_bytes) {
                self.close(&mut state, handle, at);
            }
        }
    }

    /// Those of these records that are pending; pins them.
    pub(super) fn find(&self, ids: &[RecordId], pins: &PinSet) -> Vec<Option<Pending>> {
        let state = self.lock();
        let found = ids.iter().map(|id| state.pending.get(id).copied());
        found.inspect(|found| found.iter().for_each(|pending| pins.pin(&pending.location))).collect()
    }

    /// The packs being sealed: their records are pending.
    pub(super) fn sealing(&self) -> HashSet<u32> {
        self.lock().sealing.clone()
    }

    /// Whether a pending record's id begins with these bytes.
    pub(crate) fn has_prefix(&self, prefix: &[u8]) -> bool {
        self.lock().pending.keys().any(|id| id.as_bytes().starts_with(prefix))
    }

    /// Seals the open packs in which the writer has pins, and waits until no pack in which it has pins is being sealed.
    ///
    /// # Errors
    /// If one of these packs was lost.
    pub(super) fn flush(self: &Arc<Self>, handle: &WriterHandle) -> Result<()> {
        let needs = |number: u32| handle.pins.needs_pack(number);
        let mut state = self.lock();
        for pack in std::mem::take(&mut state.open) {
            if needs(pack.number()) {
                self.seal_aside(&mut state, handle, pack);
            } else {
                state.open.push(pack);
            }
        }
        state.wait_while(&self.sealed, |state| state.sealing.iter().any(|number| needs(*number)));
        drop(state);
        handle.pins.check()
    }

    /// Pins all pending records. Returns the bases of the deltas among them.
    pub(super) fn count_on_all(&self, handle: &WriterHandle) -> Vec<RecordId> {
        let state = self.lock();
        state.pending.values().for_each(|pending| handle.pins.pin(&pending.location));
        state.pending.values().filter_map(|pending| pending.base).collect()
    }

    /// Removes the packs that are not sealed.
    pub(super) fn discard(&self, handle: &WriterHandle) {
        for pack in std::mem::take(&mut self.lock().open) {
            let _ = handle.store.storage().remove(&part_path(pack.writer.id()));
        }
    }

    /// Seals an open pack, or removes it if it is empty.
    fn close(self: &Arc<Self>, state: &mut State, handle: &WriterHandle, at: usize) {
        let pack = state.open.swap_remove(at);
        if pack.writer.entries().is_empty() {
            let _ = handle.store.storage().remove(&part_path(pack.writer.id()));
        } else {
            self.seal_aside(state, handle, pack);
        }
    }

    /// Closes an open pack, then waits while too many are being sealed.
    fn close_in_turn(self: &Arc<Self>, state: &mut TruthGuard<'_, State>, handle: &WriterHandle, at: usize) {
        self.close(state, handle, at);
        state.wait_while(&self.sealed, |state| state.sealing.len() > SEALING_MAX);
    }

    /// Seals a pack on a thread of its own, so that disk and processors work at the same time.
    fn seal_aside(self: &Arc<Self>, state: &mut State, handle: &WriterHandle, mut pack: OpenPack) {
        pack.leave_gap(handle);
        state.sealing.insert(pack.number());
        let (store, open_packs) = (Arc::clone(&handle.store), Arc::clone(self));
        let (id, records) = (pack.writer.id(), pack.record_ids());
        match (state.spawn)(Box::new(move || open_packs.seal(&store, pack))) {
            Ok(sealer) => {
                let mut sealers = handle.sealers.lock();
                sealers.retain(|sealer| !sealer.is_finished());
                sealers.push(sealer);
            }
            Err(error) => {
                let failed = Err(failure(&handle.store, id, "starting a thread to seal", error));
                state.end_sealing(&handle.store, id.number, &records, &failed);
                let _ = handle.store.storage().remove(&part_path(id));
            }
        }
    }

    fn seal(&self, store: &Store, pack: OpenPack) {
        let id = pack.writer.id();
        let mut sealing = Sealing {
            open_packs: self,
            store,
            pack: id.number,
            records: pack.record_ids(),
            outcome: Err(failure(store, id, "sealing", io::Error::other("its thread panicked"))),
        };
        let sealed = pack.writer.seal().inspect_err(|_| drop(store.storage().remove(&part_path(id))));
        sealing.outcome = sealed.and_then(|sealed| {
            store.adopt(pack_row(id, sealed.header.class, &sealed.entries, sealed.bytes), &sealed.entries)
        });
        drop(sealing);
        // Only now: gc takes the sealed pack into account by now, or gets these pins handed over.
        drop(pack.bases);
    }

    fn lock(&self) -> TruthGuard<'_, State> {
        self.state.lock()
    }
}

/// A pack being sealed. Dropping it, also during a panic, ends its sealing for all who wait.
struct Sealing<'a> {
    open_packs: &'a OpenPacks,
    store: &'a Store,
    pack: u32,
    records: Vec<RecordId>,
    /// Until it is known: that the thread panicked.
    outcome: Result<()>,
}

impl Drop for Sealing<'_> {
    fn drop(&mut self) {
        self.open_packs.lock().end_sealing(self.store, self.pack, &self.records, &self.outcome);
        self.open_packs.sealed.notify_all();
    }
}

impl OpenPack {
    fn create(handle: &WriterHandle, class: Class) -> Result<Self> {
        let store = &handle.store;
        let format = &store.config().format;
        let header = PackHeader {
            store_id: format.store_id_bytes(),
            id: store.packs().allocate(),
            class,
            params: format.chunk_params(),
        };
        let writer = PackWriter::create(Arc::clone(store.storage()), header)?;
        handle.add_stored((PACK_HEADER_BYTES + FOOTER_BYTES) as u64);
        Ok(Self { writer, bases: Vec::new(), borrower: None, lent_bytes: 0 })
    }

    /// The extent that is lent.
    fn extent(&self) -> Extent {
        let (pack, class) = (self.writer.id(), self.writer.class());
        Extent { pack, class, offset: self.writer.end() as u32, bytes: self.lent_bytes as u32 }
    }

    fn is_lent(&self, handle: &WriterHandle, extent: Extent) -> bool {
        self.borrower == Some(handle.number()) && self.extent() == extent
    }

    /// Turns the lent extent into a gap.
    fn leave_gap(&mut self, handle: &WriterHandle) {
        let bytes = std::mem::take(&mut self.lent_bytes);
        self.writer.skip(bytes);
        handle.add_stored(bytes);
    }

    fn record_ids(&self) -> Vec<RecordId> {
        self.writer.entries().iter().map(|entry| entry.id).collect()
    }

    fn number(&self) -> u32 {
        self.writer.id().number
    }
}

impl State {
    /// The position of an open pack of a class that a writer may append to: its own, unless it is writing into an
    /// extent there, or the shared one.
    fn open_pack(&mut self, handle: &WriterHandle, class: Class) -> Result<usize> {
        let own = self.lent_to(handle, class).filter(|at| self.open[*at].lent_bytes == 0);
        match own.or_else(|| self.of_everybody(class)) {
            Some(at) => Ok(at),
            None => self.add_open(handle, class, None),
        }
    }

    fn of_everybody(&self, class: Class) -> Option<usize> {
        self.open.iter().position(|pack| pack.writer.class() == class && pack.borrower.is_none())
    }

    /// The position of a writer's own open pack of a class.
    fn lent_to(&self, handle: &WriterHandle, class: Class) -> Option<usize> {
        let borrower = Some(handle.number());
        self.open.iter().position(|pack| pack.writer.class() == class && pack.borrower == borrower)
    }

    /// Lends a pack to a writer: the shared one, or a new one.
    fn lend_another(&mut self, handle: &WriterHandle, class: Class) -> Result<usize> {
        if self.open.iter().filter(|pack| pack.borrower.is_some()).count() >= LENT_PACKS_MAX {
            return Err(Error::busy("the space for direct writing", "other sessions"));
        }
        let borrower = Some(handle.number());
        match self.of_everybody(class) {
            Some(at) => {
                self.open[at].borrower = borrower;
                Ok(at)
            }
            None => self.add_open(handle, class, borrower),
        }
    }

    fn add_open(&mut self, handle: &WriterHandle, class: Class, borrower: Option<u64>) -> Result<usize> {
        self.open.push(OpenPack { borrower, ..OpenPack::create(handle, class)? });
        Ok(self.open.len() - 1)
    }

    /// Whether an equivalent of the record with this header is pending; it is pinned then.
    fn serves(&self, handle: &WriterHandle, header: &Header) -> bool {
        let Some(pending) = self.pending.get(&header.id) else { return false };
        let serves = pending.location.is_full() || (header.base.is_some() && pending.base == header.base);
        if serves {
            handle.pins.pin(&pending.location);
        }
        serves
    }

    /// Adds the record that was last appended to an open pack.
    fn add_pending(&mut self, handle: &WriterHandle, at: usize, header: &Header) {
        let pack = &mut self.open[at];
        handle.add_stored(header.record_bytes() + TABLE_ENTRY_BYTES as u64);
        if header.base.is_some() && !pack.bases.iter().any(|bases| Arc::ptr_eq(bases, &handle.bases)) {
            pack.bases.push(Arc::clone(&handle.bases));
        }
        let ordinal = pack.writer.entries().len() - 1;
        let location = RecordLocation::of(pack.writer.id(), ordinal, &pack.writer.entries()[ordinal]);
        handle.pins.pin(&location);
        self.pending.insert(header.id, Pending { location, base: header.base });
    }

    /// Drops the pending records of a pack.
    fn forget(&mut self, pack: u32, records: &[RecordId]) {
        for id in records {
            if self.pending.get(id).is_some_and(|pending| pending.location.pack == pack) {
                self.pending.remove(id);
            }
        }
    }

    /// Ends the sealing of a pack. If it failed, fails everyone with pins in it. The caller notifies `sealed`.
    fn end_sealing(&mut self, store: &Store, pack: u32, records: &[RecordId], outcome: &Result<()>) {
        self.forget(pack, records);
        if let Err(error) = outcome {
            store.pin_sets.fail(pack, error);
        }
        self.sealing.remove(&pack);
    }

    /// Removes an open pack that could not be written. Returns the error.
    fn void(&mut self, handle: &WriterHandle, at: usize, error: Error) -> Error {
        let pack = self.open.swap_remove(at);
        self.forget(pack.number(), &pack.record_ids());
        handle.store.pin_sets.fail(pack.number(), &error);
        let _ = handle.store.storage().remove(&part_path(pack.writer.id()));
        error
    }
}

fn failure(store: &Store, pack: PackId, action: &'static str, error: io::Error) -> Error {
    Error::io(action, store.storage().locate(&part_path(pack)), error)
}

#[cfg(test)]
mod tests;
