//! A lock over ranges of blocks: changes of the same blocks are made one after another, in order of arrival.
//!
//! Completing a block from the layers below takes time, during which the block must not change. Operations on the whole
//! disk, such as adding a layer, lock all blocks, and so wait until the running writes have ended.

use parking_lot::{Mutex, MutexGuard};
use std::ops::Range;

use tokio::sync::Notify;

/// Allows changes of disjoint ranges at the same time.
#[derive(Default)]
pub(super) struct RangeLock {
    queue: Mutex<Queue>,
    freed: Notify,
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// In order of arrival, including those that wait.
    entries: Vec<(u64, Range<u64>)>,
}

/// The right to change some blocks; released when dropped.
#[must_use]
pub(super) struct RangeGuard<'a> {
    range_lock: &'a RangeLock,
    ticket: u64,
}

impl RangeLock {
    /// Waits until no earlier lock overlaps these blocks.
    pub(super) async fn lock(&self, blocks: Range<u64>) -> RangeGuard<'_> {
        let guard = self.enter(blocks);
        loop {
            let freed = self.freed.notified();
            if self.queue().may_lock(guard.ticket) {
                return guard;
            }
            freed.await;
        }
    }

    /// Locks the whole disk.
    pub(super) async fn lock_all(&self) -> RangeGuard<'_> {
        self.lock(0..u64::MAX).await
    }

    fn enter(&self, blocks: Range<u64>) -> RangeGuard<'_> {
        let mut queue = self.queue();
        let ticket = queue.next;
        queue.next += 1;
        queue.entries.push((ticket, blocks));
        RangeGuard { range_lock: self, ticket }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

impl Queue {
    fn may_lock(&self, ticket: u64) -> bool {
        let at = self.position(ticket);
        let wanted = &self.entries[at].1;
        self.entries[..at].iter().all(|(_, before)| before.end <= wanted.start || wanted.end <= before.start)
    }

    fn position(&self, ticket: u64) -> usize {
        self.entries.binary_search_by_key(&ticket, |(ticket, _)| *ticket).expect("an entry stays until it is dropped")
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.range_lock.queue();
        let at = queue.position(self.ticket);
        queue.entries.remove(at);
        drop(queue);
        self.range_lock.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<'a>(waiting: Pin<&mut impl Future<Output = RangeGuard<'a>>>) -> Option<RangeGuard<'a>> {
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn who_meets_waits_and_others_pass() {
        let range_lock = RangeLock::default();
        let first = poll(pin!(range_lock.lock(0..4))).unwrap();
        let mut second = pin!(range_lock.lock(3..5));
        assert!(poll(second.as_mut()).is_none());
        let beside = poll(pin!(range_lock.lock(5..6))).unwrap();
        drop(first);
        let second = poll(second).unwrap();
        drop((second, beside));
        assert!(range_lock.queue().entries.is_empty());
    }

    #[test]
    fn nobody_overtakes_who_waits_for_all_and_who_gives_up_is_forgotten() {
        let range_lock = RangeLock::default();
        let writing = poll(pin!(range_lock.lock(0..1))).unwrap();
        let mut late = pin!(range_lock.lock(7..8));
        {
            let mut alone = Box::pin(range_lock.lock_all());
            assert!(poll(alone.as_mut()).is_none());
            assert!(poll(late.as_mut()).is_none());
        }
        assert!(poll(late).is_some());
        drop(writing);
        assert!(poll(pin!(range_lock.lock_all())).is_some());
    }
}
