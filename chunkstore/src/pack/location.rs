//! Locations of records: what the index stores for each record and each pack.

use crate::format::{Codec, Kind, PackId};
use crate::pack::{Class, TableEntry};

/// The location of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordLocation {
    /// Number of the pack.
    pub pack: u32,
    /// Position in the pack's table: the bit that a mark sets.
    pub ordinal: u32,
    /// Offset of the record's header in the pack.
    pub offset: u32,
    /// Length of the payload.
    pub stored_bytes: u32,
    /// Length of the content.
    pub plain_bytes: u32,
    /// What it holds.
    pub kind: Kind,
    /// How it is encoded.
    pub codec: Codec,
}

impl RecordLocation {
    /// The location of a table's entry.
    pub fn of(pack: PackId, ordinal: usize, entry: &TableEntry) -> Self {
        Self {
            pack: pack.number,
            ordinal: ordinal as u32,
            offset: entry.offset,
            stored_bytes: entry.stored_bytes,
            plain_bytes: entry.plain_bytes,
            kind: entry.kind,
            codec: entry.codec,
        }
    }

    /// Whether the record can be a base.
    pub fn is_full(&self) -> bool {
        self.codec != Codec::Delta
    }
}

/// The index's row for a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackRow {
    /// The pack's full name.
    pub id: PackId,
    /// What it holds.
    pub class: Class,
    /// Number of its records.
    pub records: u32,
    /// Length of its file.
    pub bytes: u64,
    /// Sum of its records' plain lengths.
    pub plain_bytes: u64,
}
