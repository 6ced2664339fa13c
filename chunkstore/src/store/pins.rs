//! The records that running sessions rely on, so that gc keeps them: one bit for each record, and leased roots.
//!
//! Each user of records has a [`PinSet`] from the store's [`PinSets`]. A write session has one for the records that it
//! put or found, and one for the bases of its deltas, which lives until no open pack contains such a delta. A pin set
//! that ends during a collection hands its marks over to the collection.
//!
//! A record is looked up and pinned under [`CollectionLock::look_up`]. gc takes the lock exclusively while it merges
//! the pins and decides what to condemn: condemned records have no location from then on, so they can no longer be
//! pinned.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLockReadGuard;

use crate::error::{Error, Result};
use crate::format::NodeId;
use crate::pack::RecordLocation;
use crate::store::marks::{Mark, PackMark, PlaceSet};
use crate::truth_lock::{TruthMutex, TruthRwLock, TruthWriteGuard};

/// The pins of all sessions of an open store.
pub(crate) struct PinSets {
    registry: TruthMutex<Registry>,
}

impl Default for PinSets {
    fn default() -> Self {
        Self { registry: TruthMutex::new("the pins", Registry::default()) }
    }
}

#[derive(Default)]
struct Registry {
    live: HashMap<u64, Arc<Pinned>>,
    last_number: u64,
    /// Pins that ended during a collection; `None` if no collection runs.
    handed_over: Option<HandedOver>,
}

#[derive(Default)]
struct HandedOver {
    marks: Mark,
    roots: Vec<NodeId>,
}

/// The content of one pin set.
struct Pinned {
    marks: TruthMutex<Mark>,
    /// Everything below these roots is pinned as well.
    roots: Vec<NodeId>,
    /// Why its owner must fail: a record that it relies on was lost before it was durable.
    failure: OnceLock<Error>,
}

/// Keeps records from gc while it exists.
pub(crate) struct PinSet {
    all: Arc<PinSets>,
    number: u64,
    pinned: Arc<Pinned>,
}

impl PinSets {
    /// A new pin set of everything below these roots. It is effective if the roots still belong to snapshots
    /// afterwards.
    pub(crate) fn pin_set(self: &Arc<Self>, roots: Vec<NodeId>) -> PinSet {
        let pinned =
            Arc::new(Pinned { marks: TruthMutex::new("pins", Mark::default()), roots, failure: OnceLock::new() });
        let mut registry = self.registry.lock();
        registry.last_number += 1;
        let number = registry.last_number;
        registry.live.insert(number, Arc::clone(&pinned));
        PinSet { all: Arc::clone(self), number, pinned }
    }

    /// Makes pin sets that end hand over their pins, until the result is dropped.
    pub(crate) fn begin_collection(self: &Arc<Self>) -> Collecting {
        self.registry.lock().handed_over = Some(HandedOver::default());
        Collecting { all: Arc::clone(self) }
    }

    /// Fails the owners of pins in a pack whose records are lost.
    pub(crate) fn fail(&self, pack: u32, error: &Error) {
        for pinned in self.registry.lock().live.values() {
            if pinned.marks.lock().pack(pack).is_some() {
                let _ = pinned.failure.set(again(error));
            }
        }
    }

    /// Moves pins to the locations that the index now has for the same records. Every lookup of an old location must
    /// have ended ([`CollectionLock::wait_for_look_ups`]), so that its pin is already set.
    pub(crate) fn follow(&self, moves: &[Move]) {
        let mut registry = self.registry.lock();
        for pinned in registry.live.values() {
            follow(&mut pinned.marks.lock(), moves);
        }
        if let Some(handed_over) = &mut registry.handed_over {
            follow(&mut handed_over.marks, moves);
        }
    }
}

/// A record at two locations, of which the index names the second.
pub(crate) struct Move {
    pub(crate) from: RecordLocation,
    pub(crate) to: RecordLocation,
}

fn follow(marks: &mut Mark, moves: &[Move]) {
    for Move { from, to } in moves {
        if marks.has(from) {
            marks.add(to);
        }
    }
}

impl PinSet {
    /// Its number among all pin sets of the store.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Pins the record at a location. After a lookup, call this before releasing the collection lock.
    pub(crate) fn pin(&self, location: &RecordLocation) {
        self.pinned.marks.lock().add(location);
    }

    /// Whether the record at a location is pinned.
    pub(crate) fn has(&self, location: &RecordLocation) -> bool {
        self.pinned.marks.lock().has(location)
    }

    /// Whether any record in a pack is pinned.
    pub(crate) fn needs_pack(&self, number: u32) -> bool {
        self.pinned.marks.lock().pack(number).is_some()
    }

