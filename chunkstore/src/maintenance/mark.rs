//! A walk over everything that snapshots need, each record once: for gc's mark and for statistics.
//!
//! Memory grows with the store only by one bit or one small number for each record, which the caller's [`PlaceSet`]
//! keeps: ids are looked up in batches of fixed size.

use std::thread;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::manifest::{ChunkSource, Node, wrong_height};
use crate::format::{NodeId, RecordId};
use crate::pack::RecordLocation;
use crate::progress::Progress;
use crate::store::Store;
use crate::store::marks::PlaceSet;

/// Ids that are looked up together (16 MiB). Sorted, they read the index almost in order, and a larger batch has more
/// ids in one block.
const BATCH_IDS: usize = 512 << 10;
/// Ids in one call of the index.
const SLICE_IDS: usize = 8 << 10;

/// Which records below a root may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gaps {
    /// None: an unreadable node ends the walk.
    None,
    /// Records that were never here. Known damage ends the walk.
    Absent,
    /// Any: they can be fetched from elsewhere.
    Any,
}

/// A walk over the manifests of several snapshots.
///
/// Visited records are not walked again. Snapshots with allowed gaps therefore come last; otherwise a record that a
/// complete snapshot lacks would be overlooked.
pub(crate) struct Walk<'a, S> {
    store: &'a Store,
    threads: usize,
    progress: &'a Progress,
    waiting: Vec<RecordId>,
    gaps: Gaps,
    pub(crate) seen: S,
    /// Records that manifests name and no pack has, except where gaps are allowed.
    pub(crate) missing_records: u64,
}

impl<'a, S: PlaceSet> Walk<'a, S> {
    pub(crate) fn new(store: &'a Store, seen: S, threads: usize, progress: &'a Progress) -> Self {
        Self {
            store,
            threads: threads.max(1),
            progress,
            waiting: Vec::new(),
            gaps: Gaps::None,
            seen,
            missing_records: 0,
        }
    }

    /// Sets which gaps are allowed from now on.
    pub(crate) fn allow(&mut self, gaps: Gaps) -> Result<()> {
        if self.gaps != gaps {
            self.settle()?;
            self.gaps = gaps;
        }
        Ok(())
    }

    /// Walks the tree below a root.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a manifest node that must not be missing can't be read: its content is unknown then.
    pub(crate) fn tree(&mut self, root: NodeId) -> Result<()> {
        self.nodes(&[root], None)
    }

    /// Adds single records, such as snapshots' entries.
    pub(crate) fn records(&mut self, ids: impl IntoIterator<Item = RecordId>) -> Result<()> {
        for id in ids {
            self.waiting.push(id);
            if self.waiting.len() >= BATCH_IDS {
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Walks nodes, whose height is known except for a root. A node that is not lower than its parent is invalid: a
    /// chain of such nodes could be endless.
    fn nodes(&mut self, ids: &[NodeId], height: Option<u8>) -> Result<()> {
        self.progress.check()?;
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        for (id, location) in ids.iter().zip(self.store.locate_once(&records)?) {
            match self.node(*id, location, height) {
                Ok(Some(Node::Inner(inner))) => {
                    let children: Vec<_> = inner.children().iter().map(|child| child.1).collect();
                    self.nodes(&children, Some(inner.height() - 1))?;
                }
                Ok(Some(Node::Leaf(leaf))) => self.records(leaf.chunks().map(|(_, id, _)| id.into()))?,
                Ok(None) => {}
                Err(Error::Damaged { .. }) if self.may_lack(*id) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds a node; reads it unless it was visited before.
    fn node(&mut self, id: NodeId, location: Option<RecordLocation>, height: Option<u8>) -> Result<Option<Node>> {
        let location =
            location.ok_or_else(|| Error::damaged(format!("manifest node {id}"), "it is in no intact pack"))?;
        if !self.seen.add(&location) {
            return Ok(None);
        }
        let node = self.store.node(id)?;
        match height {
            Some(height) if node.height() != height => Err(wrong_height(id, node.height(), height)),
            _ => Ok(Some(node)),
        }
    }

    fn may_lack(&self, id: NodeId) -> bool {
        match self.gaps {
            Gaps::None => false,
            Gaps::Absent => !self.store.damaged().concerns(id.into()),
            Gaps::Any => true,
        }
    }

    /// Looks up all waiting ids.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.progress.check()?;
        let mut ids = std::mem::take(&mut self.waiting);
        ids.sort_unstable();
        ids.dedup();
        let part = ids.len().div_ceil(self.threads).max(1);
        let mut missing_records = 0;
        let (store, found) = (self.store, Mutex::new((&mut self.seen, &mut missing_records)));
        thread::scope(|scope| {
            let parts: Vec<_> = ids.chunks(part).map(|ids| scope.spawn(|| look_up(store, ids, &found))).collect();
            parts.into_iter().try_for_each(|part| part.join().expect("a look-up does not panic"))
        })?;
        if self.gaps == Gaps::None {
            self.missing_records += missing_records;
        }
        ids.clear();
        self.waiting = ids;
        Ok(())
    }

    /// Ends the walk.
    pub(crate) fn finish(mut self) -> Result<(S, u64)> {
        self.settle()?;
        Ok((self.seen, self.missing_records))
    }
}

fn look_up<S: PlaceSet>(store: &Store, ids: &[RecordId], found: &Mutex<(&mut S, &mut u64)>) -> Result<()> {
    for ids in ids.chunks(SLICE_IDS) {
        let locations = store.locate_once(ids)?;
        let mut found = found.lock();
        for location in locations {
            match location {
                Some(location) => {
                    found.0.add(&location);
                }
                None => *found.1 += 1,
            }
        }
    }
    Ok(())
}
