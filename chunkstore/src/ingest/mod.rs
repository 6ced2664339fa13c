//! Ingest: from a source to a published snapshot, in parallel over segments, in bounded memory.
//!
//! Every thread takes the next segment that holds data, cuts it, asks the store which chunks it lacks, encodes those
//! and puts them; the leaves meet in the order of segments in one [`Assembler`]. A thread holds one segment and its
//! new records, so memory does not grow with the image.

mod feed;
mod sketch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use self::feed::Feed;
use self::sketch::Full;
use crate::catalog::{self, Entry as CatalogEntry, IngestReport, Snapshot};
use crate::chunker::{self, Cut, Hint};
use crate::codec::Encoder;
use crate::error::{Error, Result};
use crate::id::{NodeId, RecordId};
use crate::manifest::{Assembler, Entry, Leaf, LeafReader, Node};
use crate::name::SnapshotName;
use crate::parallel;
use crate::progress::Progress;
use crate::record::{Kind, Record};
use crate::source::Source;
use crate::store::{Store, WriteSession};

/// Which snapshot the new one is expected to resemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The newest of the same image.
    Newest,
    /// This one, of whatever image.
    Snapshot(SnapshotName),
    /// None: every chunk is cut, looked up and stored for itself.
    None,
}

/// What to make of a source.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Name of the new snapshot.
    pub name: SnapshotName,
    /// Labels to keep with it.
    pub labels: BTreeMap<String, String>,
    /// The name that the disks of one VM share.
    pub group: Option<String>,
    /// What it resembles.
    pub base: Base,
    /// Threads that do the work.
    pub threads: usize,
    /// When this is done.
    pub now: jiff::Timestamp,
}

/// Ingests a source. When this returns, the snapshot is durable.
///
/// # Errors
/// [`Error::Refused`] if there is such a snapshot already; after any error no snapshot appears, and what was sealed
/// before is found by the next ingest.
pub fn ingest(store: &Arc<Store>, source: Source, options: &IngestOptions, progress: &Progress) -> Result<Snapshot> {
    let started = Instant::now();
    refuse_duplicate(store, &options.name)?;
    let parent = find_parent(store, options)?;
    let session = WriteSession::new(Arc::clone(store));
    let feed = Feed::new(source, progress);
    let work = Work {
        session: &session,
        feed: &feed,
        parent: parent
            .as_ref()
            .map(|parent| LeafReader::new(&**store, parent.entry().root, parent.entry().virtual_bytes)),
        tree: Mutex::default(),
        progress,
    };
    let tally = match work.run(options.threads.max(1)) {
        Ok(tally) => tally,
        Err(error) => {
            // What is whole is kept for the next attempt, if it can be.
            let _ = session.flush();
            return Err(error);
        }
    };
    let virtual_bytes = feed.finish()?;
    let root = work.finish(virtual_bytes)?;
    drop(work);
    // Ctrl-C also ends whoever wrote into the pipe that was read: what looks like the stream's end may not be it.
    progress.check()?;
    let entry = CatalogEntry {
        image: options.name.image.clone(),
        time: options.name.time,
        root,
        virtual_bytes,
        labels: options.labels.clone(),
        group: options.group.clone(),
        origin: store.config().format.store_id.clone(),
        created: options.now,
        attachments: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    let parent = parent.map(|parent| parent.name().to_string());
    let report = || tally.report(parent, virtual_bytes, started);
    Ok(session.publish(entry, report)?.snapshot)
}

fn refuse_duplicate(store: &Store, name: &SnapshotName) -> Result<()> {
    match store.catalog().read(name) {
        Err(Error::NotFound { .. }) => Ok(()),
        _ => Err(Error::refused(format!("snapshot {name} exists already"))),
    }
}

fn find_parent(store: &Store, options: &IngestOptions) -> Result<Option<Snapshot>> {
    match &options.base {
        Base::None => Ok(None),
        Base::Snapshot(name) => store.catalog().read(name).map(Some),
        Base::Newest => newest_readable(store.catalog(), options),
    }
}

/// The newest snapshot of the image whose entry can be read: a damaged one must not stop a backup.
fn newest_readable(catalog: &catalog::Catalog, options: &IngestOptions) -> Result<Option<Snapshot>> {
    let image = &options.name.image;
    for time in catalog.times(image)?.into_iter().rev() {
        match catalog.read(&SnapshotName { image: image.clone(), time }) {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(error) => tracing::error!("not used as base: {error}"),
        }
    }
    Ok(None)
}

/// What the threads share.
struct Work<'a> {
    session: &'a WriteSession,
    feed: &'a Feed<'a>,
    parent: Option<LeafReader<'a>>,
    tree: Mutex<Tree>,
    progress: &'a Progress,
}

