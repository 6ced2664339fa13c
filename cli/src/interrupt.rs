//! Ctrl-C and SIGTERM: the first asks the running operation to stop, the second ends the process at once.
//!
//! Ending at once is safe as well: what is not published leaves nothing but packs that the next ingest finds.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use chunkstore::progress::Progress;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Exit, Failure, Result};

/// Whether the user asked to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// From now on the first signal stops `progress` and sets `interrupted`.
pub(crate) fn stop_gently(progress: Arc<Progress>, interrupted: Interrupted) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| Failure::io("handling", "signals", error))?;
    thread::spawn(move || {
        for _ in signals.forever() {
            progress.stop();
            if interrupted.0.swap(true, Ordering::Relaxed) {
                std::process::exit(Exit::Interrupted as i32);
            }
            let _ = io::stderr().write_all(b"vmstore: stopping; once more to end at once\n");
        }
    });
    Ok(())
}
