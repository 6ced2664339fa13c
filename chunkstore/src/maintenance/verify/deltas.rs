//! Checking deltas: in batches held in memory, sorted by the locations of their bases, so that a base is decoded once
//! for all deltas of a batch and bases are read in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use crossbeam_channel::{Sender, bounded};

use super::Run;
use super::findings::Findings;
use super::records::{self, Unreadable};
use super::unit_queue::{Pass, Unit, UnitQueue};
use super::verdict::{Fault, Verdict};
use crate::error::Result;
use crate::format::{RecordCodec, RecordId};
use crate::pack::RecordLocation;
use crate::pack::TableEntry;
use crate::pack::record_reader::{Plain, id_of};
use crate::parallel;
use crate::store::Store;
use crate::store::marks::Mark;

/// Stored bytes of a batch. Two are in memory: one is filled while the other is checked.
const BATCH_BYTES: usize = 24 << 20;
/// Most deltas of a batch.
const BATCH_DELTAS_MAX: usize = 128 << 10;
/// Deltas that a thread takes at a time.
const PORTION_DELTAS: usize = 512;

/// Checks all deltas of the packs in which the first pass found some.
pub(super) fn check(run: &Run<'_>, wanted: Option<&Mark>, findings: &Findings) -> Result<()> {
    let units = UnitQueue::new(run, findings, findings.packs_with_deltas(), wanted, Pass::Deltas);
    let (sender, batches) = bounded(0);
    thread::scope(|scope| {
        let filler = scope.spawn(|| fill_batches(&units, sender));
        // Taken by value: after a failure here, the filler's next send must fail and not block.
        let checked = batches.into_iter().try_for_each(|batch: Batch| batch.check(run, findings));
        let result = filler.join().expect("filling does not panic");
        checked.and(result)
    })
}

#[expect(clippy::needless_pass_by_value, reason = "its end tells that there are no more")]
fn fill_batches(units: &UnitQueue<'_>, sender: Sender<Batch>) -> Result<()> {
    loop {
        let batch = Batch::fill(units)?;
        if batch.blocks.is_empty() || sender.send(batch).is_err() {
            return Ok(());
        }
    }
}

/// Deltas whose stored bytes are in memory.
struct Batch {
    blocks: Vec<Block>,
}

struct Block {
    unit: Unit,
    bytes: Vec<u8>,
    unreadable: Unreadable,
}

/// A delta in a batch, with the location of its base.
#[derive(Clone, Copy)]
struct Delta {
    block: usize,
    /// Position in the pack's entries.
    at: usize,
    base: RecordLocation,
}

impl Batch {
    fn fill(units: &UnitQueue<'_>) -> Result<Self> {
        let mut batch = Self { blocks: Vec::new() };
        let (mut bytes, mut deltas) = (0, 0);
        while bytes < BATCH_BYTES && deltas < BATCH_DELTAS_MAX {
            let Some(unit) = units.next()? else { break };
            let mut block = vec![0; unit.bytes()];
            let unreadable = records::read_unit(&unit, &mut block);
            bytes += block.len();
            deltas += unit.picked.len();
            batch.blocks.push(Block { unit, bytes: block, unreadable });
        }
        Ok(batch)
    }

    fn check(&self, run: &Run<'_>, findings: &Findings) -> Result<()> {
        let (deltas, without_base) = self.by_base(run.store)?;
        let verdicts: Mutex<Vec<Vec<Verdict>>> = Mutex::new(without_base);
        let next = AtomicUsize::new(0);
        parallel::run(run.threads, || {
            loop {
                run.progress.check()?;
                let start = next.fetch_add(1, Ordering::Relaxed) * PORTION_DELTAS;
                let Some(rest) = deltas.get(start..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
                let portion = &rest[..rest.len().min(PORTION_DELTAS)];
                self.check_portion(run.store, portion, &verdicts)?;
            }
        })?;
        let verdicts = verdicts.into_inner();
        for (block, verdicts) in self.blocks.iter().zip(verdicts) {
            findings.settle(run.store, &block.unit.pack, verdicts)?;
            run.progress.advance(block.bytes.len() as u64);
        }
        Ok(())
    }

    /// The deltas whose bases have locations, sorted by these; and for each block the verdicts on the others.
    fn by_base(&self, store: &Store) -> Result<(Vec<Delta>, Vec<Vec<Verdict>>)> {
        let mut deltas = Vec::new();
        let mut others = Vec::new();
        for (number, block) in self.blocks.iter().enumerate() {
            let bases: Vec<RecordId> = block.unit.entries().filter_map(|(_, entry)| entry.base).collect();
            let mut lost = Vec::new();
            for ((at, entry), location) in block.unit.entries().zip(store.locate(&bases)?) {
                match location.filter(RecordLocation::is_full) {
                    Some(base) => deltas.push(Delta { block: number, at, base }),
                    // Damage of the delta itself comes first: it does not heal with the base.
                    None => lost.push((at, block.stored(at, entry).map_err(Fault::from).and(Err(lost_base(entry))))),
                }
            }
            others.push(lost);
        }
        deltas.sort_unstable_by_key(|delta| (delta.base.pack, delta.base.offset));
        Ok((deltas, others))
    }

    /// Checks deltas that are sorted by their bases.
    fn check_portion(&self, store: &Store, deltas: &[Delta], verdicts: &Mutex<Vec<Vec<Verdict>>>) -> Result<()> {
        let groups: Vec<&[Delta]> = deltas.chunk_by(|a, b| a.base == b.base).collect();
        let bases = groups.iter().enumerate().map(|(at, group)| (at, group[0].base)).collect();
        let mut plain = Vec::new();
        store.read_full(bases, &mut |group, base| {
            let found: Vec<_> = groups[group]
                .iter()
                .map(|delta| (delta.block, self.check_delta(store.codec(), *delta, &base, &mut plain)))
                .collect();
            let mut verdicts = verdicts.lock();
            for (block, verdict) in found {
                verdicts[block].push(verdict);
            }
            Ok(())
        })
    }

    fn check_delta(&self, codec: &RecordCodec, delta: Delta, base: &Result<Plain>, plain: &mut Vec<u8>) -> Verdict {
        let block = &self.blocks[delta.block];
        let pack = &block.unit.pack;
        let entry = &pack.entries[delta.at];
        let verdict = block.stored(delta.at, entry).map_err(Fault::from).and_then(|(header, payload)| {
            let Ok(base) = base else { return Err(lost_base(entry)) };
            codec
                .decode_into(&header, payload, Some(&base.bytes), plain)
                .and_then(|plain| records::check_content(pack, entry, plain))
                .map_err(|detail| blame(entry, delta.base, &base.bytes, detail))
        });
        (delta.at, verdict)
    }
}

impl Block {
    /// The stored form of a record, if it is intact.
    fn stored(&self, at: usize, entry: &TableEntry) -> Result<(crate::format::Header, &[u8]), String> {
        records::record_bytes(&self.unit, &self.unreadable, &self.bytes, at, entry)
            .and_then(|bytes| records::parse(&self.unit.pack, entry, bytes))
    }
}

/// A delta that does not decode to its content is damaged, unless its base is wrong.
fn blame(entry: &TableEntry, location: RecordLocation, base: &[u8], detail: String) -> Fault {
    let base_is_right = entry.base.is_some_and(|id| id_of(location.kind, base) == id);
    if base_is_right { detail.into() } else { lost_base(entry) }
}

fn lost_base(entry: &TableEntry) -> Fault {
    let base = entry.base.map_or_else(String::new, |base| format!(" {base}"));
    Fault { detail: format!("its base{base} is missing or damaged"), base_lost: true }
}
