//! The tokio runtime that drives connections: made at the first use, ended within a bound.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::failure::{Failure, Result};

/// How long the end of a command waits for threads that still work.
const THREADS_END_WITHIN: Duration = Duration::from_secs(2);

/// A runtime that is made when it is needed.
#[derive(Default)]
pub(super) struct LazyRuntime(OnceLock<Runtime>);

impl LazyRuntime {
    /// The runtime.
    pub(super) fn get(&self) -> Result<&Runtime> {
        if let Some(runtime) = self.0.get() {
            return Ok(runtime);
        }
        let made = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let made = made.map_err(|error| Failure::io("starting", "threads", error))?;
        Ok(self.0.get_or_init(|| made))
    }
}

impl Drop for LazyRuntime {
    /// A thread that reads for a transfer may wait for an answer that never comes; the end does not wait for it.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(THREADS_END_WITHIN);
        }
    }
}
