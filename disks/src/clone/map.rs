//! Which blocks a layer has: a bit each, in memory and in the layer's map file (CLONES.md, "The map").
//!
//! Bits are only ever set. The file is written in sectors that carry a checksum each, so that a torn write leaves every
//! sector as it was or as it shall be. In memory there are only sectors with bits: a map of nothing costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use chunkstore::format::limits::IMAGE_BYTES_MAX;

use super::BLOCK_BYTES;
use super::files::LayerFile;
use crate::poison::lock;

/// The unit of a map's file: disks write it atomically.
pub(super) const SECTOR_BYTES: usize = 512;
/// Bits of a sector; its checksum follows.
const BITMAP_BYTES: usize = SECTOR_BYTES - 4;
/// Blocks that a sector tells of.
pub(super) const SECTOR_BLOCKS: u64 = BITMAP_BYTES as u64 * 8;
/// Sectors of the map of the longest disk.
const SECTORS_MAX: u64 = IMAGE_BYTES_MAX.div_ceil(SECTOR_BLOCKS * BLOCK_BYTES);
/// Room in the file is taken by so much at a time.
const RESERVE_BYTES: u64 = 4096;
/// So much of the file is read at a time.
const READ_BYTES: usize = 256 << 10;

type Bits = [u8; BITMAP_BYTES];
/// A sector as it is in the file.
pub(super) type Sector = [u8; SECTOR_BYTES];

/// Blocks in a row that are all in the layer, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) is_there: bool,
    /// The first block after them.
    pub(super) end: u64,
}

/// A layer's map.
pub(super) struct Map {
    file: Box<dyn LayerFile>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sectors: BTreeMap<u64, Box<Bits>>,
    /// Those that differ from the file.
    dirty: BTreeSet<u64>,
    /// Parts of the file for which room was taken.
    reserved: BTreeSet<u64>,
}

/// Sectors on their way to the file, in order.
pub(super) type Taken = Vec<(u64, Sector)>;

impl Map {
    /// Reads the map in `file`; an empty file is a map of nothing.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if a sector is damaged, or of no disk.
    pub(super) fn open(file: Box<dyn LayerFile>) -> io::Result<Self> {
        let mut sectors = BTreeMap::new();
        let mut at = 0;
        while let Some(data) = file.next_data(at)? {
            let start = data.start / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
            let wanted = (data.end - start).min(READ_BYTES as u64).next_multiple_of(SECTOR_BYTES as u64);
            read_sectors(&*file, start, wanted as usize, &mut sectors)?;
            at = start + wanted;
        }
        Ok(Self { file, state: Mutex::new(State { sectors, ..State::default() }) })
    }

    /// The blocks from `block` on that are as it is; `end` at most.
    pub(super) fn run(&self, block: u64, end: u64) -> Run {
        let state = self.state();
        let is_there = state.has(block);
        let mut at = block;
        while at < end {
            let sector = at / SECTOR_BLOCKS;
            let Some(bits) = state.sectors.get(&sector) else {
                if is_there {
                    break;
                }
                at = state.sectors.range(sector..).next().map_or(end, |(next, _)| next * SECTOR_BLOCKS);
                continue;
            };
            let found = first_unlike(bits, (at % SECTOR_BLOCKS) as usize, is_there);
            at = sector * SECTOR_BLOCKS + found as u64;
            if found < SECTOR_BLOCKS as usize {
                break;
            }
        }
        Run { is_there, end: at.min(end) }
    }

    /// Whether it has no block at all.
    pub(super) fn is_empty(&self) -> bool {
        self.state().sectors.is_empty()
    }

    /// Takes room in the file for these blocks' bits.
    pub(super) fn reserve(&self, blocks: &Range<u64>) -> io::Result<()> {
        let offset = |block: u64| block / SECTOR_BLOCKS * SECTOR_BYTES as u64;
        let (first, last) = (offset(blocks.start) / RESERVE_BYTES, offset(blocks.end - 1) / RESERVE_BYTES);
        for part in first..=last {
            let mut state = self.state();
            if !state.reserved.contains(&part) {
                self.file.reserve(part * RESERVE_BYTES..(part + 1) * RESERVE_BYTES)?;
                state.reserved.insert(part);
            }
        }
        Ok(())
    }

    /// Adds blocks, in memory.
    pub(super) fn set(&self, blocks: &Range<u64>) {
        let mut state = self.state();
        let mut at = blocks.start;
        while at < blocks.end {
            let sector = at / SECTOR_BLOCKS;
            let end = blocks.end.min((sector + 1) * SECTOR_BLOCKS);
            let bits = state.sectors.entry(sector).or_insert_with(|| Box::new([0; BITMAP_BYTES]));
            let first = sector * SECTOR_BLOCKS;
            if set_bits(bits, (at - first) as usize..(end - first) as usize) {
                state.dirty.insert(sector);
            }
            at = end;
        }
    }

