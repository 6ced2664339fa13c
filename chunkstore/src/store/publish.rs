//! Publishing a snapshot: append its entry to a pack, seal the packs, check everything below the root, write the
//! catalog file last.
//!
//! A tombstone, synced before the pack that repeats the entry is sealed and removed by the publication, distinguishes
//! an entry that was never published from one whose catalog file was lost.

use std::collections::HashSet;
use std::time::Instant;

use crate::catalog::{Entry, IngestReport, Snapshot, State};
use crate::error::{Error, Result};
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::{self, ChunkSource, Leaf, Node, Subtree};
use crate::format::{ChunkId, Kind, NodeId, Record, RecordCodec, RecordId};
use crate::metrics::{Description, Unit};
use crate::pack::RecordLocation;
use crate::store::Store;
use crate::store::session::{Found, WriteSession};

const INGESTS: Description = Description::new("ingests_total", Unit::Count, "Snapshots made by an ingest.");
const INGESTED: Description =
    Description::new("ingest_bytes_total", Unit::Bytes, "Bytes of the images in them, without holes.");

/// Leaves that are read together.
const BATCH_LEAVES: usize = 64;
/// Leaves that are remembered as checked.
const LEAVES_REMEMBERED: usize = 1 << 16;
/// Chunks that are looked up together.
const BATCH_CHUNKS: usize = 8 << 10;

impl WriteSession {
    /// Publishes a snapshot that was made here. It is durable when this returns. Fills in the report's `stored_bytes`
    /// and adds the time that publishing takes.
    ///
    /// # Errors
    /// As [`WriteSession::publish_snapshot`]; [`Error::Invalid`] if the entry breaks a limit.
    pub fn publish(&self, entry: Entry, report: IngestReport) -> Result<Snapshot> {
        self.publish_snapshot(Snapshot::create(entry, State::default())?, Some(report))
    }

    /// Publishes a snapshot whose records were all put or found, by this session or an earlier one. It is durable when
    /// this returns. A partial snapshot becomes complete.
    ///
    /// [`Error::Refused`] if another snapshot has the name; [`Error::Damaged`] with the name of a record below the root
    /// that is missing; any failure of the session. The snapshot is not published then.
    pub fn publish_snapshot(&self, mut snapshot: Snapshot, report: Option<IngestReport>) -> Result<Snapshot> {
        let started = Instant::now();
        self.handle.pins.check()?;
        if self.store().catalog().partial(&snapshot)?.is_some() {
            return self.complete(&snapshot);
        }
        let _announced = self.store().catalog().announce(&snapshot)?;
        self.put(vec![entry_record(self.store().codec(), &snapshot)])?;
        // One sync of each pack is enough for the entry and everything below it, because the entry can't be read
        // earlier.
        self.flush()?;
        Closure::check(self, &snapshot)?;
        if let Some(mut report) = report {
            report.elapsed_s += started.elapsed().as_secs_f64();
            report.throughput_bytes_per_s = report.data_bytes as f64 / report.elapsed_s;
            set_report(&mut snapshot, report, self.stored_bytes());
        }
        self.store().catalog().publish(&snapshot)?;
        if let Some(report) = &snapshot.state.ingest {
            self.store().metrics().counter(INGESTS).increment();
            self.store().metrics().counter(INGESTED).add(report.data_bytes);
        }
        Ok(snapshot)
    }
}

impl WriteSession {
    /// Publishes a snapshot whose records need not be here yet: the missing ones can be fetched from elsewhere. It is
    /// durable when this returns. A snapshot that exists is left as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] if another snapshot has the name; any failure of the session.
    pub fn publish_partial(&self, snapshot: &Snapshot) -> Result<Snapshot> {
        self.handle.pins.check()?;
        match self.there_already(snapshot) {
            Some(there) => Ok(there),
            // Another session may have been faster.
            None => self.publish_unchecked(snapshot.clone()).or_else(|error| self.there_already(snapshot).ok_or(error)),
        }
    }

    /// This very snapshot, if it exists, durably.
    fn there_already(&self, snapshot: &Snapshot) -> Option<Snapshot> {
        let catalog = self.store().catalog();
        let there = catalog.read(&snapshot.name()).ok()?;
        (there.entry_id() == snapshot.entry_id() && catalog.sync().is_ok()).then_some(there)
    }

    fn publish_unchecked(&self, mut snapshot: Snapshot) -> Result<Snapshot> {
        let catalog = self.store().catalog();
        // An image of zeros has no root.
        snapshot.state.partial = snapshot.entry().root.is_some();
        let _announced = catalog.announce(&snapshot)?;
        self.put(vec![entry_record(self.store().codec(), &snapshot)])?;
        self.flush()?;
        catalog.publish(&snapshot)?;
        Ok(snapshot)
    }