    /// Makes all further work of the owner fail.
    pub(crate) fn fail(&self, error: &Error) {
        let _ = self.pinned.failure.set(again(error));
    }

    /// # Errors
    /// A copy of the error that its owner failed with.
    pub(crate) fn check(&self) -> Result<()> {
        self.pinned.failure.get().map_or(Ok(()), |error| Err(again(error)))
    }
}

impl Drop for PinSet {
    fn drop(&mut self) {
        let mut registry = self.all.registry.lock();
        registry.live.remove(&self.number);
        if let Some(handed_over) = &mut registry.handed_over {
            handed_over.marks.merge(&self.pinned.marks.lock());
            handed_over.roots.extend(&self.pinned.roots);
        }
    }
}

/// A running collection.
pub(crate) struct Collecting {
    all: Arc<PinSets>,
}

impl Collecting {
    /// The roots that are leased now, or were when their pin sets ended.
    pub(crate) fn roots(&self) -> Vec<NodeId> {
        let registry = self.all.registry.lock();
        let ended = registry.handed_over.iter().flat_map(|handed_over| &handed_over.roots);
        registry.live.values().flat_map(|pinned| &pinned.roots).chain(ended).copied().collect()
    }

    /// Merges all pins into a mark, including those of pin sets that ended meanwhile. The collection lock must be held
    /// exclusively.
    pub(crate) fn merge_into(&self, mark: &mut Mark) {
        let registry = self.all.registry.lock();
        registry.live.values().for_each(|pinned| mark.merge(&pinned.marks.lock()));
        registry.handed_over.iter().for_each(|handed_over| mark.merge(&handed_over.marks));
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        self.all.registry.lock().handed_over = None;
    }
}

/// Separates lookups that pin records from gc's decision. A thread must not take it twice.
pub(crate) struct CollectionLock {
    look_ups: TruthRwLock<()>,
    condemned: TruthRwLock<Condemned>,
}

impl Default for CollectionLock {
    fn default() -> Self {
        let condemned = TruthRwLock::new("the condemned packs", Condemned::default());
        Self { look_ups: TruthRwLock::new("what is condemned and pinned", ()), condemned }
    }
}

/// Packs that are about to be removed, each with its needed records, which get another location.
pub(crate) type Condemned = Arc<HashMap<u32, Arc<PackMark>>>;

impl CollectionLock {
    /// Held from looking records up until they are pinned.
    pub(crate) fn look_up(&self) -> RwLockReadGuard<'_, ()> {
        self.look_ups.read()
    }

    /// Excludes lookups. Hold it briefly and without disk access.
    pub(crate) fn shut(&self) -> TruthWriteGuard<'_, ()> {
        self.look_ups.write()
    }

    /// Waits until every current lookup has ended.
    pub(crate) fn wait_for_look_ups(&self) {
        drop(self.shut());
    }

    /// The condemned packs.
    pub(crate) fn condemned(&self) -> Condemned {
        Arc::clone(&self.condemned.read())
    }

    /// Condemns packs: from now on only their needed records have locations.
    pub(crate) fn condemn(&self, packs: HashMap<u32, Arc<PackMark>>, _shut: &TruthWriteGuard<'_, ()>) {
        *self.condemned.write() = Arc::new(packs);
    }

    /// Forgets a condemned pack that was removed from the index and from the set of packs.
    pub(crate) fn is_gone(&self, number: u32) {
        Arc::make_mut(&mut self.condemned.write()).remove(&number);
    }

    /// Ends condemnation. Records that were forgotten have no location anyway, but a lookup that began before must not
    /// end after this.
    pub(crate) fn spare(&self) {
        let shut = self.shut();
        self.condemn(HashMap::new(), &shut);
    }
}

/// Whether a record lies in a condemned pack and is not needed.
pub(crate) fn is_condemned(condemned: &Condemned, location: &RecordLocation) -> bool {
    condemned.get(&location.pack).is_some_and(|needed| !needed.has(location.ordinal as usize))
}

/// A copy of an error, for another session that fails because of it.
pub(crate) fn again(error: &Error) -> Error {
    match error {
        Error::OutOfSpace { path, is_quota } => Error::OutOfSpace { path: path.clone(), is_quota: *is_quota },
        Error::IndexDamaged { detail } => Error::IndexDamaged { detail: detail.clone() },
        Error::Damaged { what, detail } => Error::damaged(what, detail),
        Error::Io { action, path, source } => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            Error::Io { action, path: path.clone(), source }
        }
        Error::Refused { what } => Error::refused(what),
        other => Error::refused(other.to_string()),
    }
}
