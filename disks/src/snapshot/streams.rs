//! Detects sequential readers among the reads of a disk, and plans what to read ahead of them.
//!
//! The kernel splits what a program reads, and several threads serve the parts at once, so the reads of one stream
//! arrive out of order. A stream counts as sequential when it has read a quarter of a MiB without large gaps; from then
//! on it is read ahead as far as it has read before, up to the bound. So random readers cost nothing, and a reader that
//! stops early costs at most as much as it has read.

use std::collections::VecDeque;
use std::ops::Range;

/// Streams that are followed at once on a disk; a new one takes the place of the one that was read least recently.
const STREAMS_MAX: usize = 16;
/// Bytes that a stream must have read before anything is read ahead.
const PROOF_BYTES: u64 = 256 << 10;
/// How far out of order reads may arrive.
const DISORDER_BYTES: u64 = 1 << 20;
/// Least that is planned at once, so that not every read makes a plan.
const STEP_BYTES: u64 = 512 << 10;

/// The streams of one disk.
pub(super) struct Streams {
    window_bytes_max: u64,
    /// The most recently read last.
    known: Vec<Stream>,
    next_number: u64,
}

/// A plan of what to read ahead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// For which stream.
    pub(super) stream: u64,
    /// From where on.
    pub(super) from: u64,
    /// How much, holes not counted.
    pub(super) data_bytes: u64,
}

/// A chunk that is read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// Where it ends in the image.
    pub(super) end: u64,
    /// Its length.
    pub(super) bytes: u64,
}

struct Stream {
    number: u64,
    begin: u64,
    /// Farthest that was read.
    end: u64,
    read_bytes: u64,
    reads: u64,
    /// All before was read or is being read ahead.
    ahead: u64,
    /// The chunks ahead that the reader has not reached, in order, and their total length.
    planned: VecDeque<Planned>,
    planned_bytes: u64,
    is_planning: bool,
}

impl Streams {
    /// Reads at most so much ahead of each stream.
    pub(super) fn new(window_bytes_max: u64) -> Self {
        Self { window_bytes_max, known: Vec::new(), next_number: 0 }
    }

    /// Notes a read. If it is part of a stream that should be read further ahead, says how; the caller does that and
    /// tells by [`Streams::planned`].
    pub(super) fn note(&mut self, read: &Range<u64>) -> Option<Plan> {
        let found = self.known.iter().rposition(|stream| stream.takes(read));
        let mut stream = match found {
            Some(at) => self.known.remove(at),
            None => self.begin(read),
        };
        stream.advance(read);
        let plan = stream.plan(self.window_bytes_max);
        self.known.push(stream);
        plan
    }

    fn begin(&mut self, read: &Range<u64>) -> Stream {
        if self.known.len() == STREAMS_MAX {
            self.known.remove(0);
        }
        self.next_number += 1;
        Stream {
            number: self.next_number,
            begin: read.start,
            end: read.start,
            read_bytes: 0,
            reads: 0,
            ahead: read.start,
            planned: VecDeque::new(),
            planned_bytes: 0,
            is_planning: false,
        }
    }

    /// Notes what is being read ahead of a stream: these chunks, and so all up to `until`.
    pub(super) fn planned(&mut self, stream: u64, chunks: &[Planned], until: u64) {
        let Some(stream) = self.known.iter_mut().find(|one| one.number == stream) else { return };
        stream.is_planning = false;
        stream.ahead = stream.ahead.max(until);
        stream.planned.extend(chunks);
        stream.planned_bytes += chunks.iter().map(|chunk| chunk.bytes).sum::<u64>();
        stream.forget_reached();
    }
}

impl Stream {
    /// Whether a read is this stream's. One that was proved may jump within what is read ahead of it, over a hole or
    /// something that its reader has already.
    fn takes(&self, read: &Range<u64>) -> bool {
        let earliest = self.end.saturating_sub(DISORDER_BYTES.max(self.planned_bytes));
        let gap = if self.is_proved() { DISORDER_BYTES } else { (read.end - read.start).max(PROOF_BYTES / 2) };
        (earliest..=self.end.max(self.ahead).saturating_add(gap)).contains(&read.start)
    }

    fn advance(&mut self, read: &Range<u64>) {
        self.reads += 1;
        self.read_bytes += read.end - read.start;
        self.begin = self.begin.min(read.start);
        self.end = self.end.max(read.end);
        self.forget_reached();
    }

    fn forget_reached(&mut self) {
        while let Some(chunk) = self.planned.pop_front_if(|chunk| chunk.end <= self.end) {
            self.planned_bytes -= chunk.bytes;
        }
    }