/// Leaves that wait for their predecessors, and the tree over those that came.
#[derive(Default)]
struct Tree {
    assembler: Assembler,
    next_order: u64,
    waiting: BTreeMap<u64, (u64, Option<NodeId>)>,
}

/// What a thread did.
#[derive(Default, Clone, Copy)]
struct Tally {
    data_bytes: u64,
    chunks: u64,
    new_chunks: u64,
    new_bytes: u64,
    delta_chunks: u64,
    reused_boundaries: u64,
}

impl Work<'_> {
    fn run(&self, threads: usize) -> Result<Tally> {
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
        let mut encoder = Encoder::new(self.session.store().config().defaults.zstd_level);
        let mut tally = Tally::default();
        let mut buffer = Vec::new();
        while let Some(ticket) = self.feed.next(&mut buffer)? {
            self.progress.check()?;
            let leaf = self.segment(ticket.segment, &buffer, &mut encoder, &mut tally)?;
            self.arrive(ticket.order, ticket.segment, leaf, &mut encoder)?;
        }
        Ok(tally)
    }

    /// Stores one segment and returns its leaf; `None` if it is all zeros.
    fn segment(&self, number: u64, bytes: &[u8], encoder: &mut Encoder, tally: &mut Tally) -> Result<Option<NodeId>> {
        let parent = self.parent_leaf(number);
        let parent_leaf = parent.as_ref().map(|(_, leaf)| leaf);
        let cuts = chunker::cut(bytes, &self.session.store().config().format.chunk_params(), Hint::new(parent_leaf));
        if cuts.is_empty() {
            return Ok(None);
        }
        tally.count(&cuts);
        let mut records = self.new_chunks(bytes, &cuts, parent_leaf, encoder, tally)?;
        let node = Node::Leaf(leaf_of(&cuts));
        let id = self.put_node(&node, parent.map(|(id, _)| id), encoder, &mut records)?;
        self.session.put(&records)?;
        Ok(Some(id))
    }

    /// The parent's leaf of a segment. If it can't be read there is none: a backup goes on beside damage, and heals it.
    fn parent_leaf(&self, number: u64) -> Option<(NodeId, Leaf)> {
        match self.parent.as_ref()?.leaf(number) {
            Ok(leaf) => leaf,
            Err(error) => {
                tracing::warn!("the base is not used for segment {number}: {error}");
                None
            }
        }
    }

    /// Encodes the chunks that the store lacks.
    fn new_chunks(
        &self,
        bytes: &[u8],
        cuts: &[Cut],
        parent: Option<&Leaf>,
        encoder: &mut Encoder,
        tally: &mut Tally,
    ) -> Result<Vec<Record>> {
        let store = self.session.store();
        let suspects = store.damaged();
        // The parent's own chunks are there, as long as no pack is missing and nothing of them is known to be damaged.
        let is_there = |cut: &Cut| cut.reused && !self.packs_are_missing() && !suspects.concerns(cut.id.into());
        let asked: Vec<&Cut> = cuts.iter().filter(|cut| !is_there(cut)).collect();
        let ids: Vec<RecordId> = asked.iter().map(|cut| cut.id.into()).collect();
        let claims = self.session.claim(&ids)?;
        let (mut records, mut full) = (Vec::new(), Vec::new());
        for (cut, _) in asked.into_iter().zip(claims).filter(|(_, claimed)| *claimed) {
            let plain = &bytes[cut.range.clone()];
            let suspect = suspects.concerns(cut.id.into());
            let base = match parent.and_then(|parent| overlapping(parent, cut)) {
                Some(base) if !suspect => store.base_for(base)?,
                _ => None,
            };
            let record = crate::store::encode(encoder, Kind::Chunk, cut.id.into(), plain, base.as_ref());
            if record.header.base.is_some() || suspect {
                records.push(record);
            } else {
                full.push(Full { plain, record: record.with_sketch(sketch::sketch(bytes, &cut.range)) });
            }
        }
        records.extend(sketch::rebase(store, encoder, full)?);
        tally.count_new(&records);
        Ok(records)
    }

    fn packs_are_missing(&self) -> bool {
        !self.session.store().missing_packs().is_empty()
    }

    /// Adds a node to the records if the store lacks it.
    fn put_node(
        &self,
        node: &Node,
        parent: Option<NodeId>,
        encoder: &mut Encoder,
        records: &mut Vec<Record>,
    ) -> Result<NodeId> {
        let encoding = node.encode();
        let id = NodeId::of(&encoding);
        let store = self.session.store();
        let suspect = store.damaged().concerns(id.into());
        if (parent != Some(id) || suspect || self.packs_are_missing()) && self.session.claim(&[id.into()])?[0] {
            let base = match parent {
                Some(parent) if !suspect => store.base_for(parent.into())?,
                _ => None,
            };
            records.push(crate::store::encode(encoder, Kind::Node, id.into(), &encoding, base.as_ref()));
        }
        Ok(id)
    }

    /// Hands a leaf to the tree, with all that had waited for it.
    fn arrive(&self, order: u64, segment: u64, leaf: Option<NodeId>, encoder: &mut Encoder) -> Result<()> {
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        tree.waiting.insert(order, (segment, leaf));
        loop {
            let next = tree.next_order;
            let Some((segment, leaf)) = tree.waiting.remove(&next) else { return Ok(()) };
            tree.next_order += 1;
            if let Some(leaf) = leaf {
                tree.assembler.push(segment, leaf, &mut |node, number| self.put_inner(&node, number, encoder))?;
            }
        }
    }

    fn put_inner(&self, node: &Node, number: u64, encoder: &mut Encoder) -> Result<NodeId> {
        let parent = self.parent.as_ref().and_then(|parent| parent.id_at(node.height(), number).ok().flatten());
        let mut records = Vec::new();
        let id = self.put_node(node, parent, encoder, &mut records)?;
        self.session.put(&records)?;
        Ok(id)
    }

    fn finish(&self, virtual_bytes: u64) -> Result<Option<NodeId>> {
        let tree = std::mem::take(&mut *self.tree.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(tree.waiting.is_empty(), "every order was given out and came back");
        let mut encoder = Encoder::new(self.session.store().config().defaults.zstd_level);
        tree.assembler.finish(virtual_bytes, &mut |node, number| self.put_inner(&node, number, &mut encoder))
    }
}

