//! The data that the passes over packs hand to the findings: an open pack, and the verdicts on its records.

use crate::catalog::SnapshotName;
use crate::format::{EntryId, PackId};
use crate::pack::{PackReader, PackRow, TableEntry};

/// A pack whose records are being checked.
pub(super) struct OpenPack {
    pub(super) reader: PackReader,
    pub(super) row: PackRow,
    /// From its table, or found by a search.
    pub(super) entries: Vec<TableEntry>,
}

/// A snapshot's entry in a pack.
pub(super) struct FoundEntry {
    pub(super) id: EntryId,
    pub(super) name: SnapshotName,
    pub(super) pack: PackId,
}

/// Why a record is bad.
pub(super) struct Fault {
    pub(super) detail: String,
    /// The record itself is intact, and its base is missing.
    pub(super) base_lost: bool,
}

impl From<String> for Fault {
    fn from(detail: String) -> Self {
        Self { detail, base_lost: false }
    }
}

/// The verdict on a record, by its position in the pack's entries.
pub(super) type Verdict = (usize, Result<Option<FoundEntry>, Fault>);
