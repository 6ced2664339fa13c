//! The user's side of a running command: results on standard output, logs and progress on standard error, Ctrl-C.
//!
//! Imports `options` and `failure`, and knows neither stores nor commands.

pub(crate) mod interrupt;
pub(crate) mod log_file;
pub(crate) mod logging;
pub(crate) mod output;
mod progress;

use std::sync::Arc;

use chunkstore::Progress;
use indicatif::MultiProgress;
use serde::Serialize;

use self::interrupt::Interrupt;
pub(crate) use self::progress::Unit;
use self::progress::{Display, Watched};
use crate::failure::Result;
use crate::options::Global;

/// The output of a running command, its progress and its interruption.
pub(crate) struct Terminal {
    json: bool,
    quiet: bool,
    display: Display,
    console: MultiProgress,
    interrupt: Interrupt,
}

impl Terminal {
    pub(crate) fn new(global: &Global, console: MultiProgress, interrupt: Interrupt) -> Self {
        Self { json: global.common.json, quiet: global.common.quiet, display: Display::of(global), console, interrupt }
    }

    /// Whether results are printed as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result that the user asked for.
    pub(crate) fn result(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { output::json_line(json) } else { text() };
        output::print(text.as_bytes())
    }

    /// Prints a report of what was done, unless `--quiet` suppresses it.
    pub(crate) fn report(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.quiet && !self.json { Ok(()) } else { self.result(json, text) }
    }

    /// The counters of the running operation, and the request to stop it.
    pub(crate) fn progress(&self) -> &Arc<Progress> {
        self.interrupt.progress()
    }

    /// Does `work`, which counts in `unit`, while its progress is shown.
    pub(crate) fn watch<T>(&self, label: &str, unit: Unit, work: impl FnOnce(&Progress) -> T) -> T {
        let watched = Watched { label, unit, progress: self.progress() };
        progress::watch(self.display, &self.console, watched, || work(self.progress()))
    }
}
