//! The workers of an ingest: from a segment's bytes to its leaf, in batches.

use std::collections::HashSet;
use std::ops::Range;

use super::batch::{Batch, CutSegment, NewChunk, NewNode};
use super::changes::PartlyRead;
use super::encode::{self, Item, Task};
use super::manifest_tree::ManifestTree;
use super::report::Counters;
use super::segment_queue::{Content, SegmentQueue, Ticket};
use super::{ELSEWHERE, IngestInto, leaf_of};
use crate::error::Result;
use crate::format::chunker::{self, Hint};
use crate::format::manifest::Node;
use crate::format::{NodeId, Record, RecordId};
use crate::parallel;
use crate::progress::Progress;
use crate::source::DiskSource;
use crate::store::Claim;

/// Segments that a thread holds in memory, besides copied chunks of others.
const BATCH_BUFFERS: usize = 3;

/// The state that the threads share.
pub(super) struct Work<'a, 'f> {
    into: &'a IngestInto<'a>,
    queue: &'a SegmentQueue<'f>,
    /// The disk, if only its changes are ingested: the rest is the parent's.
    changes: Option<&'a dyn DiskSource>,
    manifest: ManifestTree<'a>,
    progress: &'a Progress,
}

impl<'a, 'f> Work<'a, 'f> {
    pub(super) fn new(
        into: &'a IngestInto<'a>,
        queue: &'a SegmentQueue<'f>,
        changes: Option<&'a dyn DiskSource>,
        progress: &'a Progress,
    ) -> Self {
        Self { into, queue, changes, manifest: ManifestTree::new(into, changes.is_some(), progress), progress }
    }

    pub(super) fn run(&self, threads: usize) -> Result<Counters> {
        let mut sum = Counters::default();
        for counters in parallel::run(threads, || self.work())? {
            sum.add(counters);
        }
        Ok(sum)
    }

    /// Ends the manifest; returns its root.
    pub(super) fn finish(&self, virtual_bytes: u64) -> Result<Option<NodeId>> {
        self.manifest.finish(virtual_bytes)
    }

    fn work(&self) -> Result<Counters> {
        let result = self.work_until_end();
        if result.is_err() {
            self.queue.stop();
        }
        result
    }

    fn work_until_end(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        let mut buffers: [Vec<u8>; BATCH_BUFFERS] = Default::default();
        let mut is_last = false;
        while !is_last {
            let mut batch = Batch::default();
            is_last = self.fill(&mut batch, &mut buffers, &mut counters)?;
            self.store(batch, &mut counters)?;
        }
        Ok(counters)
    }

