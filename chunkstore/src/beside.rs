//! Writing packs beside the process that has the store open, which lends room in them.
//!
//! For whoever may open the store's files: what is new need not be copied to that process and by it again. Records are
//! written into room that was lent, and only then told of: they are pending from then on, as any others, and whoever
//! lent the room makes them durable. What can't be written so, and what is too little to be worth the two calls, is left
//! to be put by itself.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::catalog::{Entry, IngestReport, Snapshot};
use crate::error::{Error, Result};
use crate::id::RecordId;
use crate::pack::{self, Class};
use crate::record::{Header, Record};
use crate::sink::{Base, Claim, Like, Sink};
use crate::storage::Storage;
use crate::store::{ROOM_BYTES_MAX, ROOM_RECORDS_MAX, Room, WriteSession};

/// Whoever lends room in packs.
pub trait Lender {
    /// As [`WriteSession::lend`].
    ///
    /// # Errors
    /// As there.
    fn lend(&self, class: Class, bytes: u32) -> Result<Room>;

    /// As [`WriteSession::put_written`].
    ///
    /// # Errors
    /// As there.
    fn put_written(&self, room: Room, headers: &[Header]) -> Result<bool>;
}

impl Lender for WriteSession {
    fn lend(&self, class: Class, bytes: u32) -> Result<Room> {
        Self::lend(self, class, bytes)
    }

    fn put_written(&self, room: Room, headers: &[Header]) -> Result<bool> {
        Self::put_written(self, room, headers)
    }
}

/// What one session needs to write into packs.
#[derive(Debug, Default)]
pub struct Beside {
    bytes_min: u64,
    /// A session has one room of a class at a time.
    one_at_a_time: Mutex<()>,
    has_written: AtomicBool,
    is_given_up: AtomicBool,
}

impl Beside {
    /// For records that take at least `bytes_min` together.
    pub fn new(bytes_min: u64) -> Self {
        Self { bytes_min, ..Self::default() }
    }

    /// Puts what can be written here; returns the rest.
    ///
    /// # Errors
    /// If the lender fails, or the disk is full.
    pub fn put(&self, lender: &dyn Lender, storage: &dyn Storage, records: Vec<Record>) -> Result<Vec<Record>> {
        if self.is_given_up.load(Ordering::Relaxed) || bytes_of(&records) < self.bytes_min {
            return Ok(records);
        }
        let (mut of_others, mut left) = (records, Vec::new());
        for class in Class::ALL {
            let is_of_class = |record: &Record| Class::of(record.header.kind, record.header.codec) == class;
            let (of_class, rest) = of_others.into_iter().partition(is_of_class);
            of_others = rest;
            left.extend(self.put_class(lender, storage, class, of_class)?);
        }
        Ok(left)
    }

    fn put_class(
        &self,
        lender: &dyn Lender,
        storage: &dyn Storage,
        class: Class,
        records: Vec<Record>,
    ) -> Result<Vec<Record>> {
        let bytes = bytes_of(&records);
        let is_little = records.is_empty() || bytes < self.bytes_min;
        if is_little || bytes > ROOM_BYTES_MAX.into() || records.len() > ROOM_RECORDS_MAX {
            return Ok(records);
        }
        let _one_at_a_time = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_given_up.load(Ordering::Relaxed) {
            return Ok(records);
        }
        match put_all(lender, storage, class, bytes as u32, &records) {
            Ok(true) => {
                self.has_written.store(true, Ordering::Relaxed);
                Ok(Vec::new())
            }
            // The pack had to be sealed meanwhile.
            Ok(false) => Ok(records),
            Err(error) if self.has_written.load(Ordering::Relaxed) && is_not_found(&error) => Ok(records),
            Err(error) if is_no_matter(&error) => {
                tracing::info!("packs are not written beside the store's owner: {error}");
                self.is_given_up.store(true, Ordering::Relaxed);
                Ok(records)
            }
            Err(error) => Err(error),
        }
    }
}

/// A session in this process beside which packs are written all the same, whatever is put: for tests.
pub struct WritesBeside<'a> {
    session: &'a WriteSession,
    beside: Beside,
}

impl<'a> WritesBeside<'a> {
    /// A sink that puts into a session.
    pub fn new(session: &'a WriteSession) -> Self {
        Self { session, beside: Beside::new(0) }
    }
}

impl Sink for WritesBeside<'_> {
    fn claim(&self, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.session.claim(ids)
    }

    fn bases(&self, like: &[Like]) -> Result<Vec<Option<Base>>> {
        self.session.bases(like)
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        let left = self.beside.put(self.session, &**self.session.store().storage(), records)?;
        if left.is_empty() { Ok(()) } else { self.session.put(left) }
    }

    fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot> {
        self.session.publish(entry, report)
    }
}

fn bytes_of(records: &[Record]) -> u64 {
    records.iter().map(|record| record.header.record_bytes()).sum()
}

fn put_all(lender: &dyn Lender, storage: &dyn Storage, class: Class, bytes: u32, records: &[Record]) -> Result<bool> {
    let room = lender.lend(class, bytes)?;
    pack::write_records(storage, room.pack, room.offset, records)?;
    let headers: Vec<Header> = records.iter().map(|record| record.header).collect();
    lender.put_written(room, &headers)
}

/// Whether records may still be put by themselves: there is no room, the lender is an older program that knows of none, or its
/// files can't be written here. A full disk is full for all.
fn is_no_matter(error: &Error) -> bool {
    matches!(error, Error::Busy { .. } | Error::Denied { .. } | Error::Invalid { .. } | Error::Io { .. })
}

/// Whether a pack has another name by now.
fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests;
