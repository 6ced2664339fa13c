//! Ingest: from a source to a published snapshot, in parallel over segments, in bounded memory.
//!
//! Every thread takes the next segments that hold data, cuts them, asks the store which chunks it lacks, and encodes
//! and puts those; the leaves meet in the order of segments in one [`Assembler`](crate::format::manifest::Assembler). A
//! thread holds a few segments and their new records, so memory does not grow with the image. May import `format`,
//! `catalog`, `store` and `source`.

mod batch;
mod changes;
mod data_ranges;
mod encode;
mod manifest_tree;
mod merged_disk;
mod report;
mod segment_queue;
mod sketch;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::merged_disk::MergedDisk;
use self::segment_queue::SegmentQueue;
use self::worker::Work;
use crate::catalog::{Catalog, Entry as CatalogEntry, Snapshot, SnapshotName};
use crate::error::{Error, Result};
use crate::format::chunker::Cut;
use crate::format::manifest::{ChunkSource, Entry, Leaf, LeafReader};
use crate::format::{ChunkParams, NodeId, RecordCodec};
use crate::progress::Progress;
use crate::retry::Backoff;
use crate::source::{ChangedRanges, DiskSource, Overlay, Source};
use crate::store::{Sink, Store, WriteSession};

/// Delays before asking again for records that another session stores.
const ELSEWHERE: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));

/// Which snapshot the new one is expected to resemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The newest of the same image.
    Newest,
    /// This one, of whatever image.
    Snapshot(SnapshotName),
    /// None: every chunk is cut and looked up, without a parent's help.
    None,
}

/// Options of an ingest.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Name of the new snapshot.
    pub name: SnapshotName,
    /// Labels to keep with it.
    pub labels: BTreeMap<String, String>,
    /// The name that the disks of one VM share.
    pub group: Option<String>,
    /// The parent.
    pub base: Base,
    /// Threads that do the work.
    pub threads: usize,
    /// When this is done.
    pub now: jiff::Timestamp,
}

/// Ingests a source into a store of this process. When this returns, the snapshot is durable.
///
/// # Errors
/// [`Error::Refused`] if there is such a snapshot already; after any error no snapshot appears, and the next ingest
/// finds the packs sealed before.
pub fn ingest(store: &Arc<Store>, source: Source, options: &IngestOptions, progress: &Progress) -> Result<Snapshot> {
    in_session(store, options, |into| into.ingest(source, options, progress))
}

/// [`IngestInto::ingest_changes`] into a store of this process. The options name the parent.
///
/// # Errors
/// As [`ingest`]; [`Error::Invalid`] if the options do not name the base.
pub fn ingest_changes(
    store: &Arc<Store>,
    disk: &dyn DiskSource,
    changed: &dyn ChangedRanges,
    options: &IngestOptions,
    progress: &Progress,
) -> Result<Snapshot> {
    if !matches!(options.base, Base::Snapshot(_)) {
        return Err(Error::invalid("changes are ingested with the snapshot that they are changes of as base"));
    }
    in_session(store, options, |into| into.ingest_changes(disk, changed, options, progress))
}

fn in_session(
    store: &Arc<Store>,
    options: &IngestOptions,
    ingest: impl FnOnce(&IngestInto<'_>) -> Result<Snapshot>,
) -> Result<Snapshot> {
    refuse_duplicate(store, &options.name)?;
    let session = begin(store, options)?;
    let config = store.config();
    let into = IngestInto {
        sink: &session,
        source: &**store,
        params: config.format.chunk_params(),
        codec: store.codec().clone(),
        store_id: &config.format.store_id,
        trusts_parent: session.trusts_parent(),
        parent: session.parent().cloned(),
    };
    ingest(&into).inspect_err(|_| {
        // Whole records are kept for the next attempt, if possible.
        let _ = session.flush();
    })
}

/// [`IngestInto::ingest_overlay`] into a store of this process. The options name the parent.
///
/// # Errors
/// As [`ingest`] and [`IngestInto::ingest_overlay`].
pub fn ingest_overlay(
    store: &Arc<Store>,
    overlay: &Overlay,
    options: &IngestOptions,
    progress: &Progress,
) -> Result<Snapshot> {
    in_session(store, options, |into| into.ingest_overlay(overlay, options, progress))
}

/// Begins a session that leases the parent. If the newest is removed meanwhile, looks for the newest again.
fn begin(store: &Arc<Store>, options: &IngestOptions) -> Result<WriteSession> {
    loop {
        let parent = find_parent(store.catalog(), options)?.map(|parent| parent.name());
        match store.session(parent.as_ref()) {
            Err(Error::NotFound { .. }) if options.base == Base::Newest => {}
            begun => return begun,
        }
    }
}

fn refuse_duplicate(store: &Store, name: &SnapshotName) -> Result<()> {
    match store.catalog().read(name) {
        Err(Error::NotFound { .. }) => Ok(()),
        _ => Err(Error::refused(format!("snapshot {name} exists already"))),
    }
}

/// The snapshot that the new one is expected to resemble.
///
/// # Errors
/// [`Error::NotFound`] if it was named and does not exist; errors of reading its entry. A damaged newest one is
/// skipped.
pub fn find_parent(catalog: &Catalog, options: &IngestOptions) -> Result<Option<Snapshot>> {
    match &options.base {
        Base::None => Ok(None),
        Base::Snapshot(name) => catalog.read(name).map(Some),
        Base::Newest => newest_readable(catalog, options),
    }
}

/// The newest snapshot of the image whose entry can be read: a damaged one must not stop a backup.
fn newest_readable(catalog: &Catalog, options: &IngestOptions) -> Result<Option<Snapshot>> {
    let image = &options.name.image;
    for time in catalog.times(image)?.into_iter().rev() {
        match catalog.read(&SnapshotName { image: image.clone(), time }) {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(error) => tracing::error!("not used as base: {error}"),
        }
    }
    Ok(None)
}

/// The target of an ingest: a store of this process, or one behind a connection.
pub struct IngestInto<'a> {
    /// Takes the records.
    pub sink: &'a dyn Sink,
    /// Has the parent's manifest.
    pub source: &'a dyn ChunkSource,
    /// Where the store cuts chunks.
    pub params: ChunkParams,
    /// Encodes the records.
    pub codec: RecordCodec,
    /// The store's id: the snapshot's origin.
    pub store_id: &'a str,
    /// Whether the parent's records need no claims, because the sink pins them.
    pub trusts_parent: bool,
    /// The snapshot that the new one is expected to resemble.
    pub parent: Option<Snapshot>,
}

