//! Packs that are being written, common to all sessions of a store: an open pack a class for everybody, those that are
//! lent, and those being sealed.
//!
//! Appending is a copy to the page cache under one lock. Sealing happens on threads of its own. A record is *pending*
//! from its appending until its pack is in the index, or lost: if a pack can't be written or sealed, its pending
//! records are void, and every session that counts on one of them fails.
//!
//! Who can open the store's files may be lent room at the end of a pack that is its alone, write there itself, and then
//! tell what it has written. Extent that was lent is not lent again: what its borrower has not told of by the time at which
//! the pack is sealed, or does not live to tell, is a gap, in which it may write as late as it likes.

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

/// Packs that may be waiting for the disk while the next are filled.
const SEALING_MAX: usize = 2;

/// A set of packs being written.
pub(crate) struct OpenPacks {
    state: TruthMutex<State>,
    /// A pack was sealed, or lost.
    sealed: Condvar,
}

type Spawn = fn(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;

struct State {
    open: Vec<OpenPack>,
    sealing: HashSet<u32>,
    pending: HashMap<RecordId, Pending>,
    /// Starts a thread; tests let it fail.
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
    /// Keep the bases of its deltas until gc finds them by the sealed pack.
    bases: Vec<Arc<PinSet>>,
    /// The author who alone may append to it, if it is not everybody's.
    borrower: Option<u64>,
    /// Bytes at its end that its borrower may be writing.
    lent_bytes: u64,
}

const _: () = assert!(EXTENT_RECORDS_MAX > 3 * SEGMENT_BYTES / CHUNK_BYTES_MIN);
const _: () = assert!(EXTENT_BYTES_MAX as u64 + PACK_BYTES_TARGET < PACK_BYTES_MAX);
const _: () =
    assert!(EXTENT_BYTES_MAX as usize > 3 * SEGMENT_BYTES + 3 * SEGMENT_BYTES / CHUNK_BYTES_MIN * HEADER_BYTES);

/// Packs that are lent at a time. Each has an open file; whoever gets none sends its records.
const LENT_PACKS_MAX: usize = 64;

/// A record that is not in the index yet.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    /// Where it is going to be.
    pub(super) place: RecordLocation,
    /// Its base, if it is a delta.
    pub(super) base: Option<RecordId>,
}

/// Whoever appends: what it counts on, and the threads that seal the packs that it filled.
pub(super) struct WriterHandle {
    pub(super) store: Arc<Store>,
    /// Ends before that of the bases, so that no delta is ever protected without its base.
    pub(super) pins: PinSet,
    /// The bases of its deltas, shared with the open packs that have these: it follows what gc moves, also before a delta
    /// is appended.
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

    /// Bytes by which packs grew because of it: records with their lines in tables, and what a new pack has besides.
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
    /// The threads have a share in the store: who drops the author and then the store must find it closed.
    fn drop(&mut self) {
        for sealer in std::mem::take(self.sealers.get_mut()) {
            let _ = sealer.join();
        }
    }
}

impl OpenPacks {
    /// Appends a record to an open pack of its class, unless one that serves as well is pending. A delta's base must be
    /// among those of the author. The author counts on the record afterwards.
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

    /// Lends an author room at the end of a pack of this class. What it was lent there before, and did not tell of, stays
    /// a gap. A pack that has grown enough is sealed first; who would have too many sealed waits.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many packs are lent; if a pack can't be begun.
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

    /// Appends records that an author has written one after another into room that it was lent, each with whether it is
    /// needed; what is not needed, or pending already, becomes a gap. Returns whether the room was the author's still;
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

    /// Takes back the packs that were an author's alone: from now on they are everybody's, if they have records and room for
    /// more.
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

    /// Those of these records that are pending; the protection counts on them from now on.
    pub(super) fn find(&self, ids: &[RecordId], pins: &PinSet) -> Vec<Option<Pending>> {
        let state = self.lock();
        let found = ids.iter().map(|id| state.pending.get(id).copied());
        found.inspect(|found| found.iter().for_each(|pending| pins.pin(&pending.place))).collect()
    }

    /// The packs that are being sealed: their records are pending.
    pub(super) fn sealing(&self) -> HashSet<u32> {
        self.lock().sealing.clone()
    }

    /// Whether the id of a pending record begins with these bytes.
    pub(crate) fn has_prefix(&self, prefix: &[u8]) -> bool {
        self.lock().pending.keys().any(|id| id.as_bytes().starts_with(prefix))
    }

    /// Seals the open packs with records that the author counts on, and waits for all packs that have such.
    ///
    /// # Errors
    /// If one of them was lost.
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

