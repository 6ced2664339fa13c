//! The one policy for trying again: a short delay first, twice as long each time, up to a longest one.
//!
//! This file counts delays and, for plain threads, sleeps. It decides neither which error deserves another attempt nor
//! how many there are: a caller that gives up after some time passes what is left of it, by its own clock.
//! ARCHITECTURE.md lists which layer retries what.

use std::time::Duration;

use crate::error::Result;
use crate::progress::Progress;

/// The delays between attempts, without end.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays of `first`, twice that, and so on, none above `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Begins again with the first delay, after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next delay. The caller waits.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.longest);
        delay
    }

    /// [`Backoff::next_delay`], or `None` if it is longer than the time left: then no attempt can follow it.
    pub fn next_within(&mut self, left: Duration) -> Option<Duration> {
        (self.next <= left).then(|| self.next_delay())
    }

    /// Sleeps for the next delay.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) soon after a stop was asked for.
    pub fn sleep(&mut self, progress: &Progress) -> Result<()> {
        progress.sleep(self.next_delay())
    }
}

#[cfg(test)]
mod tests {
    use std::{iter, thread};

    use super::*;
    use crate::Error;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_double_up_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(20 * MS, 100 * MS);
        let delays: Vec<_> = iter::repeat_with(|| backoff.next_delay()).take(5).collect();
        assert_eq!(delays, [20 * MS, 40 * MS, 80 * MS, 100 * MS, 100 * MS]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), 20 * MS);
    }

    #[test]
    fn no_delay_outlasts_the_time_left() {
        let mut backoff = Backoff::new(20 * MS, 100 * MS);
        assert_eq!(backoff.next_within(20 * MS), Some(20 * MS));
        assert_eq!(backoff.next_within(39 * MS), None);
        assert_eq!(backoff.next_within(40 * MS), Some(40 * MS), "a delay that was not taken comes again");
    }

    #[test]
    fn a_stop_ends_a_long_sleep() {
        let progress = Progress::default();
        let mut backoff = Backoff::new(Duration::from_hours(1), Duration::from_hours(1));
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| backoff.sleep(&progress));
            progress.stop();
            assert!(matches!(sleeper.join().unwrap(), Err(Error::Interrupted)));
        });
    }
}
