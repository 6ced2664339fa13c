//! Reusable buffers for reads: fresh memory of a large read costs as much in page faults as the rest of the read.

use parking_lot::{Mutex, MutexGuard};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Memory of this size and less is quick to get, and is not kept.
const SMALL_BYTES: usize = 64 << 10;
/// Most that are kept for later.
const KEPT_MAX: usize = 32;

/// Buffers that wait to be used again, the one used last on top.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer, which goes back when it is dropped. What it holds at first is anything.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    bytes: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer of so many bytes.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Buffer {
        let kept = if bytes > SMALL_BYTES { self.lock().pop() } else { None };
        let mut memory = kept.unwrap_or_default();
        if memory.len() < bytes {
            memory = vec![0; bytes];
        }
        Buffer { memory, bytes, home: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.bytes]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.len() > SMALL_BYTES {
            let mut kept = self.home.lock();
            if kept.len() < KEPT_MAX {
                kept.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ones_are_used_again_and_only_so_many_are_kept() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(1 << 20);
        first.fill(7);
        let at = first.as_ptr();
        drop(first);
        let again = buffers.take(200_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 200_000));
        drop(again);
        drop((0..2 * KEPT_MAX).map(|_| buffers.take(100_000)).collect::<Vec<_>>());
        assert_eq!(buffers.lock().len(), KEPT_MAX);
        let kept = buffers.lock().len();
        drop(buffers.take(SMALL_BYTES));
        assert_eq!((buffers.lock().len(), buffers.take(0).len()), (kept, 0));
        assert_eq!(buffers.take(2 << 20).len(), 2 << 20, "larger than any that is kept");
    }
}
