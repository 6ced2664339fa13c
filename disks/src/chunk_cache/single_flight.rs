//! Loads in progress: each chunk or node once, however many readers ask.
//!
//! A [`Load`] stands for one missing chunk or node from the first request until its outcome is known. Exactly one
//! thread or task takes it and holds the [`LoadGuard`], which gives all waiting readers the outcome, or an error if its
//! holder panics.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chunkstore::Error;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::decoded_cache::{Cached, DecodedCache, Key};
use crate::upstream::Urgency;

/// How a load ended, for all waiting readers.
pub(crate) type Outcome = Result<Arc<Cached>, Arc<Error>>;

/// One missing chunk or node that was requested.
pub(crate) struct Load {
    key: Key,
    began_ahead: bool,
    is_taken: AtomicBool,
    /// Set until a reader waits for it.
    is_ahead: AtomicBool,
    outcome: watch::Sender<Option<Outcome>>,
}

/// Result of a look-up.
pub(crate) enum Lookup {
    /// It is in memory.
    Hit(Arc<Cached>),
    /// It is being loaded.
    Pending(PendingLoad),
}

/// A load in progress.
pub(crate) struct PendingLoad {
    /// The load.
    pub(crate) load: Arc<Load>,
    /// Whether this look-up began it or is the first to demand it: the caller queues it or does it.
    pub(crate) is_new: bool,
}

impl Load {
    fn new(key: Key, urgency: Urgency) -> Arc<Self> {
        let began_ahead = urgency < Urgency::Demand;
        Arc::new(Self {
            key,
            began_ahead,
            is_taken: AtomicBool::new(false),
            is_ahead: AtomicBool::new(began_ahead),
            outcome: watch::Sender::new(None),
        })
    }

    /// The chunk or node.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Whether no reader waited when it began.
    pub(crate) fn began_ahead(&self) -> bool {
        self.began_ahead
    }

    /// Whether no reader waits for it yet.
    pub(crate) fn is_ahead(&self) -> bool {
        self.is_ahead.load(Ordering::Relaxed)
    }

    /// Its outcome, if it has ended.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }

    /// Waits for its end. A thread need not poll it: any number of tasks may wait.
    pub(crate) async fn end(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|ended| ended.clone())
            .expect("the sender lives in the load, and it waited for some outcome")
    }
}

/// All loads that have not ended.
#[derive(Default)]
pub(crate) struct SingleFlight {
    loads: Mutex<HashMap<Key, Arc<Load>>>,
}

impl SingleFlight {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Load>>> {
        self.loads.lock()
    }

    /// The load of what is not in `cache`; begins one if there is none.
    pub(crate) fn find(&self, key: Key, urgency: Urgency, cache: &DecodedCache) -> Lookup {
        let mut loads = self.lock();
        match loads.entry(key) {
            Entry::Occupied(entry) => {
                let load = Arc::clone(entry.get());
                let is_new = urgency == Urgency::Demand && load.is_ahead.swap(false, Ordering::Relaxed);
                Lookup::Pending(PendingLoad { load, is_new })
            }
            Entry::Vacant(entry) => {
                // A load leaves this table after its content came into the cache.
                if let Some(cached) = cache.peek(&key) {
                    return Lookup::Hit(cached);
                }
                let load = Load::new(key, urgency);
                entry.insert(Arc::clone(&load));
                Lookup::Pending(PendingLoad { load, is_new: true })
            }
        }
    }

    /// Takes a load, if no one else has.
    pub(crate) fn take(self: &Arc<Self>, load: &Arc<Load>) -> Option<LoadGuard> {
        let is_first = !load.is_taken.swap(true, Ordering::AcqRel);
        is_first.then(|| LoadGuard { load: Arc::clone(load), loads: Arc::clone(self), is_done: false })
    }
}

/// The right and the duty to do a load.
pub(crate) struct LoadGuard {
    load: Arc<Load>,
    loads: Arc<SingleFlight>,
    /// Whether it was put back or has ended.
    is_done: bool,
}

impl LoadGuard {
    /// The chunk or node.
    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    /// Leaves it to others.
    pub(crate) fn put_back(mut self) {
        self.is_done = true;
        self.load.is_taken.store(false, Ordering::Release);
    }

    /// Gives the outcome to all waiting readers. The content must be in the cache by then.
    pub(crate) fn tell(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        self.is_done = true;
        self.loads.lock().remove(&self.load.key);
        self.load.outcome.send_replace(Some(outcome));
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        if !self.is_done {
            self.end(Err(Arc::new(Error::Interrupted)));
        }
    }
}
