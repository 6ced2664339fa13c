//! Packs: append-only files of records, with a table at their end.
//!
//! A pack is written as `NAME.part`, synced, renamed to `NAME.pack`, and never modified, except in the gaps between its
//! records, which have no meaning. Four classes separate records that are read separately: manifests from chunks, so
//! that a mark reads sequentially, and deltas from full records, so that gc can unlink deltas before their bases.
//! Layout: FORMAT.md, "Pack". May import `format` and `storage`.

pub(crate) mod direct_writer;
mod layout;
mod location;
mod reader;
pub(crate) mod record_reader;
mod set;
mod writer;

pub use direct_writer::{DirectWriter, EXTENT_BYTES_MAX, EXTENT_RECORDS_MAX, Extent, ExtentAllocator};
pub use layout::{FOOTER_BYTES, PACK_HEADER_BYTES, PackHeader, TABLE_ENTRY_BYTES, TableEntry};
pub use location::{PackRow, RecordLocation};
pub use reader::{PackReader, ScanOutcome, Scanned};
pub use record_reader::{Locator, PackFiles, RecordReader, check_plain};
pub(crate) use set::Inventory;
pub use set::PackSet;
pub(crate) use writer::write_records;
pub use writer::{PackWriter, SealedPack};

use crate::format::{Codec, Kind, PackId};

/// Directory of the packs in a store.
pub const DIR: &str = "packs";

/// Which records a pack holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Class {
    /// Full records of chunks.
    Data = 1,
    /// Delta records of chunks.
    DataDelta = 2,
    /// Full records of manifest nodes and snapshot entries.
    Meta = 3,
    /// Delta records of manifest nodes.
    MetaDelta = 4,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 4] = [Self::Data, Self::DataDelta, Self::Meta, Self::MetaDelta];

    /// The class with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u8 == number)
    }

    /// Where a record belongs.
    pub fn of(kind: Kind, codec: Codec) -> Self {
        match (kind, codec) {
            (Kind::Chunk, Codec::Delta) => Self::DataDelta,
            (Kind::Chunk, _) => Self::Data,
            (_, Codec::Delta) => Self::MetaDelta,
            (_, _) => Self::Meta,
        }
    }

    /// Whether its records need others to be decoded.
    pub fn is_delta(self) -> bool {
        matches!(self, Self::DataDelta | Self::MetaDelta)
    }
}

/// Path of a sealed pack in the store.
pub fn path(id: PackId) -> String {
    format!("{DIR}/{id}.pack")
}

/// Path of a pack that is being written.
pub(crate) fn part_path(id: PackId) -> String {
    format!("{DIR}/{id}.part")
}

#[cfg(test)]
mod tests;
