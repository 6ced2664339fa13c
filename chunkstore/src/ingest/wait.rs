//! Waiting for what other sessions do: a little, then longer.

use std::thread;
use std::time::Duration;

use crate::error::Result;
use crate::progress::Progress;

/// One wait, in moments.
pub(super) struct Wait<'a> {
    progress: &'a Progress,
    next: Duration,
}

impl<'a> Wait<'a> {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);

    pub(super) fn new(progress: &'a Progress) -> Self {
        Self { progress, next: Self::SHORTEST }
    }

    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) if a stop was asked for.
    pub(super) fn a_moment(&mut self) -> Result<()> {
        self.progress.check()?;
        thread::sleep(self.next);
        self.next = (self.next * 2).min(Self::LONGEST);
        Ok(())
    }
}
