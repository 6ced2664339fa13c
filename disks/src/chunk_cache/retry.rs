//! How long a read retries while the store's owner restarts or the upstream is away.

use std::time::Duration;

use chunkstore::Backoff;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};

const DELAYS: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// The retries of one read. It holds no thread while it waits, and may first be polled outside the runtime.
pub(crate) struct Retry {
    runtime: Handle,
    until: Instant,
    delays: Backoff,
}

impl Retry {
    /// Retries until `timeout` from now.
    pub(crate) fn new(runtime: &Handle, timeout: Duration) -> Self {
        let _entered = runtime.enter();
        Self { runtime: runtime.clone(), until: Instant::now() + timeout, delays: DELAYS }
    }

    /// Waits before the next attempt, longer each time. Returns false at once if no time is left.
    pub(crate) async fn pause(&mut self) -> bool {
        let pause = {
            let _entered = self.runtime.enter();
            let left = self.until.saturating_duration_since(Instant::now());
            let Some(delay) = self.delays.next_within(left) else { return false };
            sleep(delay)
        };
        pause.await;
        true
    }

    /// The result of `work`, or none if it takes too long.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let limited = {
            let _entered = self.runtime.enter();
            timeout_at(self.until, work)
        };
        limited.await.ok()
    }
}
