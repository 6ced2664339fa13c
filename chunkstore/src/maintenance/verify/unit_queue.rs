//! Hands out the records of all packs, in order, in units that are read with one call.

use std::sync::Arc;
use std::vec::IntoIter;

use parking_lot::Mutex;

use super::Run;
use super::findings::Findings;
use super::verdict::OpenPack;
use crate::error::Result;
use crate::format::HEADER_BYTES;
use crate::format::limits::STORED_BYTES_MAX;
use crate::pack::PackRow;
use crate::pack::{PackReader, ScanOutcome, TableEntry};
use crate::store::marks::Mark;

/// Most bytes of a unit.
const UNIT_BYTES_MAX: u64 = 2 << 20;
/// Bytes between wanted records that are read rather than skipped.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// Most records of a unit.
const UNIT_RECORDS_MAX: usize = 4096;
const _: () = assert!(UNIT_BYTES_MAX > (HEADER_BYTES + STORED_BYTES_MAX) as u64);

/// The records that a pass checks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Full records; this pass also checks the packs themselves.
    Full,
    /// Deltas.
    Deltas,
}

/// Records that lie close together.
pub(super) struct Unit {
    pub(super) pack: Arc<OpenPack>,
    /// Positions in the pack's entries, ascending.
    pub(super) picked: Vec<usize>,
}

impl Unit {
    /// The records with their positions.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, &TableEntry)> {
        self.picked.iter().map(|at| (*at, &self.pack.entries[*at]))
    }

    /// Where the first record begins.
    pub(super) fn start(&self) -> u64 {
        u64::from(self.pack.entries[self.picked[0]].offset)
    }

    /// Bytes from the first record's start to the last one's end.
    pub(super) fn bytes(&self) -> usize {
        let ends = self.entries().map(|(_, entry)| end(entry));
        (ends.max().unwrap_or_default() - self.start()) as usize
    }
}

fn end(entry: &TableEntry) -> u64 {
    u64::from(entry.offset) + entry.record_bytes()
}

/// The queue of units, used by several threads.
pub(super) struct UnitQueue<'a> {
    run: &'a Run<'a>,
    findings: &'a Findings,
    wanted: Option<&'a Mark>,
    pass: Pass,
    state: Mutex<State>,
}

struct State {
    rows: IntoIter<PackRow>,
    open: Option<(Arc<OpenPack>, Vec<usize>)>,
    /// Position in the open pack's list of picked records.
    next: usize,
}

impl<'a> UnitQueue<'a> {
    pub(super) fn new(
        run: &'a Run<'a>,
        findings: &'a Findings,
        rows: Vec<PackRow>,
        wanted: Option<&'a Mark>,
        pass: Pass,
    ) -> Self {
        let state = Mutex::new(State { rows: rows.into_iter(), open: None, next: 0 });
        Self { run, findings, wanted, pass, state }
    }

    /// The next unit; `None` after all packs.
    pub(super) fn next(&self) -> Result<Option<Unit>> {
        self.run.progress.check()?;
        let mut state = self.state.lock();
        loop {
            if let Some(unit) = state.take_unit() {
                return Ok(Some(unit));
            }
            let Some(row) = state.rows.next() else { return Ok(None) };
            if self.wanted.is_some_and(|wanted| wanted.pack(row.id.number).is_none()) {
                continue;
            }
            state.next = 0;
            state.open = self.open(row).map(|pack| {
                let picked = self.pick(&pack);
                (Arc::new(pack), picked)
            });
        }
    }

    /// Opens a pack. The first pass also records everything that is wrong with the pack as a whole.
    fn open(&self, row: PackRow) -> Option<OpenPack> {
        let found = PackReader::open(&**self.run.store.storage(), row.id).and_then(|reader| {
            let scanned = reader.scan()?;
            Ok((reader, scanned))
        });
        let (reader, scanned) = match found {
            Ok(found) => found,
            Err(error) => {
                self.add_broken_pack(row, error.to_string());
                return None;
            }
        };
        let mut entries = scanned.entries;
        if let ScanOutcome::Damaged(error) = &scanned.outcome {
            if reader.is_another_pack() {
                // Its records are the other pack's, or exist twice.
                entries.clear();
            }
            self.add_broken_pack(row, format!("{error}; {} whole records were found in it", entries.len()));
        } else if self.pass == Pass::Full && self.wanted.is_none() {
            self.check_header(row, &reader, &entries);
        }
        if self.pass == Pass::Full {
            let has_deltas = entries.iter().any(|entry| entry.base.is_some());
            self.findings.add_pack(row, entries.len(), has_deltas);
        }
        Some(OpenPack { reader, row, entries })
    }

    /// Marks a pack as broken. It is reported only by a verification of the whole store, because one of certain
    /// snapshots reports only their records.
    fn add_broken_pack(&self, row: PackRow, problem: String) {
        self.findings.add_broken_pack(row);
        if self.pass == Pass::Full && self.wanted.is_none() {
            self.findings.add_problem(problem);
        }
    }

    fn check_header(&self, row: PackRow, reader: &PackReader, entries: &[TableEntry]) {
        let Ok(header) = reader.header() else { return };
        let id = reader.id();
        if header.store_id != self.run.store.config().format.store_id_bytes() {
            self.findings.add_unfit_pack(row);
            self.findings.add_problem(format!("pack {id} was made by another store"));
        }
        if entries.iter().any(|entry| entry.class() != header.class) {
            self.findings.add_unfit_pack(row);
            self.findings.add_problem(format!("pack {id} holds records of another class than its header says"));
        }
    }

    /// The wanted records of this pass. In a pack whose table is lost, all records, because they may have been numbered
    /// differently.
    fn pick(&self, pack: &OpenPack) -> Vec<usize> {
        let number = pack.row.id.number;
        let of_pass = |at: &usize| pack.entries[*at].base.is_some() == (self.pass == Pass::Deltas);
        let marked = |at: &usize| match self.wanted.and_then(|wanted| wanted.pack(number)) {
            Some(mark) if !self.findings.is_broken(number) => mark.has(*at),
            _ => true,
        };
        (0..pack.entries.len()).filter(of_pass).filter(marked).collect()
    }
}

impl State {
    fn take_unit(&mut self) -> Option<Unit> {
        let (pack, picked) = self.open.as_ref()?;
        let rest = &picked[self.next..];
        let first = pack.entries[*rest.first()?].offset;
        let follows = |pair: &[usize]| {
            let (before, next) = (&pack.entries[pair[0]], &pack.entries[pair[1]]);
            u64::from(next.offset) <= end(before) + GAP_BYTES_MAX && end(next) - u64::from(first) <= UNIT_BYTES_MAX
        };
        let count = 1 + rest.windows(2).take(UNIT_RECORDS_MAX - 1).take_while(|pair| follows(pair)).count();
        let unit = Unit { pack: Arc::clone(pack), picked: rest[..count].to_vec() };
        self.next += count;
        Some(unit)
    }
}