    /// Lets the author count on all that is pending. Returns the bases of the deltas among it.
    pub(super) fn count_on_all(&self, handle: &WriterHandle) -> Vec<RecordId> {
        let state = self.lock();
        state.pending.values().for_each(|pending| handle.pins.pin(&pending.place));
        state.pending.values().filter_map(|pending| pending.base).collect()
    }

    /// Gives up what is not sealed.
    pub(super) fn discard(&self, handle: &WriterHandle) {
        for pack in std::mem::take(&mut self.lock().open) {
            let _ = handle.store.storage().remove(&part_path(pack.writer.id()));
        }
    }

    /// Seals an open pack, or removes it if there is nothing in it.
    fn close(self: &Arc<Self>, state: &mut State, handle: &WriterHandle, at: usize) {
        let pack = state.open.swap_remove(at);
        if pack.writer.entries().is_empty() {
            let _ = handle.store.storage().remove(&part_path(pack.writer.id()));
        } else {
            self.seal_aside(state, handle, pack);
        }
    }

    /// Closes an open pack, and waits while too many are being sealed.
    fn close_in_turn(self: &Arc<Self>, state: &mut TruthGuard<'_, State>, handle: &WriterHandle, at: usize) {
        self.close(state, handle, at);
        state.wait_while(&self.sealed, |state| state.sealing.len() > SEALING_MAX);
    }

    /// Seals a pack on a thread of its own, so that the disk and the processors work at the same time.
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
        // Only now: gc takes the pack into account, or gets what this hands over.
        drop(pack.bases);
    }

    fn lock(&self) -> TruthGuard<'_, State> {
        self.state.lock()
    }
}

/// A pack that is being sealed. Dropped, also by a panic, it ends the wait for it.
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

    /// What is lent.
    fn extent(&self) -> Extent {
        let (pack, class) = (self.writer.id(), self.writer.class());
        Extent { pack, class, offset: self.writer.end() as u32, bytes: self.lent_bytes as u32 }
    }

    fn is_lent(&self, handle: &WriterHandle, extent: Extent) -> bool {
        self.borrower == Some(handle.number()) && self.extent() == extent
    }

    /// Gives up what was lent and not told of.
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
    /// The position of an open pack of a class that an author may append to: its own, where it is not writing itself, or
    /// everybody's.
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

    /// The position of the open pack of a class that is an author's alone.
    fn lent_to(&self, handle: &WriterHandle, class: Class) -> Option<usize> {
        let borrower = Some(handle.number());
        self.open.iter().position(|pack| pack.writer.class() == class && pack.borrower == borrower)
    }

    /// Makes a pack an author's alone: everybody's, or a new one.
    fn lend_another(&mut self, handle: &WriterHandle, class: Class) -> Result<usize> {
        if self.open.iter().filter(|pack| pack.borrower.is_some()).count() >= LENT_PACKS_MAX {
            return Err(Error::busy("room in packs", "as many as may have some"));
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

    /// Whether a record is pending that serves as well as one with this header; the author counts on it then.
    fn serves(&self, handle: &WriterHandle, header: &Header) -> bool {
        let Some(pending) = self.pending.get(&header.id) else { return false };
        let serves = pending.place.is_full() || (header.base.is_some() && pending.base == header.base);
        if serves {
            handle.pins.pin(&pending.place);
        }
        serves
    }

    /// Notes the record that was appended last to an open pack.
    fn add_pending(&mut self, handle: &WriterHandle, at: usize, header: &Header) {
        let pack = &mut self.open[at];
        handle.add_stored(header.record_bytes() + TABLE_ENTRY_BYTES as u64);
        if header.base.is_some() && !pack.bases.iter().any(|bases| Arc::ptr_eq(bases, &handle.bases)) {
            pack.bases.push(Arc::clone(&handle.bases));
        }
        let ordinal = pack.writer.entries().len() - 1;
        let place = RecordLocation::of(pack.writer.id(), ordinal, &pack.writer.entries()[ordinal]);
        handle.pins.pin(&place);
        self.pending.insert(header.id, Pending { place, base: header.base });
    }

    /// Forgets the pending records of a pack.
    fn forget(&mut self, pack: u32, records: &[RecordId]) {
        for id in records {
            if self.pending.get(id).is_some_and(|pending| pending.place.pack == pack) {
                self.pending.remove(id);
            }
        }
    }

    /// Notes that a pack is sealed, or lost to all who count on it. Its waiters are to be notified.
    fn end_sealing(&mut self, store: &Store, pack: u32, records: &[RecordId], outcome: &Result<()>) {
        self.forget(pack, records);
        if let Err(error) = outcome {
            store.pin_sets.fail(pack, error);
        }
        self.sealing.remove(&pack);
    }

    /// Gives an open pack up that could not be written. Returns why.
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
