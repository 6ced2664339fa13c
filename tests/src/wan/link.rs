//! One direction of a link: when a byte may leave, when it arrives, and what has passed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that may wait before the link in addition to those that fill it: 64 KiB, and 5 ms of the rate, more than a
/// thread oversleeps.
const QUEUE_BYTES: u64 = 64 << 10;
const QUEUE_TIME: Duration = Duration::from_millis(5);
/// Bytes that a link without a rate holds.
const UNLIMITED_HELD_BYTES: u64 = 64 << 20;
/// The most and the least bytes that are read at once; between them, what passes in a millisecond.
const PIECE_BYTES_MAX: u64 = 256 << 10;
const PIECE_BYTES_MIN: u64 = 1460;

/// How long and how narrow a link is, the same both ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Time there and back.
    pub rtt: Duration,
    /// Bytes a second in each direction; none if it has no limit.
    pub rate: Option<u64>,
}

impl Link {
    /// A link of `mbit` megabits a second and `rtt_ms` milliseconds there and back.
    pub fn of(mbit: u64, rtt_ms: u64) -> Self {
        Self { rtt: Duration::from_millis(rtt_ms), rate: Some(mbit * 125_000) }
    }

    /// Neither delay nor limit.
    pub fn free() -> Self {
        Self { rtt: Duration::ZERO, rate: None }
    }

    fn one_way(self) -> Duration {
        self.rtt / 2
    }

    /// The most bytes of one read: about a millisecond's.
    pub(super) fn piece_bytes(self) -> usize {
        self.rate.map_or(PIECE_BYTES_MAX, |rate| (rate / 1000).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)) as usize
    }

    fn time_of(self, bytes: u64) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate as f64))
    }

    /// How far ahead of the link's end bytes may be taken in.
    fn queue_time(self) -> Duration {
        self.time_of(QUEUE_BYTES) + QUEUE_TIME
    }

    /// Bytes of one connection that are on the way at most: the bandwidth-delay product and the queue. Twice that,
    /// because a receiver's thread that is late must not hold up the link.
    fn held_bytes_max(self) -> u64 {
        let filled = |rate: u64| (rate as f64 * (self.one_way() + self.queue_time()).as_secs_f64()) as u64;
        self.rate.map_or(UNLIMITED_HELD_BYTES, |rate| 2 * filled(rate) + 2 * PIECE_BYTES_MAX)
    }
}

/// The traffic of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes handed to the receiving end.
    pub bytes: u64,
    /// From the first byte's leaving to the last byte's; none if less than one piece has passed.
    pub elapsed: Option<Duration>,
    link: Link,
}

impl Usage {
    /// The share of the time since the first byte in which the link was busy, until the last one; none without a rate.
    pub fn busy(&self) -> Option<f64> {
        self.busy_in(self.elapsed?)
    }

    /// The share of this time in which the link was busy; none without a rate.
    pub fn busy_in(&self, elapsed: Duration) -> Option<f64> {
        self.link.rate.map(|rate| self.bytes as f64 / (rate as f64 * elapsed.as_secs_f64()))
    }
}

/// One direction, shared by all connections.
#[derive(Debug)]
pub(super) struct Lane {
    link: Link,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last byte that was let in leaves the queue.
    free_at: Option<Instant>,
    bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Bytes that may still pass before all is cut.
    left_until_cut: Option<u64>,
}

/// How much of a piece may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// All of it.
    All,
    /// So many bytes, and then the connections are to be cut.
    ThenCut(u64),
}

impl Lane {
    pub(super) fn new(link: Link) -> Self {
        Self { link, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.lock();
        let elapsed = state.first.zip(state.last).map(|(first, last)| last - first).filter(|time| !time.is_zero());
        Usage { bytes: state.bytes, elapsed, link: self.link }
    }

    pub(super) fn count_anew(&self) {
        let mut state = self.lock();
        (state.bytes, state.first, state.last) = (0, None, None);
    }

    pub(super) fn cut_after(&self, bytes: u64) {
        self.lock().left_until_cut = Some(bytes);
    }

    /// Waits until the queue has room. It is asked before a piece is read, so that a sender is held up by the link.
    pub(super) fn wait_for_room(&self) {
        while let Some(wait) = self.wait_needed() {
            thread::sleep(wait);
        }
    }

    fn wait_needed(&self) -> Option<Duration> {
        let latest = Instant::now() + self.link.queue_time();
        self.lock().free_at.and_then(|free_at| free_at.checked_duration_since(latest)).filter(|wait| !wait.is_zero())
    }

    /// Lets bytes in behind all that wait; returns when they arrive at the other side.
    pub(super) fn enter(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let mut state = self.lock();
        let start = state.free_at.map_or(now, |free_at| free_at.max(now));
        let end = start + self.link.time_of(bytes);
        state.free_at = Some(end);
        state.first.get_or_insert(start);
        end + self.link.one_way()
    }

    /// Counts bytes that are about to be handed to the receiver.
    pub(super) fn pass(&self, bytes: u64) -> Pass {
        let mut state = self.lock();
        let passed = state.left_until_cut.map_or(bytes, |left| left.min(bytes));
        state.bytes += passed;
        state.last = Some(Instant::now().checked_sub(self.link.one_way()).unwrap_or_else(Instant::now));
        match state.left_until_cut {
            Some(left) if left <= bytes => {
                state.left_until_cut = None;
                Pass::ThenCut(left)
            }
            Some(left) => {
                state.left_until_cut = Some(left - bytes);
                Pass::All
            }
            None => Pass::All,
        }
    }
}

/// Bytes that one connection has on the way in one direction, bounded.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Mutex<u64>,
    changed: Condvar,
    bytes_max: u64,
}

impl Held {
    pub(super) fn new(link: Link) -> Self {
        Self { bytes: Mutex::new(0), changed: Condvar::new(), bytes_max: link.held_bytes_max() }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the bound is exceeded.
    pub(super) fn wait_for_room(&self) {
        let held = self.lock();
        drop(self.changed.wait_while(held, |bytes| *bytes > self.bytes_max));
    }

    pub(super) fn add(&self, bytes: u64) {
        *self.lock() += bytes;
    }

    pub(super) fn remove(&self, bytes: u64) {
        *self.lock() -= bytes;
        self.changed.notify_one();
    }

    /// Lets the reader go on for good: nothing will be removed any more.
    pub(super) fn give_up(&self) {
        *self.lock() = 0;
        self.changed.notify_one();
    }
}