impl IngestInto<'_> {
    /// Ingests a source. When this returns, the snapshot is durable.
    ///
    /// # Errors
    /// What reading the source or the sink returns; [`Error::Interrupted`] if a stop was asked for. No snapshot
    /// appears then.
    pub fn ingest(&self, source: Source, options: &IngestOptions, progress: &Progress) -> Result<Snapshot> {
        self.ingest_from(&SegmentQueue::new(source, progress), None, options, progress)
    }

    /// Ingests a disk that differs from the parent only within `changed`. Reads little more than those ranges; the rest
    /// is taken from the parent, unread. The snapshot is the one that [`IngestInto::ingest`] makes of the disk. Without
    /// a trusted parent, the whole disk is read.
    ///
    /// # Errors
    /// As [`IngestInto::ingest`].
    pub fn ingest_changes(
        &self,
        disk: &dyn DiskSource,
        changed: &dyn ChangedRanges,
        options: &IngestOptions,
        progress: &Progress,
    ) -> Result<Snapshot> {
        let whole = |into: &IngestInto<'_>| {
            into.ingest_from(&SegmentQueue::of_disk(Box::new(disk), progress), None, options, progress)
        };
        let Some(parent) = self.parent.as_ref().filter(|_| self.trusts_parent) else { return whole(self) };
        let queue = SegmentQueue::of_changes(disk, changed, parent.entry().virtual_bytes, progress);
        match self.ingest_from(&queue, Some(disk), options, progress) {
            Err(error @ Error::Damaged { .. }) => {
                tracing::warn!("all of {} is read, not only what changed: {error}", disk.name());
                whole(&IngestInto {
                    trusts_parent: false,
                    parent: self.parent.clone(),
                    codec: self.codec.clone(),
                    ..*self
                })
            }
            done => done,
        }
    }

    /// Ingests the disk of an overlay over the parent; of the overlay's file only its own clusters are read.
    ///
    /// # Errors
    /// As [`IngestInto::ingest`]; [`Error::Refused`] if the parent is not the snapshot below the overlay.
    pub fn ingest_overlay(&self, overlay: &Overlay, options: &IngestOptions, progress: &Progress) -> Result<Snapshot> {
        let parent = self.parent.as_ref().map(Snapshot::entry);
        let Some(parent) = parent.filter(|parent| parent.root == overlay.below().root) else {
            return Err(Error::refused(format!("{} does not show the base any more", overlay.below().path)));
        };
        let leaves = LeafReader::new(self.source, parent.root, parent.virtual_bytes);
        self.ingest_changes(&MergedDisk::new(overlay, self.source, leaves), overlay, options, progress)
    }

    /// Ingests the segments of a queue; `changes` is the disk if the queue holds changes only.
    fn ingest_from(
        &self,
        queue: &SegmentQueue<'_>,
        changes: Option<&dyn DiskSource>,
        options: &IngestOptions,
        progress: &Progress,
    ) -> Result<Snapshot> {
        let started = Instant::now();
        let work = Work::new(self, queue, changes, progress);
        let mut counters = work.run(options.threads.max(1))?;
        let virtual_bytes = queue.finish()?;
        let root = work.finish(virtual_bytes)?;
        drop(work);
        // Ctrl-C also ends the process that writes into the pipe, so an apparent end of the stream may not be its end.
        progress.check()?;
        if let (Some(parent), Some(_)) = (&self.parent, changes) {
            counters.count_kept(report::listed(parent, self.source)?);
        }
        let report =
            counters.report(self.parent.as_ref().map(|parent| parent.name().to_string()), virtual_bytes, started);
        self.sink.publish(self.entry(options, root, virtual_bytes), report)
    }

    fn entry(&self, options: &IngestOptions, root: Option<NodeId>, virtual_bytes: u64) -> CatalogEntry {
        CatalogEntry {
            image: options.name.image.clone(),
            time: options.name.time,
            root,
            virtual_bytes,
            labels: options.labels.clone(),
            group: options.group.clone(),
            origin: self.store_id.to_owned(),
            created: options.now,
            attachments: BTreeMap::new(),
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

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod overlay_tests;
#[cfg(test)]
mod tests;
