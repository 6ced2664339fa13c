//! The findings of the passes over the packs: which records are good, which are not, and problems with packs.

use std::collections::{HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};

use super::VerifyReport;
use super::verdict::{FoundEntry, OpenPack, Verdict};
use crate::error::Result;
use crate::format::{Kind, PackId, RecordId};
use crate::pack::{PackReader, TableEntry};
use crate::pack::{PackRow, RecordLocation};
use crate::store::damaged::{BadRecord, Damaged};
use crate::store::{Store, pack_row};

/// Beginning of the problem of a corrected index.
pub(super) const INDEX_LACKED: &str = "the index lacked";
/// Most damaged records that a report names one by one.
const NAMED_MAX: usize = 1000;

/// A damaged record, and what kind it was.
struct Bad {
    record: BadRecord,
    kind: Kind,
    why: Why,
}

/// Why a record is bad.
enum Why {
    /// Found when it was read.
    Found(String),
    /// Found as well, but not described: there are more than [`NAMED_MAX`].
    Unnamed,
    /// It was in a missing or broken pack and is no longer there. The problem of the pack covers it.
    Gone,
}

/// The findings about one pack and its records.
struct PackState {
    row: PackRow,
    /// One bit for each good record.
    good: Vec<u64>,
    /// The pack as a whole is damaged: it may have lost records.
    broken: bool,
    has_deltas: bool,
    /// The index lacks some of its good records.
    unindexed: bool,
}

/// Everything found so far, by several threads.
pub(super) struct Findings {
    state: Mutex<State>,
    /// Damage that was known before, so that its absence from the index is expected.
    known: std::sync::Arc<Damaged>,
}

#[derive(Default)]
struct State {
    packs: HashMap<u32, PackState>,
    /// Packs with a wrong header but intact records.
    unfit: HashSet<u32>,
    bad: Vec<Bad>,
    entries: Vec<FoundEntry>,
    problems: Vec<String>,
    records: u64,
    plain_bytes: u64,
    /// Good records that the index lacked, or had elsewhere in their pack.
    index_wrong: u64,
}

impl PackState {
    fn new(row: PackRow) -> Self {
        Self { row, good: Vec::new(), broken: false, has_deltas: false, unindexed: false }
    }

    fn set_good(&mut self, ordinal: usize) {
        if self.good.len() <= ordinal / 64 {
            self.good.resize(ordinal / 64 + 1, 0);
        }
        self.good[ordinal / 64] |= 1 << (ordinal % 64);
    }

    fn is_good(&self, ordinal: usize) -> bool {
        self.good.get(ordinal / 64).is_some_and(|word| word & 1 << (ordinal % 64) != 0)
    }
}