impl Tally {
    fn count(&mut self, cuts: &[Cut]) {
        self.chunks += cuts.len() as u64;
        self.data_bytes += cuts.iter().map(|cut| cut.range.len() as u64).sum::<u64>();
        self.reused_boundaries += cuts.iter().filter(|cut| cut.reused).count() as u64;
    }

    fn count_new(&mut self, records: &[Record]) {
        self.new_chunks += records.len() as u64;
        self.new_bytes += records.iter().map(|record| u64::from(record.header.plain_bytes)).sum::<u64>();
        self.delta_chunks += records.iter().filter(|record| record.header.base.is_some()).count() as u64;
    }

    fn add(&mut self, other: Self) {
        self.data_bytes += other.data_bytes;
        self.chunks += other.chunks;
        self.new_chunks += other.new_chunks;
        self.new_bytes += other.new_bytes;
        self.delta_chunks += other.delta_chunks;
        self.reused_boundaries += other.reused_boundaries;
    }

    fn report(&self, parent: Option<String>, virtual_bytes: u64, started: Instant) -> IngestReport {
        let elapsed_s = started.elapsed().as_secs_f64();
        IngestReport {
            parent,
            data_bytes: self.data_bytes,
            zero_bytes: virtual_bytes - self.data_bytes,
            chunks: self.chunks,
            new_chunks: self.new_chunks,
            new_bytes: self.new_bytes,
            delta_chunks: self.delta_chunks,
            reused_boundaries: self.reused_boundaries,
            stored_bytes: 0,
            elapsed_s,
            throughput_bytes_per_s: self.data_bytes as f64 / elapsed_s,
            extra: BTreeMap::new(),
        }
    }
}

/// The leaf that lists these cuts, with the zero runs between them.
pub(crate) fn leaf_of(cuts: &[Cut]) -> Leaf {
    let mut entries = Vec::with_capacity(cuts.len() * 2);
    let mut end = 0;
    for cut in cuts {
        if cut.range.start > end {
            entries.push(Entry::Zero { bytes: (cut.range.start - end) as u32 });
        }
        entries.push(Entry::Chunk { id: cut.id, bytes: cut.range.len() as u32 });
        end = cut.range.end;
    }
    Leaf::new(entries).expect("cuts are in order, and what lies between them is runs of zero blocks")
}

/// The parent's chunk that shares most bytes' offsets with a cut.
fn overlapping(parent: &Leaf, cut: &Cut) -> Option<RecordId> {
    let overlap = |start: usize, bytes: u32| {
        (start + bytes as usize).min(cut.range.end).saturating_sub(start.max(cut.range.start))
    };
    let best = parent.chunks().max_by_key(|(start, _, bytes)| overlap(*start, *bytes))?;
    (overlap(best.0, best.2) > 0).then(|| best.1.into())
}

#[cfg(test)]
mod tests;
