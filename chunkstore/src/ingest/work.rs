//! What the threads of an ingest do: a segment at a time, from its bytes to its leaf.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::changes::PartlyRead;
use super::encode::{self, Item, Task};
use super::feed::{Content, Feed, Ticket};
use super::tally::Tally;
use super::tree::{NewNode, Tree};
use super::wait::Wait;
use super::{IngestInto, leaf_of};
use crate::catalog::Snapshot;
use crate::chunker::{self, Cut, Hint};
use crate::codec::Encoder;
use crate::error::Result;
use crate::id::{NodeId, RecordId};
use crate::manifest::{Leaf, LeafReader, Node};
use crate::parallel;
use crate::progress::Progress;
use crate::record::Record;
use crate::sink::Claim;
use crate::source::DiskSource;

/// What the threads share.
pub(super) struct Work<'a, 'f> {
    pub(super) into: &'a IngestInto<'a>,
    feed: &'a Feed<'f>,
    pub(super) parent: Option<LeafReader<'a>>,
    /// The disk, if only its changes are ingested: the rest is the parent's.
    pub(super) changes: Option<&'a dyn DiskSource>,
    pub(super) tree: Mutex<Tree>,
    /// Nodes that others have taken on.
    pub(super) awaited: Mutex<Vec<NewNode>>,
    pub(super) progress: &'a Progress,
}

/// What a thread has for itself.
struct Worker {
    encoder: Encoder,
    tally: Tally,
}

/// A segment as it is stored.
struct Segment<'a> {
    /// What was read of it.
    bytes: &'a [u8],
    parent: Option<&'a Leaf>,
}

impl<'a, 'f> Work<'a, 'f> {
    pub(super) fn new(
        into: &'a IngestInto<'a>,
        feed: &'a Feed<'f>,
        changes: Option<&'a dyn DiskSource>,
        progress: &'a Progress,
    ) -> Self {
        let parent = into.parent.as_ref().map(Snapshot::entry);
        let parent = parent.map(|parent| LeafReader::new(into.source, parent.root, parent.virtual_bytes));
        Self { into, feed, parent, changes, tree: Mutex::default(), awaited: Mutex::default(), progress }
    }

    pub(super) fn run(&self, threads: usize) -> Result<Tally> {
        let mut sum = Tally::default();
        for tally in parallel::run(threads, || self.work())? {
            sum.add(tally);
        }
        Ok(sum)
    }

    fn work(&self) -> Result<Tally> {
        let result = self.work_until_end();
        if result.is_err() {
            self.feed.stop();
        }
        result
    }

    fn work_until_end(&self) -> Result<Tally> {
        let mut worker = Worker { encoder: self.encoder(), tally: Tally::default() };
        let mut buffer = Vec::new();
        while let Some(ticket) = self.feed.next(&mut buffer)? {
            self.progress.check()?;
            let leaf = self.segments(&ticket, &mut buffer, &mut worker)?;
            self.arrive(ticket.order, ticket.segments, leaf, &mut worker.encoder)?;
        }
        Ok(worker.tally)
    }

    pub(super) fn encoder(&self) -> Encoder {
        Encoder::new(self.into.zstd_level)
    }

    /// Stores what was given out and returns its leaf; `None` if it is all zeros.
    fn segments(&self, ticket: &Ticket, buffer: &mut Vec<u8>, worker: &mut Worker) -> Result<Option<NodeId>> {
        let number = ticket.segments.start;
        let parent = match &ticket.content {
            Content::Zeros => return self.replace_by_zeros(ticket, worker).map(|()| None),
            Content::Whole | Content::Changed(_) => self.parent_leaf(number)?,
        };
        let leaf = parent.as_ref().map(|(_, leaf)| leaf);
        if let (Some(_), Some(leaf)) = (self.changes, leaf) {
            worker.tally.count_replaced(leaf);
        }
        let params = &self.into.params;
        let cuts = match (&ticket.content, self.changes) {
            (Content::Changed(ranges), Some(disk)) => {
                chunker::recut(&mut PartlyRead::new(disk, number, buffer), params, leaf, ranges)?
            }
            _ => chunker::cut(buffer, params, Hint::new(leaf)),
        };
        self.segment(&Segment { bytes: buffer, parent: leaf }, parent.as_ref().map(|(id, _)| *id), &cuts, worker)
    }

    fn replace_by_zeros(&self, ticket: &Ticket, worker: &mut Worker) -> Result<()> {
        for segment in ticket.segments.clone() {
            if let Some((_, leaf)) = self.parent_leaf(segment)? {
                worker.tally.count_replaced(&leaf);
            }
        }
        Ok(())
    }

    /// Stores one segment and returns its leaf; `None` if it is all zeros.
    fn segment(
        &self,
        segment: &Segment<'_>,
        parent: Option<NodeId>,
        cuts: &[Cut],
        worker: &mut Worker,
    ) -> Result<Option<NodeId>> {
        if cuts.is_empty() {
            return Ok(None);
        }
        worker.tally.count(cuts);
        let leaf = NewNode::new(&Node::Leaf(leaf_of(cuts)), parent);
        let id = leaf.id;
        // The parent's own chunks are there.
        let chunks = cuts.iter().filter(|cut| !(cut.reused && self.into.trusts_parent)).map(Item::Chunk);
        let mut asked: Vec<Item<'_>> = chunks.chain((!self.parent_has(&leaf)).then_some(Item::Leaf(&leaf))).collect();
        self.put_new(segment, &mut asked, worker)?;
        let leaf_is_elsewhere = asked.pop_if(|last| matches!(last, Item::Leaf(_))).is_some();
        let mut wait = Wait::new(self.progress);
        while !asked.is_empty() {
            // Others have taken them on. They will be there soon, or be this session's after all.
            wait.a_moment()?;
            self.put_new(segment, &mut asked, worker)?;
        }
        if leaf_is_elsewhere {
            lock(&self.awaited).push(leaf);
        }
        Ok(Some(id))
    }

    /// The parent's leaf of a segment. If it can't be read there is none: a backup goes on beside damage, and heals it.
    /// But if only changes are ingested, nothing else tells what the rest is.
    fn parent_leaf(&self, number: u64) -> Result<Option<(NodeId, Leaf)>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        match parent.leaf(number) {
            Err(error) if self.changes.is_none() => {
                tracing::warn!("the base is not used for segment {number}: {error}");
                Ok(None)
            }
            leaf => leaf,
        }
    }

    /// Puts what the store lacks, all in one request each to claim, to get bases and to put; what others have taken on is
    /// left in `asked`.
    fn put_new(&self, segment: &Segment<'_>, asked: &mut Vec<Item<'_>>, worker: &mut Worker) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let ids: Vec<RecordId> = asked.iter().map(Item::id).collect();
        let claims = self.into.sink.claim(&ids)?;
        let claimed = || asked.iter().copied().zip(claims.iter().copied());
        let tasks: Vec<Task<'_>> = claimed().filter_map(|(item, claim)| Task::of(item, claim)).collect();
        let records = encode::records(self.into.sink, &mut worker.encoder, segment.bytes, segment.parent, &tasks)?;
        worker.tally.count_new(&records);
        *asked = claimed().filter(|(_, claim)| *claim == Claim::Elsewhere).map(|(item, _)| item).collect();
        self.put(records)
    }

    pub(super) fn put(&self, records: Vec<Record>) -> Result<()> {
        if records.is_empty() { Ok(()) } else { self.into.sink.put(records) }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
