//! Walking everything that snapshots need, each record once: for gc's mark and for statistics.
//!
//! Memory does not follow the store's size but for one bit (or one small number) a record, kept by the caller's
//! [`PlaceSet`]: ids wait in batches of fixed size for the index.

use std::thread;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::manifest::{ChunkSource, Node, wrong_height};
use crate::format::{NodeId, RecordId};
use crate::pack::RecordLocation;
use crate::progress::Progress;
use crate::store::Store;
use crate::store::marks::PlaceSet;

/// Ids that wait until they are looked up together (16 MiB). Sorted, they read the index almost in order, and the more
/// there are, the more of them lie in one block.
const BATCH_IDS: usize = 512 << 10;
/// Of these, how many are looked up with one call.
const SLICE_IDS: usize = 8 << 10;

/// What may be missing below a root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gaps {
    /// Nothing: a node that can't be read ends the walk.
    None,
    /// What was never there. Known damage ends the walk.
    Absent,
    /// Whatever: it can be had from elsewhere.
    Any,
}

/// A walk over the manifests of several snapshots.
///
/// What was seen is not walked again. So those below which something may be missing come last: otherwise nobody would
/// notice that a whole one lacks it, too.
pub(crate) struct Walk<'a, S> {
    store: &'a Store,
    threads: usize,
    progress: &'a Progress,
    waiting: Vec<RecordId>,
    gaps: Gaps,
    pub(crate) seen: S,
    /// Records that manifests name and no pack has, but for those that may be missing.
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

    /// Lets what is walked from now on have gaps, or not.
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
    /// [`Error::Damaged`] if a manifest node can't be read that may not be missing: what is below it is unknown then.
    pub(crate) fn tree(&mut self, root: NodeId) -> Result<()> {
        self.nodes(&[root], None)
    }

    /// Notes single records, such as snapshots' entries.
    pub(crate) fn records(&mut self, ids: impl IntoIterator<Item = RecordId>) -> Result<()> {
        for id in ids {
            self.waiting.push(id);
            if self.waiting.len() >= BATCH_IDS {
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Walks nodes, of a height that is known but for a root's. A node that is no lower than its parent is none of a tree:
    /// its like below it could go on for ever.
    fn nodes(&mut self, ids: &[NodeId], height: Option<u8>) -> Result<()> {
        self.progress.check()?;
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        for (id, place) in ids.iter().zip(self.store.places_once(&records)?) {
            match self.node(*id, place, height) {
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

    /// Notes a node; reads it unless that was done before.
    fn node(&mut self, id: NodeId, place: Option<RecordLocation>, height: Option<u8>) -> Result<Option<Node>> {
        let place = place.ok_or_else(|| Error::damaged(format!("manifest node {id}"), "it is in no whole pack"))?;
        if !self.seen.add(&place) {
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

    /// Looks all waiting ids up.
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
        let places = store.places_once(ids)?;
        let mut found = found.lock();
        for place in places {
            match place {
                Some(place) => {
                    found.0.add(&place);
                }
                None => *found.1 += 1,
            }
        }
    }
    Ok(())
}
