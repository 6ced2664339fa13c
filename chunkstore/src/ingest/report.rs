//! Counters of an ingest, for its report.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::catalog::IngestReport;
use crate::catalog::Snapshot;
use crate::error::Result;
use crate::format::chunker::Cut;
use crate::format::manifest::{ChunkSource, Leaf, Listed};
use crate::format::{Kind, Record};

/// Counters of one thread.
#[derive(Default, Clone, Copy)]
pub(super) struct Counters {
    listed: Listed,
    /// Sum of the parent's leaves of segments that were cut anew.
    replaced: Listed,
    new_chunks: u64,
    new_bytes: u64,
    delta_chunks: u64,
    reused_boundaries: u64,
}

/// The totals of a snapshot: from its report, or else from its leaves.
pub(super) fn listed(snapshot: &Snapshot, source: &dyn ChunkSource) -> Result<Listed> {
    let entry = snapshot.entry();
    match &snapshot.state.ingest {
        Some(report) => Ok(Listed { data_bytes: report.data_bytes, chunks: report.chunks }),
        None => Listed::of_tree(source, entry.root, entry.virtual_bytes),
    }
}

impl Counters {
    /// Counts the cuts of a segment.
    pub(super) fn count(&mut self, cuts: &[Cut]) {
        let data_bytes = cuts.iter().map(|cut| cut.range.len() as u64).sum();
        self.listed.add(Listed { data_bytes, chunks: cuts.len() as u64 });
        self.reused_boundaries += cuts.iter().filter(|cut| cut.reused).count() as u64;
    }

    /// Counts the parent's leaf of a segment that changed.
    pub(super) fn count_replaced(&mut self, leaf: &Leaf) {
        self.replaced.add(Listed::of_leaf(leaf));
    }

    /// Counts records that are put.
    pub(super) fn count_new(&mut self, records: &[Record]) {
        let chunks = || records.iter().filter(|record| record.header.kind == Kind::Chunk);
        self.new_chunks += chunks().count() as u64;
        self.new_bytes += chunks().map(|record| u64::from(record.header.plain_bytes)).sum::<u64>();
        self.delta_chunks += chunks().filter(|record| record.header.base.is_some()).count() as u64;
    }

    /// Counts the parent's totals in segments that were not read: all of them except the replaced ones.
    pub(super) fn count_kept(&mut self, parent: Listed) {
        let chunks = parent.chunks.saturating_sub(self.replaced.chunks);
        let data_bytes = parent.data_bytes.saturating_sub(self.replaced.data_bytes);
        self.listed.add(Listed { data_bytes, chunks });
        self.reused_boundaries += chunks;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.listed.add(other.listed);
        self.replaced.add(other.replaced);
        self.new_chunks += other.new_chunks;
        self.new_bytes += other.new_bytes;
        self.delta_chunks += other.delta_chunks;
        self.reused_boundaries += other.reused_boundaries;
    }

    pub(super) fn report(&self, parent: Option<String>, virtual_bytes: u64, started: Instant) -> IngestReport {
        let elapsed_s = started.elapsed().as_secs_f64();
        IngestReport {
            parent,
            data_bytes: self.listed.data_bytes,
            zero_bytes: virtual_bytes.saturating_sub(self.listed.data_bytes),
            chunks: self.listed.chunks,
            new_chunks: self.new_chunks,
            new_bytes: self.new_bytes,
            delta_chunks: self.delta_chunks,
            reused_boundaries: self.reused_boundaries,
            stored_bytes: 0,
            elapsed_s,
            throughput_bytes_per_s: self.listed.data_bytes as f64 / elapsed_s,
            extra: BTreeMap::new(),
        }
    }
}
