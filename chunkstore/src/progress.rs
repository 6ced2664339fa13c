//! Progress of a long operation, and the request to stop it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// [`Progress::sleep`] checks this often whether a stop was asked for.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Counters that a long operation raises and a caller may watch from another thread, and a request to stop.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    saved_bytes: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Bytes done so far.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes to be done in all; 0 while unknown.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that a transfer moved over its link.
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that a transfer need not move.
    pub fn saved_bytes(&self) -> u64 {
        self.saved_bytes.load(Ordering::Relaxed)
    }

    /// Sets what a transfer moved and saved.
    pub fn set_transfer(&self, moved_bytes: u64, saved_bytes: u64) {
        self.moved_bytes.store(moved_bytes, Ordering::Relaxed);
        self.saved_bytes.store(saved_bytes, Ordering::Relaxed);
    }

    /// Asks the operation to end soon with [`Error::Interrupted`]. Safe to call from a signal handler.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Begins anew with a known total.
    pub fn set_total(&self, bytes: u64) {
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Raises the counter.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the counter, where the position rather than the step is known.
    pub fn reach(&self, bytes: u64) {
        self.done_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Sets both counters to those of the same operation elsewhere.
    pub fn follow(&self, done_bytes: u64, total_bytes: u64) {
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Interrupted`] if a stop was asked for.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Sleeps for `delay`, in parts.
    ///
    /// # Errors
    /// [`Error::Interrupted`] soon after a stop was asked for.
    pub fn sleep(&self, delay: Duration) -> Result<()> {
        let mut left = delay;
        loop {
            self.check()?;
            if left.is_zero() {
                return Ok(());
            }
            let part = left.min(CHECK_EVERY);
            thread::sleep(part);
            left -= part;
        }
    }
}