    /// Takes what differs from the file, as it is now.
    pub(super) fn take_dirty(&self) -> Taken {
        let mut state = self.state();
        let dirty = std::mem::take(&mut state.dirty);
        dirty.into_iter().map(|number| (number, encode(number, &state.sectors[&number]))).collect()
    }

    /// Marks taken sectors as dirty again.
    pub(super) fn put_back(&self, taken: &Taken) {
        self.state().dirty.extend(taken.iter().map(|(number, _)| number));
    }

    /// Writes what was taken.
    pub(super) fn write(&self, taken: &Taken) -> io::Result<()> {
        let mut rest = &taken[..];
        while let [(first, _), ..] = rest {
            let in_a_row = rest.iter().zip(*first..).take_while(|((number, _), expected)| number == expected).count();
            let bytes: Vec<u8> = rest[..in_a_row].iter().flat_map(|(_, sector)| sector).copied().collect();
            self.file.write(&bytes, first * SECTOR_BYTES as u64)?;
            rest = &rest[in_a_row..];
        }
        Ok(())
    }

    /// Makes what was written permanent.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// As [`LayerFile::forget`].
    pub(super) fn forget(&self) {
        self.file.forget();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn has(&self, block: u64) -> bool {
        let bit = block % SECTOR_BLOCKS;
        self.sectors.get(&(block / SECTOR_BLOCKS)).is_some_and(|bits| bits[bit as usize / 8] >> (bit % 8) & 1 == 1)
    }
}

fn read_sectors(
    file: &dyn LayerFile,
    start: u64,
    bytes: usize,
    sectors: &mut BTreeMap<u64, Box<Bits>>,
) -> io::Result<()> {
    let mut buf = vec![0; bytes];
    file.read(&mut buf, start)?;
    for (number, sector) in (start / SECTOR_BYTES as u64..).zip(buf.as_chunks::<SECTOR_BYTES>().0) {
        let bits = decode(number, sector)?;
        sectors.extend(bits.map(|bits| (number, bits)));
    }
    Ok(())
}

/// A sector's bytes in the file: its bits, and a checksum of its number and them.
fn encode(number: u64, bits: &Bits) -> Sector {
    let mut sector = [0; SECTOR_BYTES];
    sector[..BITMAP_BYTES].copy_from_slice(bits);
    sector[BITMAP_BYTES..].copy_from_slice(&checksum(number, bits).to_le_bytes());
    sector
}

/// The bits of a sector; none if nothing was written there.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is damaged, or no disk can be so long.
fn decode(number: u64, sector: &Sector) -> io::Result<Option<Box<Bits>>> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (bits, found) = sector.split_first_chunk::<BITMAP_BYTES>().expect("a sector is longer than its bits");
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if found != checksum(number, bits).to_le_bytes() {
        wrong(format!("the checksum of sector {number} does not match"))
    } else if number >= SECTORS_MAX {
        wrong(format!("sector {number} is beyond the longest disk"))
    } else {
        Ok(Some(Box::new(*bits)))
    }
}

fn checksum(number: u64, bits: &Bits) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bits)
}

/// Sets bits; tells whether one of them was not set.
fn set_bits(bits: &mut Bits, range: Range<usize>) -> bool {
    let mut changed = false;
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at / 8 * 8 + 8);
        let mask = (u16::MAX << (at % 8) & ((1 << (end - at / 8 * 8)) - 1)) as u8;
        changed |= bits[at / 8] & mask != mask;
        bits[at / 8] |= mask;
        at = end;
    }
    changed
}

/// The first bit from `from` on that is not `is_set`; the number of bits if there is none.
fn first_unlike(bits: &Bits, from: usize, is_set: bool) -> usize {
    let alike = if is_set { 0xff } else { 0 };
    let in_byte = |byte: usize, skipped: usize| {
        let unlike = (bits[byte] ^ alike) >> skipped << skipped;
        (unlike != 0).then(|| byte * 8 + unlike.trailing_zeros() as usize)
    };
    let first = from / 8;
    in_byte(first, from % 8)
        .or_else(|| (first + 1..BITMAP_BYTES).find_map(|byte| in_byte(byte, 0)))
        .unwrap_or(BITMAP_BYTES * 8)
}

#[cfg(test)]
mod tests;
