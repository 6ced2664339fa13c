//! The steps of a thread, from a seed: always the same.

use std::ops::Range;

use super::SECTOR_BYTES;
use crate::images::Rng;

/// The largest write.
pub(super) const WRITE_BYTES_MAX: u64 = 64 << 10;
const DISCARD_BYTES_MAX: u64 = 256 << 10;
/// Of a hundred steps, so many are syncs and discards.
const SYNCS: u64 = 8;
const DISCARDS: u64 = 10;

/// The steps of one thread in one round; there is no last one.
#[derive(Debug)]
pub(super) struct Plan {
    rng: Rng,
    /// Of the round and the thread; a step adds its number.
    tag: u64,
    number: u64,
    range: Range<u64>,
}

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    /// From one up.
    pub(super) number: u64,
    /// No two writes have the same.
    pub(super) tag: u64,
    pub(super) what: What,
}

/// Ranges are of whole sectors.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    Write(Range<u64>),
    Discard(Range<u64>),
    Sync,
}

impl Plan {
    pub(super) fn new(seed: u64, round: u32, thread: u32, range: Range<u64>) -> Self {
        let tag = (u64::from(round) << 44) | (u64::from(thread) << 36);
        Self { rng: Rng::new(seed ^ tag), tag, number: 0, range }
    }

    /// Sizes are as likely to be small as large, and half of them are powers of two.
    fn place(&mut self, bytes_max: u64) -> Range<u64> {
        let most = SECTOR_BYTES << self.rng.below(u64::from((bytes_max / SECTOR_BYTES).ilog2()) + 1);
        let sectors = most / SECTOR_BYTES;
        let sectors = if self.rng.below(2) == 0 { sectors } else { 1 + self.rng.below(sectors) };
        let places = (self.range.end - self.range.start) / SECTOR_BYTES - sectors + 1;
        // A write of several blocks often begins at a block, as a file system's writes do.
        let first = self.rng.below(places);
        let first = if self.rng.below(2) == 0 { first } else { first / 8 * 8 };
        let start = self.range.start + first * SECTOR_BYTES;
        start..start + sectors * SECTOR_BYTES
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.number += 1;
        let what = match self.rng.below(100) {
            kind if kind < SYNCS => What::Sync,
            kind if kind < SYNCS + DISCARDS => What::Discard(self.place(DISCARD_BYTES_MAX)),
            _ => What::Write(self.place(WRITE_BYTES_MAX)),
        };
        Some(Step { number: self.number, tag: self.tag | self.number, what })
    }
}

/// Fills the sector at `offset` with the content of a write.
pub(super) fn fill(sector: &mut [u8], tag: u64, offset: u64) {
    let mut rng = Rng::new(tag.rotate_left(32) ^ offset);
    for word in sector.chunks_exact_mut(8) {
        word.copy_from_slice(&rng.number().to_le_bytes());
    }
}
