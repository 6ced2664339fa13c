//! A limit on how fast a connection sends and receives.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// The burst that may pass at once after a pause, as time at the limited rate.
const BURST: Duration = Duration::from_millis(50);

/// A token bucket (one for all connections of a command).
#[derive(Debug)]
pub struct RateLimit {
    /// 0 stands for no limit.
    bytes_per_s: AtomicU64,
    /// The time at which everything that has passed is paid for.
    paid: Mutex<Instant>,
}

impl RateLimit {
    /// A limit of this many bytes a second.
    ///
    /// # Panics
    /// If it is 0.
    pub fn new(bytes_per_s: u64) -> Self {
        assert!(bytes_per_s > 0, "callers refuse a rate of nothing");
        Self { bytes_per_s: AtomicU64::new(bytes_per_s), paid: Mutex::new(Instant::now()) }
    }

    /// No limit, until there is one.
    pub fn unlimited() -> Self {
        Self { bytes_per_s: AtomicU64::new(0), paid: Mutex::new(Instant::now()) }
    }

    /// Changes the limit for what passes from now on; `None` takes it away.
    pub fn set(&self, bytes_per_s: Option<NonZeroU64>) {
        self.bytes_per_s.store(bytes_per_s.map_or(0, NonZeroU64::get), Ordering::Relaxed);
    }

    /// Waits until this many bytes may pass.
    pub(crate) async fn pass(&self, bytes: u64) {
        sleep_until(self.book(bytes, Instant::now())).await;
    }

    /// Whether a transfer waits for the limit.
    pub(crate) fn holds_back(&self) -> bool {
        *self.paid.lock() > Instant::now()
    }

    /// Records that bytes pass, and returns the time at which they may.
    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let mut paid = self.paid.lock();
        let start = (*paid).max(now.checked_sub(BURST).unwrap_or(now));
        *paid = match self.bytes_per_s.load(Ordering::Relaxed) {
            0 => start,
            bytes_per_s => start + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64),
        };
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_bytes_keep_to_the_rate() {
        let limit = RateLimit::new(1000);
        let now = Instant::now() + Duration::from_secs(10);
        let late = |bytes| limit.book(bytes, now).saturating_duration_since(now).as_millis();
        assert_eq!(late(1000), 0, "after a pause at once");
        assert_eq!(late(500), 950);
        assert_eq!(late(500), 1450);
        assert_eq!(late(0), 1950);
        limit.set(None);
        assert_eq!((late(1 << 40), late(0)), (1950, 1950), "from now on there is none");
        limit.set(NonZeroU64::new(100));
        assert_eq!((late(100), late(0)), (1950, 2950));
    }
}