    /// Fills a batch from the queue. Returns whether the queue is at its end.
    fn fill<'b>(&self, batch: &mut Batch<'b>, buffers: &'b mut [Vec<u8>], counters: &mut Counters) -> Result<bool> {
        for buffer in buffers {
            while !batch.is_full() {
                let Some(ticket) = self.queue.next(buffer)? else { return Ok(true) };
                self.progress.check()?;
                let segment = self.cut(ticket, buffer, counters)?;
                if segment.is_large() {
                    batch.push(segment, buffer);
                    break;
                }
                batch.push_copied(segment, buffer);
            }
        }
        Ok(false)
    }

    /// Cuts the segments of a ticket.
    fn cut(&self, ticket: Ticket, buffer: &mut Vec<u8>, counters: &mut Counters) -> Result<CutSegment> {
        let Ticket { order, segments, content } = ticket;
        if let Content::Zeros = content {
            self.replace_by_zeros(&segments, counters)?;
            return Ok(CutSegment { order, segments, parent: None, leaf: None, new: Vec::new() });
        }
        let (parent_id, parent) = self.manifest.parent_leaf(segments.start)?.unzip();
        if let (Some(_), Some(parent)) = (self.changes, &parent) {
            counters.count_replaced(parent);
        }
        let params = &self.into.params;
        let cuts = match (&content, self.changes) {
            (Content::Changed(ranges), Some(disk)) => {
                let mut bytes = PartlyRead::new(disk, segments.start, buffer);
                chunker::rechunk_ranges(&mut bytes, params, parent.as_ref(), ranges)?
            }
            _ => chunker::cut(buffer, params, Hint::new(parent.as_ref())),
        };
        counters.count(&cuts);
        let leaf = (!cuts.is_empty()).then(|| NewNode::new(&Node::Leaf(leaf_of(&cuts)), parent_id));
        // The store has the parent's own chunks.
        let new = cuts.into_iter().filter(|cut| !(cut.reused && self.into.trusts_parent)).collect();
        Ok(CutSegment { order, segments, parent, leaf, new })
    }

    fn replace_by_zeros(&self, segments: &Range<u64>, counters: &mut Counters) -> Result<()> {
        for segment in segments.clone() {
            if let Some((_, leaf)) = self.manifest.parent_leaf(segment)? {
                counters.count_replaced(&leaf);
            }
        }
        Ok(())
    }

    /// Stores segments and adds their leaves to the tree.
    fn store(&self, batch: Batch<'_>, counters: &mut Counters) -> Result<()> {
        let mut asked: Vec<Item<'_>> = batch.segments.iter().flat_map(|segment| self.items(segment)).collect();
        self.put_new(&mut asked, counters)?;
        let is_leaf = |item: &Item<'_>| matches!(item, Item::Leaf(_));
        let leaves_elsewhere: HashSet<RecordId> = asked.iter().filter(|item| is_leaf(item)).map(Item::id).collect();
        asked.retain(|item| !is_leaf(item));
        let mut delay = ELSEWHERE;
        while !asked.is_empty() {
            // Other sessions have claimed them: they will be stored soon, or their claims lapse.
            delay.sleep(self.progress)?;
            self.put_new(&mut asked, counters)?;
        }
        for (CutSegment { order, segments, leaf, .. }, _) in batch.segments {
            let id = leaf.as_ref().map(|leaf| leaf.id);
            let is_elsewhere = |leaf: &NewNode| leaves_elsewhere.contains(&leaf.id.into());
            self.manifest.wait_for(leaf.filter(is_elsewhere));
            self.manifest.arrive(order, segments, id)?;
        }
        Ok(())
    }

    /// The items of a segment that are put if the store lacks them.
    fn items<'b>(&self, (segment, chunks): &'b (CutSegment, Vec<NewChunk<'_>>)) -> impl Iterator<Item = Item<'b>> {
        let parent = segment.parent.as_ref();
        let chunks = chunks.iter().map(move |chunk| Item::Chunk { chunk, parent });
        let leaf = segment.leaf.as_ref().filter(|leaf| !self.manifest.parent_has(leaf));
        chunks.chain(leaf.map(Item::Leaf))
    }

    /// Puts the items that the store lacks, with one request each to claim, to get bases and to put. Items that other
    /// sessions have claimed stay in `asked`.
    fn put_new(&self, asked: &mut Vec<Item<'_>>, counters: &mut Counters) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let ids: Vec<RecordId> = asked.iter().map(Item::id).collect();
        let claims = self.into.sink.claim(&ids)?;
        let claimed = || asked.iter().copied().zip(claims.iter().copied());
        let tasks: Vec<Task<'_>> = claimed().filter_map(|(item, claim)| Task::of(item, claim)).collect();
        let records = encode::records(self.into.sink, &self.into.codec, &tasks)?;
        counters.count_new(&records);
        *asked = claimed().filter(|(_, claim)| *claim == Claim::Elsewhere).map(|(item, _)| item).collect();
        self.put(records)
    }

    fn put(&self, records: Vec<Record>) -> Result<()> {
        if records.is_empty() { Ok(()) } else { self.into.sink.put(records) }
    }
}
