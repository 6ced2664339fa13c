//! Marks: one bit for each record, by its pack and its position in the pack's table.

use std::collections::HashMap;

use crate::format::HEADER_BYTES;
use crate::pack::RecordLocation;

/// The set of locations that a walk has visited.
pub(crate) trait PlaceSet: Send {
    /// Adds a location; returns whether the walk must (again) go on below it.
    fn add(&mut self, location: &RecordLocation) -> bool;
}

/// One bit for each needed record.
#[derive(Clone, Default)]
pub(crate) struct Mark {
    packs: HashMap<u32, PackMark>,
}

/// The marks of one pack.
#[derive(Clone, Default)]
pub(crate) struct PackMark {
    bits: Vec<u64>,
    /// Number of marked records.
    pub(crate) records: u64,
    /// Their bytes in the pack; an upper bound after a merge.
    pub(crate) bytes: u64,
}

impl PlaceSet for Mark {
    fn add(&mut self, location: &RecordLocation) -> bool {
        let pack = self.packs.entry(location.pack).or_default();
        let (word, bit) = (location.ordinal as usize / 64, 1 << (location.ordinal % 64));
        if pack.bits.len() <= word {
            pack.bits.resize(word + 1, 0);
        }
        let new = pack.bits[word] & bit == 0;
        if new {
            pack.bits[word] |= bit;
            pack.records += 1;
            pack.bytes += HEADER_BYTES as u64 + u64::from(location.stored_bytes);
        }
        new
    }
}

impl Mark {
    /// The marks of a pack.
    pub(crate) fn pack(&self, number: u32) -> Option<&PackMark> {
        self.packs.get(&number)
    }

    /// Whether the record at a location is marked.
    pub(crate) fn has(&self, location: &RecordLocation) -> bool {
        self.pack(location.pack).is_some_and(|pack| pack.has(location.ordinal as usize))
    }

    /// Adds all marks of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (number, pack) in &other.packs {
            self.packs.entry(*number).or_default().merge(pack);
        }
    }
}

impl PackMark {
    /// Adds another's marks. If the other has any new mark, bytes of records that both have are counted twice.
    fn merge(&mut self, other: &Self) {
        if self.bits.len() < other.bits.len() {
            self.bits.resize(other.bits.len(), 0);
        }
        self.bits.iter_mut().zip(&other.bits).for_each(|(word, more)| *word |= more);
        let records = self.bits.iter().map(|word| u64::from(word.count_ones())).sum();
        if records > self.records {
            self.records = records;
            self.bytes += other.bytes;
        }
    }

    /// Whether the record at this position in the table is marked.
    pub(crate) fn has(&self, ordinal: usize) -> bool {
        self.bits.get(ordinal / 64).is_some_and(|word| word & 1 << (ordinal % 64) != 0)
    }
}
