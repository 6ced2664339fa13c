//! A write session: records in, sealed packs and at last a published snapshot out.
//!
//! The order that makes it durable: records are appended to `.part` files; a full pack is synced, renamed and its
//! directory synced; then its records enter the index in one synced batch; and only when all packs of the session
//! are there is the snapshot's catalog entry written aside, synced, renamed, and its directory synced. A tombstone,
//! synced before the pack that repeats the entry is sealed and gone with the publication, tells an entry that was
//! never published from one whose catalog file was lost.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::catalog::{Entry, IngestReport, Snapshot, State};
use crate::codec::{Codec, Encoder};
use crate::error::{Error, Result};
use crate::id::{EntryId, RecordId};
use crate::pack::{Class, PackHeader, PackWriter, part_path};
use crate::record::{Kind, Record};
use crate::store::{Store, pack_row};

/// Packs that may be waiting for the disk while the next is filled.
const SEALING_MAX: usize = 2;

/// Content on its way into a store. Used by several threads at once. Dropped without publishing, it leaves only
/// sealed packs, whose records the next session finds.
pub struct WriteSession {
    store: Arc<Store>,
    open: Mutex<OpenPacks>,
    /// Ids that this session has taken on and that are not in the index yet.
    claimed: Arc<Mutex<HashSet<RecordId>>>,
}

#[derive(Default)]
struct OpenPacks {
    writers: Vec<PackWriter>,
    sealing: VecDeque<JoinHandle<Result<u64>>>,
    sealed_bytes: u64,
    failed: bool,
}

/// A snapshot that is durable, and what it added to the store.
#[derive(Debug)]
pub struct Publication {
    /// As it stands in the catalog.
    pub snapshot: Snapshot,
}

impl WriteSession {
    /// Begins a session.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, open: Mutex::default(), claimed: Arc::default() }
    }

    /// The store written to.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Asks for records that are about to be made: `true` where the store lacks the record and the caller has now
    /// taken on to [`WriteSession::put`] it.
    pub fn claim(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        let mut mine: Vec<bool> = {
            let mut claimed = lock(&self.claimed);
            ids.iter().map(|id| claimed.insert(*id)).collect()
        };
        let asked: Vec<usize> = (0..ids.len()).filter(|at| mine[*at]).collect();
        let places = self.store.places(&asked.iter().map(|at| ids[*at]).collect::<Vec<_>>())?;
        for (at, place) in asked.into_iter().zip(places) {
            if self.store.resolves(place)? {
                mine[at] = false;
                lock(&self.claimed).remove(&ids[at]);
            }
        }
        Ok(mine)
    }

    /// Appends records to the packs of their classes. Durable only when the snapshot is published.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the session failed before, in whatever thread.
    pub fn put(&self, records: &[Record]) -> Result<()> {
        let mut open = self.lock_open()?;
        let result = records.iter().try_for_each(|record| self.append(&mut open, record));
        open.failed |= result.is_err();
        result
    }

    fn append(&self, open: &mut OpenPacks, record: &Record) -> Result<()> {
        let class = Class::of(record.header.kind, record.header.codec);
        let at = if let Some(at) = open.writers.iter().position(|writer| writer.class() == class) {
            at
        } else {
            open.writers.push(self.create_pack(class)?);
            open.writers.len() - 1
        };
        open.writers[at].append(record)?;
        if open.writers[at].is_full() {
            let writer = open.writers.swap_remove(at);
            self.seal_aside(open, writer)?;
        }
        Ok(())
    }

    fn create_pack(&self, class: Class) -> Result<PackWriter> {
        let config = self.store.config();
        let header = PackHeader {
            store_id: config.format.store_id_bytes(),
            id: self.store.packs().allocate(),
            class,
            params: config.format.chunk_params(),
        };
        PackWriter::create(Arc::clone(self.store.storage()), header)
    }

    /// Seals a pack on a thread of its own, so that the disk and the processors work at the same time.
    fn seal_aside(&self, open: &mut OpenPacks, writer: PackWriter) -> Result<()> {
        while open.sealing.len() >= SEALING_MAX {
            open.join_one()?;
        }
        let (store, claimed) = (Arc::clone(&self.store), Arc::clone(&self.claimed));
        open.sealing.push_back(thread::spawn(move || seal(&store, &claimed, writer)));
        Ok(())
    }

    /// Makes all that was put durable and known to the index. Returns the bytes of all packs of the session.
    pub fn flush(&self) -> Result<u64> {
        let mut open = self.lock_open()?;
        let result = self.flush_open(&mut open);
        open.failed |= result.is_err();
        result
    }

    fn flush_open(&self, open: &mut OpenPacks) -> Result<u64> {
        for writer in std::mem::take(&mut open.writers) {
            self.seal_aside(open, writer)?;
        }
        while !open.sealing.is_empty() {
            open.join_one()?;
        }
        Ok(open.sealed_bytes)
    }

    /// Publishes a snapshot whose records were all put or found. It is durable when this returns.
    ///
    /// `report` is asked for when all packs are sealed; its `stored_bytes` are filled in.
    pub fn publish(self, entry: Entry, report: impl FnOnce() -> IngestReport) -> Result<Publication> {
        let mut snapshot = Snapshot::create(entry, State::default())?;
        let encoding = snapshot.entry_encoding().to_vec();
        let id: EntryId = snapshot.entry_id();
        self.store.catalog().announce(&snapshot)?;
        if self.claim(&[id.into()])?[0] {
            let (codec, payload) = Encoder::new(1).plain(&encoding);
            self.put(&[Record::new(Kind::Entry, id.into(), encoding.len(), codec, payload, None)])?;
        }
        let pack_bytes = self.flush()?;
        set_report(&mut snapshot, report(), pack_bytes);
        self.store.catalog().publish(&snapshot)?;
        Ok(Publication { snapshot })
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, OpenPacks>> {
        let open = lock(&self.open);
        if open.failed {
            // The cause was reported to the thread that met it.
            return Err(Error::Interrupted);
        }
        Ok(open)
    }
}

