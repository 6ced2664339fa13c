//! Writing packs beside the process that has the store open, which lends room in them.
//!
//! For whoever may open the store's files: what is new need not be copied to that process and by it again. Records are
//! written into room that was lent, and only then told of: they are pending from then on, as any others, and whoever
//! lent the room makes them durable. What can't be written so, and what is too little to be worth the two calls, is
//! left to be put by itself.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::{Header, PackId, Record};
use crate::pack::{self, Class};
use crate::storage::Storage;

/// Most bytes that are lent at a time: more than the chunks' records take that an ingest puts together.
pub const EXTENT_BYTES_MAX: u32 = 16 << 20;
/// Most records that are told of at a time.
pub const EXTENT_RECORDS_MAX: usize = 1 << 14;

/// Extent at the end of a pack, lent to one author.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The pack, which is not sealed.
    pub pack: PackId,
    /// Its class.
    pub class: Class,
    /// Where the room begins.
    pub offset: u32,
    /// Its length.
    pub bytes: u32,
}

/// Whoever lends room in packs.
pub trait ExtentAllocator {
    /// Lends room for `bytes` at the end of a pack of this class that is the caller's alone. What it had before there,
    /// and did not append, stays a gap.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many packs are lent; if a pack can't be begun.
    fn reserve(&self, class: Class, bytes: u32) -> Result<Extent>;

    /// Appends what was written into an extent, one record after another. Returns whether the extent was the caller's
    /// still; otherwise nothing was appended.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the records are more than the extent, or break a limit.
    fn append_written(&self, room: Extent, headers: &[Header]) -> Result<bool>;
}

/// What one session needs to write into packs.
#[derive(Debug, Default)]
pub struct DirectWriter {
    bytes_min: u64,
    /// A session has one room of a class at a time.
    one_at_a_time: Mutex<()>,
    has_written: AtomicBool,
    is_given_up: AtomicBool,
}

impl DirectWriter {
    /// For records that take at least `bytes_min` together.
    pub fn new(bytes_min: u64) -> Self {
        Self { bytes_min, ..Self::default() }
    }

    /// Puts what can be written here; returns the rest.
    ///
    /// # Errors
    /// If the lender fails, or the disk is full.
    pub fn put(
        &self,
        lender: &dyn ExtentAllocator,
        storage: &dyn Storage,
        records: Vec<Record>,
    ) -> Result<Vec<Record>> {
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
        lender: &dyn ExtentAllocator,
        storage: &dyn Storage,
        class: Class,
        records: Vec<Record>,
    ) -> Result<Vec<Record>> {
        let bytes = bytes_of(&records);
        let is_little = records.is_empty() || bytes < self.bytes_min;
        if is_little || bytes > EXTENT_BYTES_MAX.into() || records.len() > EXTENT_RECORDS_MAX {
            return Ok(records);
        }
        let _one_at_a_time = self.one_at_a_time.lock();
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

pub(crate) fn bytes_of(records: &[Record]) -> u64 {
    records.iter().map(|record| record.header.record_bytes()).sum()
}

fn put_all(
    lender: &dyn ExtentAllocator,
    storage: &dyn Storage,
    class: Class,
    bytes: u32,
    records: &[Record],
) -> Result<bool> {
    let room = lender.reserve(class, bytes)?;
    pack::write_records(storage, room.pack, room.offset, records)?;
    let headers: Vec<Header> = records.iter().map(|record| record.header).collect();
    lender.append_written(room, &headers)
}

/// Whether records may still be put by themselves: there is no room, the lender is an older program that knows of none,
/// or its files can't be written here. A full disk is full for all.
fn is_no_matter(error: &Error) -> bool {
    matches!(error, Error::Busy { .. } | Error::Denied { .. } | Error::Invalid { .. } | Error::Io { .. })
}

/// Whether a pack has another name by now.
fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}
