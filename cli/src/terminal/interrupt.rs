//! Ctrl-C and SIGTERM: the first asks the running operation to stop, the second ends the process at once.
//!
//! Ending at once is safe as well: what is not published leaves nothing but packs that the next ingest finds.

use std::io::{self, Write};
use std::sync::{Arc, Once};
use std::thread;

use chunkstore::Progress;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Exit, Failure, Result};

/// The running operation's progress, which signals stop once they are handled.
#[derive(Clone)]
pub(crate) struct Interrupt {
    progress: Arc<Progress>,
    handling: Arc<Once>,
}

impl Interrupt {
    pub(crate) fn new() -> Self {
        Self { progress: Arc::default(), handling: Arc::new(Once::new()) }
    }

    /// The counters of the running operation, and the request to stop it.
    pub(crate) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Whether the user asked to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.progress.check().is_err()
    }

    /// From now on a signal asks the operation to stop; until then it ends the process.
    pub(crate) fn handle_signals(&self) -> Result<()> {
        let mut handled = Ok(());
        self.handling.call_once(|| handled = stop_gently(self.clone()));
        handled
    }
}

fn stop_gently(interrupt: Interrupt) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| Failure::io("handling", "signals", error))?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if interrupt.is_set() {
                std::process::exit(Exit::Interrupted as i32);
            }
            interrupt.progress.stop();
            let _ = io::stderr().write_all(b"vmstore: stopping; interrupt again to end at once\n");
        }
    });
    Ok(())
}