    /// Makes a partial snapshot complete, after the same check.
    fn complete(&self, snapshot: &Snapshot) -> Result<Snapshot> {
        self.flush()?;
        Closure::check(self, snapshot)?;
        self.store().catalog().complete(snapshot)
    }
}

/// The record that repeats a snapshot's entry in a pack.
pub(crate) fn entry_record(codec: &RecordCodec, snapshot: &Snapshot) -> Record {
    codec.fast().encode(Kind::Entry, snapshot.entry_id().into(), snapshot.entry_encoding(), None)
}

/// Sets a report whose `stored_bytes` counts the snapshot's own file: repeats until the length is stable.
fn set_report(snapshot: &mut Snapshot, mut report: IngestReport, pack_bytes: u64) {
    let mut file_bytes = 0;
    loop {
        report.stored_bytes = pack_bytes + file_bytes;
        snapshot.state.ingest = Some(report.clone());
        let encoded_bytes = snapshot.encode().len() as u64;
        if encoded_bytes <= file_bytes {
            return;
        }
        file_bytes = encoded_bytes;
    }
}

/// The check that everything below a root lies in sealed packs. It pins the records that it finds.
struct Closure<'a> {
    session: &'a WriteSession,
    snapshot: &'a Snapshot,
    leaves: Vec<ChangedLeaf>,
    chunks: Vec<(ChunkId, u32)>,
}

/// A leaf, and the parent's leaf at the same position.
struct ChangedLeaf {
    segment: u64,
    old: Option<NodeId>,
    new: NodeId,
}

impl<'a> Closure<'a> {
    fn check(session: &'a WriteSession, snapshot: &'a Snapshot) -> Result<()> {
        let parent = session.trusted_parent().map(|parent| (parent.entry().root, parent.entry().virtual_bytes));
        match Self::check_against(session, snapshot, parent) {
            // The parent may be damaged; a record that the new snapshot lacks is missing with or without a parent.
            Err(Error::Damaged { .. }) if parent.is_some() => Self::check_against(session, snapshot, None),
            checked => checked,
        }
    }

    /// Checks everything that differs from the leased parent; the rest exists.
    fn check_against(
        session: &'a WriteSession,
        snapshot: &'a Snapshot,
        parent: Option<(Option<NodeId>, u64)>,
    ) -> Result<()> {
        let mut closure = Self { session, snapshot, leaves: Vec::new(), chunks: Vec::new() };
        let nodes = ProtectedNodes { session, snapshot };
        let entry = snapshot.entry();
        let new = (entry.root, entry.virtual_bytes);
        let mut entered = Entered::default();
        manifest::diff_entering(
            &nodes,
            parent.unwrap_or((None, 0)),
            new,
            &mut |subtree| entered.enter(&subtree, snapshot),
            &mut |segment, old, new| match new {
                Some(new) => closure.add_leaf(ChangedLeaf { segment, old, new }),
                None => Ok(()),
            },
        )?;
        closure.settle_leaves()?;
        closure.settle_chunks()
    }

    fn add_leaf(&mut self, leaf: ChangedLeaf) -> Result<()> {
        self.leaves.push(leaf);
        if self.leaves.len() >= BATCH_LEAVES { self.settle_leaves() } else { Ok(()) }
    }

    /// Reads the leaves that wait, and collects the chunks that the parent's leaves do not have.
    fn settle_leaves(&mut self) -> Result<()> {
        let changed = std::mem::take(&mut self.leaves);
        let new: Vec<NodeId> = changed.iter().map(|leaf| leaf.new).collect();
        let old: Vec<NodeId> = changed.iter().filter_map(|leaf| leaf.old).collect();
        count_on_nodes(self.session, self.snapshot, &new)?;
        let new = read_leaves(self.session.store(), &new)?;
        let mut old = read_leaves(self.session.store(), &old)?.into_iter();
        for (changed, new) in changed.iter().zip(new) {
            let start = changed.segment.saturating_mul(SEGMENT_BYTES as u64);
            if start.saturating_add(new.bytes() as u64) > self.snapshot.entry().virtual_bytes {
                return Err(self.malformed(format!("manifest node {} reaches over the image's end", changed.new)));
            }
            let known: HashSet<ChunkId> = match changed.old {
                Some(_) => old.next().expect("each was read").chunks().map(|(_, id, _)| id).collect(),
                None => HashSet::new(),
            };
            self.chunks
                .extend(new.chunks().filter(|chunk| !known.contains(&chunk.1)).map(|(_, id, bytes)| (id, bytes)));
            if self.chunks.len() >= BATCH_CHUNKS {
                self.settle_chunks()?;
            }
        }
        Ok(())
    }

