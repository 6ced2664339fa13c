//! Writing into packs of a store that another process has open, in extents that this process reserves.
//!
//! For a client that may open the store's files: new records need not be copied to the owner. The client writes records
//! into a reserved extent and then reports them; from then on they are pending like any others, and the owner makes
//! them durable. Records that can't be written this way, or are too few to be worth the two calls, are returned to be
//! put as usual.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::{Header, PackId, Record};
use crate::pack::{self, Class};
use crate::storage::Storage;

/// Largest extent: more than the records of one batch of an ingest.
pub const EXTENT_BYTES_MAX: u32 = 16 << 20;
/// Most records reported at a time.
pub const EXTENT_RECORDS_MAX: usize = 1 << 14;

/// An extent at the end of a pack, reserved for one writer handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The open pack.
    pub pack: PackId,
    /// Its class.
    pub class: Class,
    /// Offset of the extent in the pack.
    pub offset: u32,
    /// Its length.
    pub bytes: u32,
}

/// Reserves extents in open packs, and records what was written into them.
pub trait ExtentAllocator {
    /// Reserves `bytes` at the end of a pack of this class that only the caller writes. The rest of its previous extent
    /// there stays a gap.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many packs have extents; others if a pack can't be created.
    fn reserve(&self, class: Class, bytes: u32) -> Result<Extent>;

    /// Appends the records written into an extent, one after another. Returns whether the caller still held the extent;
    /// otherwise nothing was appended.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the records exceed the extent, or break a limit.
    fn append_written(&self, room: Extent, headers: &[Header]) -> Result<bool>;
}

/// The direct writer of one session.
#[derive(Debug, Default)]
pub struct DirectWriter {
    bytes_min: u64,
    /// The session's current extent of each class.
    one_at_a_time: Mutex<()>,
    has_written: AtomicBool,
    is_given_up: AtomicBool,
}

impl DirectWriter {
    /// A writer that leaves fewer than `bytes_min` bytes of records to be put as usual.
    pub fn new(bytes_min: u64) -> Self {
        Self { bytes_min, ..Self::default() }
    }

    /// Writes the records that it can; returns the rest.
    ///
    /// # Errors
    /// If the allocator fails, or the disk is full.
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
            // The pack was sealed meanwhile.
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

/// Whether the records can be put as usual instead: no extent is free, the owner is an older program without extents,
/// or its files can't be written from here. A full disk fails either way.
fn is_no_matter(error: &Error) -> bool {
    matches!(error, Error::Busy { .. } | Error::Denied { .. } | Error::Invalid { .. } | Error::Io { .. })
}

/// Whether a pack was renamed meanwhile.
fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}
