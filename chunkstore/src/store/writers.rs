//! Packs that are being written, common to all sessions of a store: one open pack a class, and those being sealed.
//!
//! Appending is a copy to the page cache under one lock. Sealing happens on threads of its own. A record is *pending*
//! from its appending until its pack is in the index, or lost: if a pack can't be written or sealed, its pending
//! records are void, and every session that counts on one of them fails.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::id::{NodeId, RecordId};
use crate::index::Place;
use crate::pack::{Class, FOOTER_BYTES, PACK_HEADER_BYTES, PackHeader, PackWriter, TABLE_ENTRY_BYTES, part_path};
use crate::record::Record;
use crate::store::protect::Protection;
use crate::store::{Store, pack_row};

/// Packs that may be waiting for the disk while the next are filled.
const SEALING_MAX: usize = 2;

/// A set of packs being written.
#[derive(Default)]
pub(crate) struct Writers {
    state: Mutex<State>,
    /// A pack was sealed, or lost.
    sealed: Condvar,
}

#[derive(Default)]
struct State {
    open: Vec<OpenPack>,
    sealing: HashSet<u32>,
    pending: HashMap<RecordId, Pending>,
}

struct OpenPack {
    writer: PackWriter,
    /// Keeps the bases of its deltas until gc finds them by the sealed pack.
    bases: Protection,
}

/// A record that is not in the index yet.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    /// Where it is going to be.
    pub(super) place: Place,
    /// Its base, if it is a delta.
    pub(super) base: Option<RecordId>,
}

/// Whoever appends: what it counts on, and the threads that seal the packs that it filled.
pub(super) struct Author {
    pub(super) store: Arc<Store>,
    pub(super) protection: Protection,
    stored_bytes: AtomicU64,
    sealers: Mutex<Vec<JoinHandle<()>>>,
}

impl Author {
    pub(super) fn new(store: &Arc<Store>, roots: Vec<NodeId>) -> Self {
        Self {
            store: Arc::clone(store),
            protection: store.protections.protect(roots),
            stored_bytes: AtomicU64::new(0),
            sealers: Mutex::default(),
        }
    }

    /// Bytes by which packs grew because of it: records with their lines in tables, and what a new pack has besides.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    fn add_stored(&self, bytes: usize) {
        self.stored_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Author {
    /// The threads have a share in the store: who drops the author and then the store must find it closed.
    fn drop(&mut self) {
        for sealer in std::mem::take(&mut *lock(&self.sealers)) {
            let _ = sealer.join();
        }
    }
}

impl Writers {
    /// Appends a record to the open pack of its class, unless one that serves as well is pending. A delta's base must be
    /// protected by the author. The author counts on the record afterwards.
    pub(super) fn append(self: &Arc<Self>, author: &Author, record: &Record, base: Option<&Place>) -> Result<()> {
        let mut state = self.lock();
        let header = &record.header;
        if let Some(pending) = state.pending.get(&header.id)
            && (pending.place.is_full() || (base.is_some() && pending.base == header.base))
        {
            author.protection.see(&pending.place);
            return Ok(());
        }
        let at = state.open_pack(author, Class::of(header.kind, header.codec))?;
        let pack = &mut state.open[at];
        if let Err(error) = pack.writer.append(record) {
            let pack = state.open.swap_remove(at);
            state.void(author, &pack.writer, &error);
            return Err(error);
        }
        author.add_stored(record.bytes() + TABLE_ENTRY_BYTES);
        if let Some(base) = base {
            pack.bases.see(base);
        }
        let (ordinal, is_full) = (pack.writer.entries().len() - 1, pack.writer.is_full(author.store.pack_bytes));
        let place = Place::of(pack.writer.id(), ordinal, &pack.writer.entries()[ordinal]);
        author.protection.see(&place);
        state.pending.insert(header.id, Pending { place, base: header.base });
        if is_full {
            let pack = state.open.swap_remove(at);
            self.seal_aside(&mut state, author, pack);
            drop(self.wait_while(state, |state| state.sealing.len() > SEALING_MAX));
        }
        Ok(())
    }

    /// Those of these records that are pending; the protection counts on them from now on.
    pub(super) fn find(&self, ids: &[RecordId], protection: &Protection) -> Vec<Option<Pending>> {
        let state = self.lock();
        let found = ids.iter().map(|id| state.pending.get(id).copied());
        found.inspect(|found| found.iter().for_each(|pending| protection.see(&pending.place))).collect()
    }

