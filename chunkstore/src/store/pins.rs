//! What living sessions count on, so that gc keeps it: a bit for each record, and leased roots.
//!
//! Everything that lives and needs records has a [`PinSet`] of the store's [`PinSets`]: a write session one for what
//! it put and found, and one for the bases of its deltas, which lives on until no open pack has one of these. While a
//! collection runs, one that ends hands its marks over to the collection instead of forgetting them.
//!
//! A record is looked up and protected under [`CollectionLock::look_up`]. gc shuts the gate while it merges the pins and
//! decides what to condemn: from then on what is condemned has no place, so nobody comes to count on it.

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
    /// What ended while a collection runs; `None` if none does.
    handed_over: Option<HandedOver>,
}

#[derive(Default)]
struct HandedOver {
    marks: Mark,
    roots: Vec<NodeId>,
}

/// What one of the living counts on.
struct Pinned {
    marks: TruthMutex<Mark>,
    /// Everything below these is needed.
    roots: Vec<NodeId>,
    /// Why it can't go on: something that it counts on was lost before it was durable.
    failure: OnceLock<Error>,
}

/// Keeps records from gc while it lives.
pub(crate) struct PinSet {
    all: Arc<PinSets>,
    number: u64,
    pinned: Arc<Pinned>,
}

impl PinSets {
    /// A new protection, of everything below these roots at first. It holds if afterwards the roots are found to be
    /// snapshots' still.
    pub(crate) fn pin_set(self: &Arc<Self>, roots: Vec<NodeId>) -> PinSet {
        let pinned =
            Arc::new(Pinned { marks: TruthMutex::new("pins", Mark::default()), roots, failure: OnceLock::new() });
        let mut registry = self.registry.lock();
        registry.last_number += 1;
        let number = registry.last_number;
        registry.live.insert(number, Arc::clone(&pinned));
        PinSet { all: Arc::clone(self), number, pinned }
    }

    /// Lets those that end hand over what they count on, until the result is dropped.
    pub(crate) fn begin_collection(self: &Arc<Self>) -> Collecting {
        self.registry.lock().handed_over = Some(HandedOver::default());
        Collecting { all: Arc::clone(self) }
    }

    /// Tells those that count on a pack's records that they are lost.
    pub(crate) fn fail(&self, pack: u32, error: &Error) {
        for pinned in self.registry.lock().live.values() {
            if pinned.marks.lock().pack(pack).is_some() {
                let _ = pinned.failure.set(again(error));
            }
        }
    }

    /// Moves the pins of records to the places that the index has for them now. The gate
    /// must have been shut since: whoever looked the old place up has protected it by now.
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

/// A record that lies in two places, of which the index names the second.
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
    /// Names it among all of the store.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Protects the record at a place. What was looked up must be protected before the gate is left.
    pub(crate) fn pin(&self, place: &RecordLocation) {
        self.pinned.marks.lock().add(place);
    }

    /// Whether the record at a place is pinned.
    pub(crate) fn has(&self, place: &RecordLocation) -> bool {
        self.pinned.marks.lock().has(place)
    }

    /// Whether anything in a pack is pinned.
    pub(crate) fn needs_pack(&self, number: u32) -> bool {
        self.pinned.marks.lock().pack(number).is_some()
    }

    /// Makes its owner's further work fail.
    pub(crate) fn fail(&self, error: &Error) {
        let _ = self.pinned.failure.set(again(error));
    }

    /// # Errors
    /// What its owner failed of, told again.
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

/// A collection that runs.
pub(crate) struct Collecting {
    all: Arc<PinSets>,
}

impl Collecting {
    /// The roots that are leased by the living, or were when they ended.
    pub(crate) fn roots(&self) -> Vec<NodeId> {
        let registry = self.all.registry.lock();
        let ended = registry.handed_over.iter().flat_map(|handed_over| &handed_over.roots);
        registry.live.values().flat_map(|pinned| &pinned.roots).chain(ended).copied().collect()
    }

    /// Marks everything that the living count on, or did when they ended. The gate must be shut.
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

/// Between those who look records up to count on them, and gc. Nobody passes it twice at a time.
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

/// Packs that are about to go, each with those of its records that are needed, and will have another place.
pub(crate) type Condemned = Arc<HashMap<u32, Arc<PackMark>>>;

impl CollectionLock {
    /// Whoever looks records up to count on them holds this until they are pinned.
    pub(crate) fn look_up(&self) -> RwLockReadGuard<'_, ()> {
        self.look_ups.read()
    }

    /// Keeps look-ups out. To be held shortly, without any work of the disk.
    pub(crate) fn shut(&self) -> TruthWriteGuard<'_, ()> {
        self.look_ups.write()
    }

    /// Waits until every look-up that goes on now has ended.
    pub(crate) fn wait_for_look_ups(&self) {
        drop(self.shut());
    }

    /// What is condemned now.
    pub(crate) fn condemned(&self) -> Condemned {
        Arc::clone(&self.condemned.read())
    }

    /// Condemns packs. From here on only their needed records have places.
    pub(crate) fn condemn(&self, packs: HashMap<u32, Arc<PackMark>>, _shut: &TruthWriteGuard<'_, ()>) {
        *self.condemned.write() = Arc::new(packs);
    }

    /// Forgets a condemned pack that is gone from the index and from the set of packs.
    pub(crate) fn is_gone(&self, number: u32) {
        Arc::make_mut(&mut self.condemned.write()).remove(&number);
    }

    /// Spares what is still condemned. A pack whose records were forgotten stays without places by that alone; but a
    /// look-up that began before must not end after this.
    pub(crate) fn spare(&self) {
        let shut = self.shut();
        self.condemn(HashMap::new(), &shut);
    }
}

/// Whether a record in a condemned pack is not needed.
pub(crate) fn is_condemned(condemned: &Condemned, place: &RecordLocation) -> bool {
    condemned.get(&place.pack).is_some_and(|needed| !needed.has(place.ordinal as usize))
}

/// The same error once more, for another who suffers from it.
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
