//! Locks over ground truth: if their holder panics, the process ends with a message.
//!
//! The state under such a lock decides what is stored, found and collected. A holder that unwinds leaves it half
//! changed, and threads that wait for the rest of the change would wait for ever. The packs and the catalog on disk
//! are valid after a crash at any point, so the owner stops at once and the next one opens the store again.
//!
//! Which locks these are is listed in ARCHITECTURE.md. All other locks, over caches and counters, are `parking_lot`'s:
//! their state is valid after each statement or is only an estimate, so a panic is of no consequence to them.
//!
//! Only exclusive access is guarded: a reader that panics changes nothing.

use std::ops::{Deref, DerefMut};
use std::{process, thread};

pub use parking_lot::Condvar;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A mutex over ground truth.
pub struct TruthMutex<T> {
    what: &'static str,
    inner: Mutex<T>,
}

/// A readers-writer lock over ground truth.
pub struct TruthRwLock<T> {
    what: &'static str,
    inner: RwLock<T>,
}

/// Exclusive access to what a [`TruthMutex`] holds.
pub type TruthGuard<'a, T> = Exclusive<MutexGuard<'a, T>>;
/// Exclusive access to what a [`TruthRwLock`] holds.
pub type TruthWriteGuard<'a, T> = Exclusive<RwLockWriteGuard<'a, T>>;

/// Exclusive access to ground truth. Dropped by a panic, it ends the process before anyone else gets the lock.
pub struct Exclusive<G> {
    // First: fields are dropped in this order.
    _end: EndOnPanic,
    guard: G,
}

struct EndOnPanic {
    what: &'static str,
    was_panicking: bool,
}

impl<T> TruthMutex<T> {
    /// A lock over `value`, which messages call `what`.
    pub const fn new(what: &'static str, value: T) -> Self {
        Self { what, inner: Mutex::new(value) }
    }

    /// Waits for exclusive access.
    pub fn lock(&self) -> TruthGuard<'_, T> {
        Exclusive::new(self.what, self.inner.lock())
    }
}

impl<T> TruthRwLock<T> {
    /// A lock over `value`, which messages call `what`.
    pub const fn new(what: &'static str, value: T) -> Self {
        Self { what, inner: RwLock::new(value) }
    }

    /// Waits for shared access.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.inner.read()
    }

    /// Waits for exclusive access.
    pub fn write(&self) -> TruthWriteGuard<'_, T> {
        Exclusive::new(self.what, self.inner.write())
    }
}

impl<G> Exclusive<G> {
    fn new(what: &'static str, guard: G) -> Self {
        Self { _end: EndOnPanic { what, was_panicking: thread::panicking() }, guard }
    }
}

impl<T> TruthGuard<'_, T> {
    /// Gives the lock away until `changed` is notified and the condition no longer holds.
    pub fn wait_while(&mut self, changed: &Condvar, condition: impl FnMut(&mut T) -> bool) {
        changed.wait_while(&mut self.guard, condition);
    }
}

impl<G: Deref> Deref for Exclusive<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Exclusive<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        // A lock that is taken while a thread unwinds already is taken by a destructor, which completes its change.
        if thread::panicking() && !self.was_panicking {
            eprintln!(
                "a thread panicked while it changed {}: the process ends, so that the store stays valid",
                self.what
            );
            process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    /// Set for the test that this program runs once more, to see it end.
    const CHILD: &str = "TRUTH_LOCK_CHILD";

    /// Runs a test of this file again in a process of its own; returns whether it succeeded, and what it wrote.
    fn outcome_of(test: &str) -> (bool, String) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("truth_lock::tests::{test}")])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_mins(1);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() >= until {
                child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(10));
        }
        let ended = child.wait_with_output().unwrap();
        (ended.status.success(), String::from_utf8(ended.stderr).unwrap())
    }

    #[test]
    fn a_panic_under_the_lock_ends_the_process_and_leaves_no_thread_waiting() {
        if std::env::var_os(CHILD).is_none() {
            let (succeeded, said) = outcome_of("a_panic_under_the_lock_ends_the_process_and_leaves_no_thread_waiting");
            assert!(!succeeded && said.contains("changed the open packs: the process ends"), "{said}");
            return;
        }
        let (lock, changed, (is_locked, locked)) =
            (TruthMutex::new("the open packs", false), Condvar::new(), mpsc::channel());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut is_done = lock.lock();
                is_locked.send(()).unwrap();
                is_done.wait_while(&changed, |is_done| !*is_done);
            });
            locked.recv().unwrap();
            scope.spawn(|| {
                let _is_done = lock.lock();
                panic!("before the change was whole");
            });
        });
    }

    #[test]
    fn a_panic_of_a_writer_ends_the_process() {
        if std::env::var_os(CHILD).is_none() {
            let (succeeded, said) = outcome_of("a_panic_of_a_writer_ends_the_process");
            assert!(!succeeded && said.contains("changed the set of packs: the process ends"), "{said}");
            return;
        }
        let lock = TruthRwLock::new("the set of packs", ());
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = lock.write();
            panic!("before the change was whole");
        }));
    }

    #[test]
    fn a_reader_or_a_destructor_may_unwind() {
        struct Locks<'a>(&'a TruthMutex<u32>);
        impl Drop for Locks<'_> {
            fn drop(&mut self) {
                *self.0.lock() += 1;
            }
        }
        let (mutex, lock) = (TruthMutex::new("a number", 0), TruthRwLock::new("nothing", ()));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _locks = Locks(&mutex);
            let _reading = lock.read();
            panic!("elsewhere");
        }));
        assert!(unwound.is_err());
        assert_eq!(*mutex.lock(), 1);
        drop(lock.write());
    }
}
