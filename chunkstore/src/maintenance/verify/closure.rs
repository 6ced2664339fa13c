//! Walking the manifests of snapshots: everything below a root must exist.
//!
//! One thread walks the inner nodes and hands out leaves in batches; others read them and look up their chunks. Each
//! inner node is entered once, because a few nodes, each the child of another in all its slots, can span an image of
//! any size. Leaves and chunks are not checked again while they are remembered; the memory is bounded, and forgetting
//! only costs time. Below a partial snapshot records may be absent; partial snapshots come last, so that what complete
//! ones lack is noticed.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::thread;

use parking_lot::Mutex;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::catalog::Snapshot;
use crate::error::{Error, Result};
use crate::format::manifest::{ChunkSource, Node, height_for};
use crate::format::{NodeId, RecordId};
use crate::pack::RecordLocation;
use crate::parallel;
use crate::progress::Progress;
use crate::store::Store;
use crate::store::marks::{Mark, PlaceSet};

/// Leaves that are read together.
const BATCH_LEAVES: usize = 64;
/// Most ids that are remembered, at a little over 16 bytes each.
const REMEMBERED_MAX: usize = 1 << 20;
/// Most lost ids that are told apart.
const LOST_MAX: usize = 1 << 20;

/// Records that snapshots need and that are lost.
#[derive(Default)]
pub(super) struct Lost {
    pub(super) ids: HashSet<RecordId>,
    /// Records of partial snapshots that were never here.
    pub(super) absent: u64,
    /// A manifest is malformed although its nodes are intact.
    pub(super) malformed: bool,
}

impl Lost {
    pub(super) fn is_nothing(&self) -> bool {
        self.ids.is_empty() && !self.malformed
    }
}

/// The walk's action on each record and its location, if it has one. Returns whether to go on below it.
type See<'a> = dyn Fn(RecordId, Option<RecordLocation>) -> bool + Sync + 'a;

/// A walk over the manifests of snapshots.
pub(super) struct Closure<'a> {
    store: &'a Store,
    threads: usize,
    progress: &'a Progress,
    remembered: Mutex<Remembered>,
    lost: Mutex<Lost>,
}

/// Marks everything that some snapshots need and that has a location.
pub(super) fn mark(store: &Store, snapshots: &[Snapshot], threads: usize, progress: &Progress) -> Result<Mark> {
    let mark = Mutex::new(Mark::default());
    let closure = Closure::new(store, threads, progress);
    closure.walk(snapshots, &|_, location| {
        if let Some(location) = location {
            mark.lock().add(&location);
        }
        location.is_some()
    })?;
    Ok(mark.into_inner())
}

impl<'a> Closure<'a> {
    pub(super) fn new(store: &'a Store, threads: usize, progress: &'a Progress) -> Self {
        Self { store, threads, progress, remembered: Mutex::default(), lost: Mutex::default() }
    }

    /// Everything below the snapshots that has no good location, or can't be read.
    pub(super) fn lost(
        self,
        snapshots: &[Snapshot],
        is_good: &(dyn Fn(&RecordLocation) -> bool + Sync),
    ) -> Result<Lost> {
        let (partial, whole): (Vec<_>, Vec<_>) = snapshots.iter().cloned().partition(|snapshot| snapshot.state.partial);
        self.walk(&whole, &|id, location| {
            if !location.is_some_and(|location| is_good(&location)) {
                self.lose(id);
            }
            true
        })?;
        let damaged = self.store.damaged();
        self.walk(&partial, &|id, location| {
            match location {
                Some(location) if is_good(&location) => return true,
                None if !damaged.concerns(id) => self.lost.lock().absent += 1,
                _ => self.lose(id),
            }
            false
        })?;
        Ok(self.lost.into_inner())
    }

    fn lose(&self, id: RecordId) {
        let mut lost = self.lost.lock();
        if lost.ids.len() < LOST_MAX {
            lost.ids.insert(id);
        }
    }

    fn walk(&self, snapshots: &[Snapshot], see: &See<'_>) -> Result<()> {
        let (leaves, todo) = bounded(self.threads * 2);
        let (walked, worked) = thread::scope(|scope| {
            let walker = scope.spawn(|| self.walk_trees(snapshots, see, leaves));
            let worked = parallel::run(self.threads, || self.work(&todo, see));
            (walker.join().expect("the walk does not panic"), worked)
        });
        worked?;
        walked
    }

