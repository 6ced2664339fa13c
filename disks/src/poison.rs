//! A panic in the code of one disk fails that disk, and nothing else.
//!
//! A panic may leave state half changed, so each later call on that clone or snapshot fails with EIO until it is opened
//! again. Locks that hold the state of one disk stay poisoned ([`lock`]). Locks over caches and queues are
//! `parking_lot`'s: a panic leaves nothing half changed there, and all other disks still need them.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;

use chunkstore::{Error, Result};

/// Why a poisoned lock is not used: its holder's call turns this panic into an error, too.
pub(crate) const POISONED: &str = "a panic has interrupted a change of this disk";

/// Whether a panic has interrupted a call on a disk.
pub(crate) struct Poison {
    /// Name of the disk in logs and errors.
    name: String,
    is_set: AtomicBool,
}

impl Poison {
    /// For a disk of this name; not set.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), is_set: AtomicBool::new(false) }
    }

    /// Fails if it is set.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set.load(Ordering::SeqCst) { Err(self.error()) } else { Ok(()) }
    }

    /// Does `work`, unless the poison is set. A panic sets it and becomes an error.
    pub(crate) async fn contain<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.check()?;
        let mut work = pin!(work);
        poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
            polled.unwrap_or_else(|_| Poll::Ready(Err(self.set())))
        })
        .await
    }

    /// As [`Poison::contain`], for work that blocks.
    pub(crate) fn contain_blocking<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check()?;
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(self.set()))
    }

    fn set(&self) -> Error {
        if !self.is_set.swap(true, Ordering::SeqCst) {
            tracing::error!("{}: a panic: it fails with an I/O error until it is opened again", self.name);
        }
        self.error()
    }

    fn error(&self) -> Error {
        Error::io("using", &self.name, io::Error::other(POISONED))
    }
}

/// Locks the state of one disk.
pub(crate) fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().expect(POISONED)
}
