//! A pool of buffers for each thread.
//!
//! A fresh buffer of the size of a chunk costs a page fault every 4 KiB, a good part of the cost of decoding. Chunks
//! return their buffers here when they are dropped; a limit bounds the memory of idle threads.

use std::cell::RefCell;

/// Most bytes kept for one thread: two segments' worth.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Smaller buffers are left to the allocator.
const KEPT_BUFFER_BYTES_MIN: usize = 8 << 10;

#[derive(Default)]
struct Pool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
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
    fn pop(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn push(&mut self, buffer: Vec<u8>) {
        if self.bytes + buffer.capacity() <= KEPT_BYTES_MAX {
            self.bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_not_without_bound() {
        let mut buffer = take(20_000);
        buffer.push(1);
        let at = buffer.as_ptr();
        give(buffer);
        let again = take(10_000);
        assert!(again.as_ptr() == at && again.is_empty());
        (0..20).for_each(|_| give(Vec::with_capacity(1 << 20)));
        assert!(POOL.with_borrow(|pool| pool.bytes <= KEPT_BYTES_MAX && pool.buffers.len() == 8));
    }
}