/// Puts a report into a snapshot whose file holds a number that counts the file itself: until the length stays.
fn set_report(snapshot: &mut Snapshot, mut report: IngestReport, pack_bytes: u64) {
    let mut file_bytes = 0;
    loop {
        report.stored_bytes = pack_bytes + file_bytes;
        snapshot.state.ingest = Some(report.clone());
        let encoded_bytes = snapshot.encode().len() as u64;
        if encoded_bytes <= file_bytes {
            return;
        }
        file_bytes = encoded_bytes;
    }
}

impl OpenPacks {
    fn join_one(&mut self) -> Result<()> {
        let Some(handle) = self.sealing.pop_front() else { return Ok(()) };
        self.sealed_bytes += handle.join().expect("sealing does not panic")?;
        Ok(())
    }
}

impl Drop for WriteSession {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        for writer in std::mem::take(&mut open.writers) {
            let _ = self.store.storage().remove(&part_path(writer.id()));
        }
        for handle in std::mem::take(&mut open.sealing) {
            let _ = handle.join();
        }
    }
}

fn seal(store: &Store, claimed: &Mutex<HashSet<RecordId>>, writer: PackWriter) -> Result<u64> {
    let id = writer.id();
    let sealed = match writer.seal() {
        Ok(sealed) => sealed,
        Err(error) => {
            let _ = store.storage().remove(&part_path(id));
            return Err(error);
        }
    };
    let row = pack_row(id, sealed.header.class, &sealed.entries, sealed.bytes);
    store.adopt(row, &sealed.entries)?;
    let mut claimed = lock(claimed);
    sealed.entries.iter().for_each(|entry| {
        claimed.remove(&entry.id);
    });
    Ok(sealed.bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Encodes content into a record, against a base if one is given and it pays.
pub(crate) fn encode(
    encoder: &mut Encoder,
    kind: Kind,
    id: RecordId,
    bytes: &[u8],
    base: Option<&(RecordId, Vec<u8>)>,
) -> Record {
    let (codec, payload) = match base {
        Some((_, base)) => encoder.against(bytes, base),
        None => encoder.plain(bytes),
    };
    let base = base.filter(|_| codec == Codec::Delta).map(|(id, _)| *id);
    Record::new(kind, id, bytes.len(), codec, payload, base)
}
