//! Runs: records that lie close together are read with one call.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::{HEADER_BYTES, buffers};
use crate::pack::PackReader;
use crate::pack::RecordLocation;
use crate::pack::record_reader::{Locator, Parsed};

/// Records of one pack that lie this close are read with one call.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// Most bytes read with one call.
const READ_BYTES_MAX: u64 = 2 << 20;

/// The result of reading adjoining records.
pub(super) enum Run<'a> {
    /// Their stored form.
    Read(Records<'a>),
    /// One that can't be read.
    Failed(usize, Error),
}

/// Records of one pack in their stored form.
pub(super) struct Records<'a> {
    pub(super) pack: &'a Arc<PackReader>,
    /// Their positions in the request, and their locations.
    pub(super) locations: &'a [(usize, RecordLocation)],
    bytes: &'a [u8],
}

impl<'a> Records<'a> {
    /// The records, in the order of their locations.
    pub(super) fn parse(&self) -> Vec<Parsed<'a>> {
        let start = self.locations[0].1.offset;
        let at = |location: &RecordLocation| -> Range<usize> {
            let start = (location.offset - start) as usize;
            start..start + HEADER_BYTES + location.stored_bytes as usize
        };
        let parse =
            |location: &RecordLocation| self.pack.parse_record(&self.bytes[at(location)], u64::from(location.offset));
        self.locations.iter().map(|(_, location)| parse(location)).collect()
    }
}

/// Reads records in the order of their locations.
pub(super) fn read(
    locations: &dyn Locator,
    mut wanted: Vec<(usize, RecordLocation)>,
    visit: &mut dyn FnMut(Run<'_>) -> Result<()>,
) -> Result<()> {
    wanted.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let run = run_length(rest);
        let (run, after) = rest.split_at(run);
        read_run(locations, run, visit)?;
        rest = after;
    }
    Ok(())
}

/// Reads records that lie close together with one call.
fn read_run(
    locations: &dyn Locator,
    run: &[(usize, RecordLocation)],
    visit: &mut dyn FnMut(Run<'_>) -> Result<()>,
) -> Result<()> {
    // Locations may overlap: a search of a damaged pack can find content that looks like a record.
    let range_end = run.iter().map(|(_, location)| end(location)).max().unwrap_or_default();
    let range = u64::from(run[0].1.offset)..range_end;
    buffers::with((range.end - range.start) as usize, |bytes| {
        let read = locations.pack(run[0].1.pack).and_then(|pack| {
            pack.read_at(bytes, range.start)?;
            Ok(pack)
        });
        match read {
            Ok(pack) => visit(Run::Read(Records { pack: &pack, locations: run, bytes })),
            // One bad block must not fail its neighbours.
            Err(_) if run.len() > 1 => {
                run.iter().try_for_each(|one| read_run(locations, std::slice::from_ref(one), visit))
            }
            Err(error) => visit(Run::Failed(run[0].0, error)),
        }
    })
}

fn end(location: &RecordLocation) -> u64 {
    u64::from(location.offset) + HEADER_BYTES as u64 + u64::from(location.stored_bytes)
}

/// How many of the first records are read with one call.
fn run_length(sorted: &[(usize, RecordLocation)]) -> usize {
    let first = &sorted[0].1;
    let follows = |pair: &[(usize, RecordLocation)]| {
        let (before, next) = (&pair[0].1, &pair[1].1);
        next.pack == first.pack
            && u64::from(next.offset) <= end(before) + GAP_BYTES_MAX
            && end(next) - u64::from(first.offset) <= READ_BYTES_MAX
    };
    1 + sorted.windows(2).take_while(|pair| follows(pair)).count()
}
