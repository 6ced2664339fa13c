//! A pool of buffers for each thread.
//!
//! A fresh buffer of the size of a chunk costs a page fault every 4 KiB, a good part of the cost of decoding. Chunks
//! return their buffers here when they are dropped. Two limits bound the memory: one for each thread, and one for all
//! of them, because a mount or an owner has many more threads than processors.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Most bytes kept for one thread: two segments' worth.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Smaller buffers are left to the allocator.
const KEPT_BUFFER_BYTES_MIN: usize = 8 << 10;

/// Bytes that all threads keep.
#[derive(Debug)]
struct Budget {
    kept_bytes: AtomicUsize,
    kept_bytes_max: usize,
}

struct Pool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    budget: &'static Budget,
}

/// As much as one thread for each processor may keep.
static BUDGET: LazyLock<Budget> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Budget { kept_bytes: AtomicUsize::new(0), kept_bytes_max: processors * KEPT_BYTES_MAX }
});

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::new(&BUDGET));
}

/// An empty buffer that has room for `bytes`.
pub(crate) fn take(bytes: usize) -> Vec<u8> {
    let kept = if bytes < KEPT_BUFFER_BYTES_MIN { None } else { POOL.with_borrow_mut(Pool::pop) };
    let mut buffer = kept.unwrap_or_default();
    buffer.clear();
    buffer.reserve_exact(bytes);
    buffer
}

/// Returns a buffer to the pool.
pub(crate) fn give(buffer: Vec<u8>) {
    if buffer.capacity() >= KEPT_BUFFER_BYTES_MIN {
        // While the thread ends the pool may be gone already.
        let _ = POOL.try_with(|pool| pool.borrow_mut().push(buffer));
    }
}

/// Calls `borrow` with a buffer of this length and arbitrary content.
pub(crate) fn with<T>(bytes: usize, borrow: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        /// Not in the pool, because these keep their length, so that they need not be zeroed again.
        static WHOLE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }
    let mut buffer = WHOLE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    let result = borrow(&mut buffer[..bytes]);
    WHOLE.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}

impl Pool {
    fn new(budget: &'static Budget) -> Self {
        Self { buffers: Vec::new(), bytes: 0, budget }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        self.budget.release(buffer.capacity());
        Some(buffer)
    }

    fn push(&mut self, buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if self.bytes + bytes <= KEPT_BYTES_MAX && self.budget.reserve(bytes) {
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

impl Budget {
    fn reserve(&self, bytes: usize) -> bool {
        let with_it = |kept: usize| (kept + bytes <= self.kept_bytes_max).then_some(kept + bytes);
        self.kept_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_it).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(kept_bytes_max: usize) -> &'static Budget {
        Box::leak(Box::new(Budget { kept_bytes: AtomicUsize::new(0), kept_bytes_max }))
    }

    fn fill(pool: &mut Pool) -> usize {
        (0..20).for_each(|_| pool.push(Vec::with_capacity(1 << 20)));
        pool.buffers.len()
    }

    #[test]
    fn buffers_come_back_empty() {
        give(vec![1; 20_000]);
        let buffer = take(10_000);
        assert!(buffer.is_empty() && buffer.capacity() >= 10_000);
        let mut pool = Pool::new(budget(KEPT_BYTES_MAX));
        let buffer = vec![1; 20_000];
        let at = buffer.as_ptr();
        pool.push(buffer);
        let again = pool.pop().unwrap();
        assert_eq!(again.as_ptr(), at);
        assert!(pool.pop().is_none());
    }

    #[test]
    fn what_a_thread_and_what_all_threads_keep_is_bounded() {
        let budget = budget(12 << 20);
        let (mut one, mut other) = (Pool::new(budget), Pool::new(budget));
        assert_eq!((fill(&mut one), fill(&mut other)), (8, 4));
        assert!(one.pop().is_some());
        assert_eq!(fill(&mut other), 5, "what one gives up another may keep");
        drop(one);
        assert_eq!(fill(&mut other), 8, "the buffers of a thread that ended are gone");
        drop(other);
        assert_eq!(budget.kept_bytes.load(Ordering::Relaxed), 0);
    }
}