    fn walk_trees(&self, snapshots: &[Snapshot], see: &See<'_>, leaves: Sender<Vec<NodeId>>) -> Result<()> {
        let mut walker = Walker { closure: self, see, leaves, batch: Vec::new(), entered: HashSet::new() };
        for entry in snapshots.iter().map(Snapshot::entry) {
            if let Some(root) = entry.root {
                walker.node(root, height_for(entry.virtual_bytes))?;
            }
        }
        walker.give_leaves()
    }

    /// Reads leaves until there are no more. After a failure they are only taken from the channel, so that the walker
    /// never blocks.
    fn work(&self, todo: &Receiver<Vec<NodeId>>, see: &See<'_>) -> Result<()> {
        let mut result = Ok(());
        for leaves in todo {
            if result.is_ok() {
                result = self.progress.check().and_then(|()| self.leaves(&leaves, see));
            }
        }
        result
    }

    fn leaves(&self, ids: &[NodeId], see: &See<'_>) -> Result<()> {
        let mut chunks: Vec<RecordId> = Vec::new();
        self.store.nodes(ids, &mut |position, node| {
            match node {
                Ok(Node::Leaf(leaf)) => chunks.extend(leaf.chunks().map(|(_, id, _)| RecordId::from(id))),
                Ok(Node::Inner(_)) => self.lost.lock().malformed = true,
                Err(Error::Damaged { .. }) => self.lose(ids[position].into()),
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        let new = self.remembered.lock().new_ones(chunks.into_iter());
        self.look_up(new, see)?;
        Ok(())
    }

    /// Visits ids with their locations; returns those below which the walk goes on.
    fn look_up(&self, new: Vec<RecordId>, see: &See<'_>) -> Result<HashSet<RecordId>> {
        let locations = self.store.locate(&new)?;
        Ok(new.into_iter().zip(locations).filter(|(id, location)| see(*id, *location)).map(|(id, _)| id).collect())
    }
}

/// The thread that walks inner nodes.
struct Walker<'a> {
    closure: &'a Closure<'a>,
    see: &'a See<'a>,
    leaves: Sender<Vec<NodeId>>,
    batch: Vec<NodeId>,
    entered: HashSet<RecordId>,
}

impl Walker<'_> {
    fn node(&mut self, id: NodeId, height: u8) -> Result<()> {
        self.nodes(&[id], height)
    }

    /// Walks nodes of one height.
    fn nodes(&mut self, ids: &[NodeId], height: u8) -> Result<()> {
        self.closure.progress.check()?;
        let records = ids.iter().map(|id| RecordId::from(*id));
        let new = if height == 0 {
            self.closure.remembered.lock().new_ones(records)
        } else {
            records.filter(|id| self.entered.insert(*id)).collect()
        };
        let new = self.closure.look_up(new, self.see)?;
        for id in ids.iter().filter(|id| new.contains(&RecordId::from(**id))) {
            if height == 0 {
                self.batch.push(*id);
                if self.batch.len() >= BATCH_LEAVES {
                    self.give_leaves()?;
                }
                continue;
            }
            match self.closure.store.node(*id) {
                Ok(Node::Inner(inner)) if inner.height() == height => {
                    let children: Vec<_> = inner.children().iter().map(|child| child.1).collect();
                    self.nodes(&children, height - 1)?;
                }
                Ok(_) => self.closure.lost.lock().malformed = true,
                Err(Error::Damaged { .. }) => self.closure.lose((*id).into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn give_leaves(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.leaves.send(batch).map_err(|_| Error::Interrupted)
    }
}

/// Half of an id: enough to tell remembered ids apart.
type Half = [u8; 16];

/// The ids that were visited last.
#[derive(Default)]
struct Remembered {
    ids: HashSet<Half, BuildHasherDefault<FirstBytes>>,
}

impl Remembered {
    /// Those of these ids that were not visited, each once.
    fn new_ones(&mut self, ids: impl Iterator<Item = RecordId>) -> Vec<RecordId> {
        if self.ids.len() >= REMEMBERED_MAX {
            self.ids.clear();
        }
        ids.filter(|id| self.ids.insert(*id.as_bytes().first_chunk().expect("an id is longer"))).collect()
    }
}

/// Ids are hashes already.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The hash of an array includes its length, which is constant here.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
