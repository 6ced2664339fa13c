//! Logs to standard error, above the progress bar if there is one.

use std::io::{self, IsTerminal, Write};

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::options::{Common, LogFormat};

/// Overrides what `-v` and `--quiet` say, in the syntax of tracing's filters: `chunkstore=debug`.
const FILTER_VARIABLE: &str = "VMSTORE_LOG";

/// Starts logging. A log file has times and more detail.
pub(crate) fn start(options: &Common, console: &MultiProgress, to_file: bool) {
    let console = console.clone();
    let filter = EnvFilter::builder()
        .with_default_directive(level(options, to_file).into())
        .with_env_var(FILTER_VARIABLE)
        .from_env_lossy();
    let colors = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(colors)
        // It would report a failed write to standard error on standard error, and panic.
        .log_internal_errors(false)
        .with_writer(move || BesideBar(console.clone()));
    match options.log_format {
        LogFormat::Text if options.verbose == 0 && !to_file => builder.without_time().init(),
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn level(options: &Common, to_file: bool) -> LevelFilter {
    match (options.quiet, options.verbose.max(to_file.into())) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    }
}

/// Hides the bar while a line is written.
struct BesideBar(MultiProgress);

impl Write for BesideBar {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