impl Findings {
    pub(super) fn new(store: &Store) -> Self {
        Self { state: Mutex::default(), known: store.damaged() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Adds a pack that was opened.
    pub(super) fn add_pack(&self, row: PackRow, records: usize, has_deltas: bool) {
        let mut state = self.lock();
        let pack = state.pack(row);
        pack.has_deltas = has_deltas;
        pack.good.resize(records.div_ceil(64), 0);
    }

    /// Marks a pack as broken.
    pub(super) fn add_broken_pack(&self, row: PackRow) {
        self.lock().pack(row).broken = true;
    }

    pub(super) fn add_problem(&self, problem: String) {
        self.lock().problems.push(problem);
    }

    pub(super) fn is_broken(&self, number: u32) -> bool {
        self.lock().packs.get(&number).is_some_and(|pack| pack.broken)
    }

    /// Marks a pack as wrong although its records are intact.
    pub(super) fn add_unfit_pack(&self, row: PackRow) {
        self.lock().unfit.insert(row.id.number);
    }

    /// The packs with damage, in order. A delta that only lacks its base is intact.
    pub(super) fn unfit_packs(&self) -> Vec<PackRow> {
        let state = self.lock();
        let damaged = state.bad.iter().filter(|bad| !bad.record.base_lost).map(|bad| bad.record.pack.number);
        let others: HashSet<u32> = damaged.chain(state.unfit.iter().copied()).collect();
        let is_unfit = |pack: &&PackState| pack.broken || others.contains(&pack.row.id.number);
        let mut rows: Vec<_> = state.packs.values().filter(is_unfit).map(|pack| pack.row).collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    /// The packs with deltas, in order.
    pub(super) fn packs_with_deltas(&self) -> Vec<PackRow> {
        let state = self.lock();
        let mut rows: Vec<_> = state.packs.values().filter(|pack| pack.has_deltas).map(|pack| pack.row).collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    /// Adds the verdicts on records of a pack, and whether the index knows the good ones.
    pub(super) fn settle(&self, store: &Store, pack: &OpenPack, verdicts: Vec<Verdict>) -> Result<()> {
        let ids: Vec<RecordId> = verdicts.iter().map(|(at, _)| pack.entries[*at].id).collect();
        let locations = store.index().locate(&ids)?;
        let mut state = self.lock();
        for ((at, verdict), location) in verdicts.into_iter().zip(locations) {
            let entry = &pack.entries[at];
            match verdict {
                Ok(found) => {
                    state.entries.extend(found);
                    let known = self.known.concerns(entry.id);
                    state.add_good(pack, at, location, known);
                }
                Err(fault) => state.add_bad(pack.row.id, entry, fault.detail, fault.base_lost),
            }
        }
        Ok(())
    }

    /// Whether the record at a location is good. An unknown pack was sealed after the verification began.
    pub(super) fn is_good(&self, location: &RecordLocation) -> bool {
        self.lock().packs.get(&location.pack).is_none_or(|pack| pack.is_good(location.ordinal as usize))
    }

    pub(super) fn take_entries(&mut self) -> Vec<FoundEntry> {
        std::mem::take(&mut self.lock().entries)
    }

    /// Adds records that the index has in missing or broken packs and that were not found there.
    pub(super) fn add_stale_places(&mut self, store: &Store) -> Result<()> {
        let mut state = self.lock();
        let broken = state.packs.values().filter(|pack| pack.broken).map(|pack| pack.row.id);
        let suspects: HashMap<u32, PackId> =
            broken.chain(store.missing_packs().iter().map(|row| row.id)).map(|id| (id.number, id)).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let named: HashSet<(u32, u32)> =
            state.bad.iter().map(|bad| (bad.record.pack.number, bad.record.offset)).collect();
        store.index().each_record(&mut |id, location| {
            let Some(pack) = suspects.get(&location.pack) else { return Ok(()) };
            let is_good = state.packs.get(&location.pack).is_some_and(|pack| pack.is_good(location.ordinal as usize));
            if !is_good && !named.contains(&(location.pack, location.offset)) {
                let record = BadRecord { pack: *pack, offset: location.offset, id, base_lost: false };
                state.bad.push(Bad { record, kind: location.kind, why: Why::Gone });
            }
            Ok(())
        })
    }

    /// The list of damaged records, added to another.
    pub(super) fn damaged(&self, mut others: Damaged) -> Damaged {
        self.lock().bad.iter().for_each(|bad| others.insert(bad.record));
        others
    }

    /// Adds packs to the index again whose good records it lacks, or has at a damaged location.
    pub(super) fn add_homeless_packs(&mut self, store: &Store) -> Result<()> {
        let mut state = self.lock();
        let moved: HashSet<RecordId> =
            state.bad.iter().filter(|bad| !bad.record.base_lost).map(|bad| bad.record.id).collect();
        let mut rows: Vec<PackRow> = state.packs.values().map(|pack| pack.row).collect();
        rows.retain(|row| !moved.is_empty() || state.packs[&row.id.number].unindexed);
        rows.sort_unstable_by_key(|row| row.id);
        for row in rows {
            let Ok(scanned) = PackReader::open(&**store.storage(), row.id).and_then(|reader| reader.scan()) else {
                continue;
            };
            let pack = &state.packs[&row.id.number];
            let homeless = |(at, entry): (usize, &TableEntry)| pack.is_good(at) && moved.contains(&entry.id);
            let any_homeless = scanned.entries.iter().enumerate().any(homeless);
            if (pack.unindexed || any_homeless) && scanned.entries.len() <= pack.good.len() * 64 {
                let row = pack_row(row.id, row.class, &scanned.entries, row.bytes);
                store.adopt(row, &scanned.entries)?;
            }
        }
        if state.index_wrong > 0 {
            let count = state.index_wrong;
            state
                .problems
                .push(format!("{INDEX_LACKED} {count} records of the packs, or had wrong locations; it is corrected"));
        }
        Ok(())
    }

    /// Whether deltas were found without bases while the index lacked good records, which it has now.
    pub(super) fn may_have_bases_now(&self) -> bool {
        let state = self.lock();
        state.packs.values().any(|pack| pack.unindexed) && state.bad.iter().any(|bad| bad.record.base_lost)
    }

    /// Writes everything into a report. `entries` are those in the catalog.
    pub(super) fn report(self, store: &Store, entries: &HashSet<RecordId>, report: &mut VerifyReport) -> Result<()> {
        let mut state = self.state.into_inner();
        state.bad.sort_unstable_by_key(|bad| bad.record);
        report.packs = state.packs.len() as u64;
        report.records = state.records;
        report.plain_bytes = state.plain_bytes;
        report.problems = state.problems;
        let ids: Vec<RecordId> = state.bad.iter().map(|bad| bad.record.id).collect();
        let mut unnamed = 0;
        for (bad, location) in state.bad.iter().zip(store.locate(&ids)?) {
            let elsewhere = location.is_some_and(|location| {
                (location.pack, location.offset) != (bad.record.pack.number, bad.record.offset)
                    && state.packs.get(&location.pack).is_some_and(|pack| pack.is_good(location.ordinal as usize))
            });
            match &bad.why {
                Why::Gone => {}
                _ if elsewhere || entries.contains(&bad.record.id) => report.healed_records += 1,
                Why::Found(detail) => report.problems.push(bad.describe(detail)),
                Why::Unnamed => unnamed += 1,
            }
        }
        if unnamed > 0 {
            report.problems.push(format!("{unnamed} more records are damaged"));
        }
        Ok(())
    }
}

impl State {
    fn pack(&mut self, row: PackRow) -> &mut PackState {
        self.packs.entry(row.id.number).or_insert_with(|| PackState::new(row))
    }

    fn add_good(&mut self, pack: &OpenPack, at: usize, location: Option<RecordLocation>, known_damaged: bool) {
        let entry = &pack.entries[at];
        self.records += 1;
        self.plain_bytes += u64::from(entry.plain_bytes);
        let here = location.filter(|location| location.pack == pack.row.id.number);
        let state = self.packs.entry(pack.row.id.number).or_insert_with(|| PackState::new(pack.row));
        let right = here.filter(|location| is_location_of(location, pack, entry.id, state.broken));
        state.set_good(at);
        if let Some(location) = right {
            state.set_good(location.ordinal as usize);
        }
        let lacks = location.is_none() || here.is_some() != right.is_some();
        state.unindexed |= lacks;
        self.index_wrong += u64::from(lacks && !known_damaged);
    }

    fn add_bad(&mut self, pack: PackId, entry: &TableEntry, detail: String, base_lost: bool) {
        self.records += 1;
        self.plain_bytes += u64::from(entry.plain_bytes);
        let record = BadRecord { pack, offset: entry.offset, id: entry.id, base_lost };
        let why = if self.bad.len() < NAMED_MAX { Why::Found(detail) } else { Why::Unnamed };
        self.bad.push(Bad { record, kind: entry.kind, why });
    }
}

/// Whether a location in a pack is one of this record. A pack may contain a record twice. If the table is lost, the
/// index may number the records differently from a search.
fn is_location_of(location: &RecordLocation, pack: &OpenPack, id: RecordId, counted_otherwise: bool) -> bool {
    let found = pack.entries.binary_search_by_key(&location.offset, |entry| entry.offset);
    found.is_ok_and(|at| {
        let entry = &pack.entries[at];
        let mut expected = RecordLocation::of(pack.row.id, at, entry);
        if counted_otherwise {
            expected.ordinal = location.ordinal;
        }
        entry.id == id && *location == expected
    })
}

impl Bad {
    fn describe(&self, detail: &str) -> String {
        let kind = match self.kind {
            Kind::Chunk => "chunk",
            Kind::Node => "manifest node",
            Kind::Entry => "the copied entry of a snapshot,",
        };
        let BadRecord { pack, offset, id, .. } = self.record;
        format!("pack {pack} at offset {offset}: {kind} {id}: {detail}")
    }
}