    /// Looks up the collected chunks.
    fn settle_chunks(&mut self) -> Result<()> {
        let mut chunks = std::mem::take(&mut self.chunks);
        chunks.sort_unstable();
        chunks.dedup();
        let ids: Vec<RecordId> = chunks.iter().map(|(id, _)| (*id).into()).collect();
        let locations = count_on(self.session, &ids, |at| missing(self.snapshot, &format!("chunk {}", chunks[at].0)))?;
        for ((id, bytes), location) in chunks.into_iter().zip(locations) {
            if location.kind != Kind::Chunk || location.plain_bytes != bytes {
                return Err(self.malformed(format!("chunk {id} is not as long as the manifest says")));
            }
        }
        Ok(())
    }

    fn malformed(&self, detail: String) -> Error {
        malformed(self.snapshot, detail)
    }
}

fn malformed(snapshot: &Snapshot, detail: String) -> Error {
    Error::damaged(format!("the manifest of {}", snapshot.name()), detail)
}

/// Subtrees that were checked: a few nodes, each the child of another in all its slots, can span an image of any size.
#[derive(Default)]
struct Entered {
    inner: HashSet<(NodeId, u8)>,
    /// The last leaves. Forgetting one only costs time, and little, because inner nodes are entered once.
    leaves: HashSet<NodeId>,
}

impl Entered {
    /// Whether a subtree must be checked.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it lies beyond the image's end.
    fn enter(&mut self, subtree: &Subtree, snapshot: &Snapshot) -> Result<bool> {
        // Subtrees that only the parent has need not be checked.
        let Some(id) = subtree.id else { return Ok(false) };
        let segments = subtree.segments();
        let of_image = snapshot.entry().virtual_bytes.div_ceil(SEGMENT_BYTES as u64);
        if segments.start >= of_image {
            return Err(malformed(snapshot, format!("manifest node {id} reaches over the image's end")));
        }
        // A node that the image's end cuts is checked where it lies; there is one at each height.
        if segments.end >= of_image {
            return Ok(true);
        }
        if subtree.height > 0 {
            return Ok(self.inner.insert((id, subtree.height)));
        }
        if self.leaves.len() >= LEAVES_REMEMBERED {
            self.leaves.clear();
        }
        Ok(self.leaves.insert(id))
    }
}

/// Reads the manifests' nodes and pins each.
struct ProtectedNodes<'a> {
    session: &'a WriteSession,
    snapshot: &'a Snapshot,
}

impl ChunkSource for ProtectedNodes<'_> {
    fn chunks(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(usize, Result<crate::format::Chunk>) -> Result<()>,
    ) -> Result<()> {
        self.session.store().chunks(ids, each)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        count_on_nodes(self.session, self.snapshot, &[id])?;
        self.session.store().node(id)
    }
}

fn count_on_nodes(session: &WriteSession, snapshot: &Snapshot, ids: &[NodeId]) -> Result<()> {
    let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
    count_on(session, &records, |at| missing(snapshot, &format!("manifest node {}", ids[at]))).map(drop)
}

fn missing(snapshot: &Snapshot, what: &str) -> Error {
    Error::damaged(what, format!("it is not in the store; {} is not published", snapshot.name()))
}

/// Pins records and makes sure that they lie in sealed packs; returns their locations.
fn count_on(session: &WriteSession, ids: &[RecordId], missing: impl Fn(usize) -> Error) -> Result<Vec<RecordLocation>> {
    let found = session.look_up(ids)?;
    if found.iter().any(|found| matches!(found, Found::Sound { is_sealed: false, .. })) {
        // Another session put it and has not sealed it yet.
        session.flush()?;
    }
    let location = |(at, found): (usize, Found)| match found {
        Found::Sound { location, .. } => Ok(location),
        Found::Unsound | Found::Absent => Err(missing(at)),
    };
    found.into_iter().enumerate().map(location).collect()
}

/// Reads leaves, in the order of `ids`.
fn read_leaves(store: &Store, ids: &[NodeId]) -> Result<Vec<Leaf>> {
    let mut leaves: Vec<Option<Leaf>> = vec![None; ids.len()];
    store.nodes(ids, &mut |at, node| match node? {
        Node::Leaf(leaf) => {
            leaves[at] = Some(leaf);
            Ok(())
        }
        Node::Inner(_) => {
            Err(Error::damaged(format!("manifest node {}", ids[at]), "it is not a leaf, but must be one"))
        }
    })?;
    Ok(leaves.into_iter().map(|leaf| leaf.expect("every position is handed over")).collect())
}