    /// Whether the id of a pending record begins with these bytes.
    pub(crate) fn has_prefix(&self, prefix: &[u8]) -> bool {
        self.lock().pending.keys().any(|id| id.as_bytes().starts_with(prefix))
    }

    /// Seals the open packs with records that the author counts on, and waits for all packs that have such.
    ///
    /// # Errors
    /// If one of them was lost.
    pub(super) fn flush(self: &Arc<Self>, author: &Author) -> Result<()> {
        let needs = |number: u32| author.protection.needs_pack(number);
        let mut state = self.lock();
        for pack in std::mem::take(&mut state.open) {
            if needs(pack.number()) {
                self.seal_aside(&mut state, author, pack);
            } else {
                state.open.push(pack);
            }
        }
        drop(self.wait_while(state, |state| state.sealing.iter().any(|number| needs(*number))));
        author.protection.check()
    }

    /// Lets the author count on all that is pending.
    pub(super) fn count_on_all(&self, author: &Author) {
        self.lock().pending.values().for_each(|pending| author.protection.see(&pending.place));
    }

    /// Gives up what is not sealed.
    pub(super) fn discard(&self, author: &Author) {
        for pack in std::mem::take(&mut self.lock().open) {
            let _ = author.store.storage().remove(&part_path(pack.writer.id()));
        }
    }

    /// Seals a pack on a thread of its own, so that the disk and the processors work at the same time.
    fn seal_aside(self: &Arc<Self>, state: &mut State, author: &Author, pack: OpenPack) {
        state.sealing.insert(pack.number());
        let (store, writers) = (Arc::clone(&author.store), Arc::clone(self));
        let mut sealers = lock(&author.sealers);
        sealers.retain(|sealer| !sealer.is_finished());
        sealers.push(thread::spawn(move || writers.seal(&store, pack)));
    }

    fn seal(&self, store: &Store, pack: OpenPack) {
        let id = pack.writer.id();
        let records: Vec<RecordId> = pack.writer.entries().iter().map(|entry| entry.id).collect();
        let sealed = pack.writer.seal().inspect_err(|_| drop(store.storage().remove(&part_path(id))));
        let adopted = sealed.and_then(|sealed| {
            store.adopt(pack_row(id, sealed.header.class, &sealed.entries, sealed.bytes), &sealed.entries)
        });
        // Only now: gc knows the pack, or gets what this hands over.
        drop(pack.bases);
        let mut state = self.lock();
        state.forget(id.number, &records);
        if let Err(error) = &adopted {
            store.protections.fail(id.number, error);
        }
        state.sealing.remove(&id.number);
        drop(state);
        self.sealed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        condition: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.sealed.wait_while(state, |state| condition(state)).unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenPack {
    fn create(author: &Author, class: Class) -> Result<Self> {
        let store = &author.store;
        let format = &store.config().format;
        let header = PackHeader {
            store_id: format.store_id_bytes(),
            id: store.packs().allocate(),
            class,
            params: format.chunk_params(),
        };
        let writer = PackWriter::create(Arc::clone(store.storage()), header)?;
        author.add_stored(PACK_HEADER_BYTES + FOOTER_BYTES);
        Ok(Self { writer, bases: store.protections.protect(Vec::new()) })
    }

    fn number(&self) -> u32 {
        self.writer.id().number
    }
}

impl State {
    /// The position of the open pack of a class.
    fn open_pack(&mut self, author: &Author, class: Class) -> Result<usize> {
        if let Some(at) = self.open.iter().position(|pack| pack.writer.class() == class) {
            return Ok(at);
        }
        self.open.push(OpenPack::create(author, class)?);
        Ok(self.open.len() - 1)
    }

    /// Forgets the pending records of a pack.
    fn forget(&mut self, pack: u32, records: &[RecordId]) {
        for id in records {
            if self.pending.get(id).is_some_and(|pending| pending.place.pack == pack) {
                self.pending.remove(id);
            }
        }
    }

    /// Gives a pack up that could not be written.
    fn void(&mut self, author: &Author, writer: &PackWriter, error: &Error) {
        let records: Vec<RecordId> = writer.entries().iter().map(|entry| entry.id).collect();
        self.forget(writer.id().number, &records);
        author.store.protections.fail(writer.id().number, error);
        let _ = author.store.storage().remove(&part_path(writer.id()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