    /// Whether it has read enough, and most of what it passed. Holes that were read ahead over count as nothing, so
    /// what was proved once stays so.
    fn is_proved(&self) -> bool {
        let is_dense = self.read_bytes >= (self.end - self.begin) / 2;
        self.ahead > self.begin || (self.reads > 1 && self.read_bytes >= PROOF_BYTES && is_dense)
    }

    fn plan(&mut self, window_bytes_max: u64) -> Option<Plan> {
        let window_bytes = self.read_bytes.min(window_bytes_max);
        let data_bytes = window_bytes.saturating_sub(self.planned_bytes);
        if self.is_planning || !self.is_proved() || data_bytes < STEP_BYTES.min(window_bytes / 2).max(1) {
            return None;
        }
        self.is_planning = true;
        Some(Plan { stream: self.number, from: self.ahead.max(self.end), data_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    /// Plans are carried out at once, on an image without holes, in chunks of 64 KiB. What was read ahead in all.
    fn follow(streams: &mut Streams, reads: impl IntoIterator<Item = Range<u64>>) -> u64 {
        let mut ahead_bytes = 0;
        for read in reads {
            if let Some(plan) = streams.note(&read) {
                assert!(plan.from >= read.end, "nothing is read ahead twice");
                let ends = (1..=plan.data_bytes.div_ceil(64 * KIB)).map(|number| plan.from + number * 64 * KIB);
                let chunks: Vec<_> = ends.map(|end| Planned { end, bytes: 64 * KIB }).collect();
                ahead_bytes += chunks.len() as u64 * 64 * KIB;
                streams.planned(plan.stream, &chunks, chunks.last().map_or(plan.from, |chunk| chunk.end));
            }
        }
        ahead_bytes
    }

    fn blocks(range: Range<u64>, bytes: u64) -> impl Iterator<Item = Range<u64>> {
        range.step_by(bytes as usize).map(move |at| at..at + bytes)
    }

    #[test]
    fn a_sequential_reader_is_followed_up_to_the_bound() {
        for block in [4 * KIB, 128 * KIB, MIB] {
            let mut streams = Streams::new(8 * MIB);
            let read_bytes = 64 * MIB;
            let ahead_bytes = follow(&mut streams, blocks(0..read_bytes, block));
            assert!(ahead_bytes >= read_bytes && ahead_bytes <= read_bytes + 9 * MIB, "{block}: {ahead_bytes}");
        }
    }

    #[test]
    fn who_stops_early_costs_no_more_than_was_read() {
        for read_bytes in [4 * KIB, 128 * KIB, 512 * KIB, 2 * MIB] {
            let ahead_bytes = follow(&mut Streams::new(8 * MIB), blocks(MIB..MIB + read_bytes, 4 * KIB));
            // Before it was proved, nothing was read ahead.
            let unread_bytes = (PROOF_BYTES + ahead_bytes).saturating_sub(read_bytes);
            assert!(ahead_bytes == 0 || unread_bytes <= read_bytes + 64 * KIB, "{unread_bytes} after {read_bytes}");
        }
    }

    #[test]
    fn a_random_reader_is_not_followed() {
        let random = |number: u64| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % (300 << 10) * (4 * KIB);
        for block in [4 * KIB, 64 * KIB] {
            let reads = (0..20_000).map(|number| random(number)..random(number) + block);
            let ahead_bytes = follow(&mut Streams::new(8 * MIB), reads);
            assert!(ahead_bytes * 100 <= 20_000 * block, "{ahead_bytes} for {block}");
        }
    }

    #[test]
    fn reads_out_of_order_and_several_streams_are_followed() {
        let mut streams = Streams::new(8 * MIB);
        let swapped = (0..256).flat_map(|pair| {
            let reads = |base: u64| [base + MIB / 4, base].map(|at| at..at + MIB / 4);
            (0..8).flat_map(move |stream: u64| reads(stream * 1000 * MIB + pair * MIB / 2))
        });
        let ahead_bytes = follow(&mut streams, swapped);
        assert!((8 * 128 * MIB..=8 * (128 + 9) * MIB).contains(&ahead_bytes), "{}", ahead_bytes / MIB);
    }

    #[test]
    fn a_reader_that_skips_holes_stays_the_same_stream() {
        let mut streams = Streams::new(8 * MIB);
        follow(&mut streams, blocks(0..4 * MIB, 128 * KIB));
        let plan = streams.note(&(4 * MIB..6 * MIB)).expect("it has room for more");
        // The data goes on after a hole of 100 MiB.
        let chunk = Planned { end: 107 * MIB, bytes: 64 * KIB };
        streams.planned(plan.stream, &[chunk], 107 * MIB);
        let next = streams.note(&(106 * MIB..108 * MIB)).expect("it goes on");
        assert_eq!(next.stream, plan.stream);
    }
}
