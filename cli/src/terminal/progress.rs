//! Shows the progress of a long operation on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use chunkstore::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output::bytes;
use crate::options::{Global, ProgressMode};

/// A shorter operation shows no bar.
const FIRST: Duration = Duration::from_millis(300);
const REDRAW: Duration = Duration::from_millis(100);
const NEXT_LINE: Duration = Duration::from_secs(1);

/// The unit of an operation's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes, shown with their rate.
    Bytes,
    /// Steps of different kinds, of which only the share is shown.
    Steps,
    /// The position of a transfer in an image, with the bytes moved and saved.
    Transfer,
}

const BAR: &str = "{msg}  {bar:30}  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
const STEPS: &str = "{msg}  {bar:30}  {percent} %";
const TRANSFER: &str = "{msg}  {bar:30}  {percent} %  {eta} left";
const SPINNER: &str = "{msg}  {spinner}  {binary_bytes}  {binary_bytes_per_sec}";

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Display {
    Nothing,
    Bar,
    Lines,
}

impl Display {
    pub(super) fn of(global: &Global) -> Self {
        match (global.progress, io::stderr().is_terminal()) {
            (ProgressMode::Never, _) | (ProgressMode::Auto, false) => Self::Nothing,
            (ProgressMode::Auto, true) if global.common.quiet => Self::Nothing,
            (_, true) => Self::Bar,
            (ProgressMode::Always, false) => Self::Lines,
        }
    }
}

/// A running operation and its name.
#[derive(Clone, Copy)]
pub(super) struct Watched<'a> {
    pub(super) label: &'a str,
    pub(super) unit: Unit,
    pub(super) progress: &'a Progress,
}

/// Does `work` while its progress is shown.
pub(super) fn watch<T>(display: Display, console: &MultiProgress, watched: Watched<'_>, work: impl FnOnce() -> T) -> T {
    if display == Display::Nothing {
        return work();
    }
    thread::scope(|scope| {
        // Dropping `working` ends the other thread, also when `work` panics.
        let (working, ended) = mpsc::channel();
        scope.spawn(move || match display {
            Display::Bar => draw_bar(console, watched, &ended),
            _ => print_lines(watched, &ended),
        });
        let result = work();
        drop(working);
        result
    })
}

fn goes_on(ended: &Receiver<()>, wait: Duration) -> bool {
    ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout)
}

fn draw_bar(console: &MultiProgress, watched: Watched<'_>, ended: &Receiver<()>) {
    if !goes_on(ended, FIRST) {
        return;
    }
    let bar = console.add(ProgressBar::no_length().with_message(watched.label.to_owned()));
    let mut total_bytes = None;
    let started = Instant::now();
    loop {
        let total = watched.progress.total_bytes();
        if total_bytes != Some(total) {
            total_bytes = Some(total);
            set_total(&bar, watched.unit, total);
        }
        bar.set_position(watched.progress.done_bytes());
        if watched.unit == Unit::Transfer {
            bar.set_message(format!("{}  {}", watched.label, moved(watched.progress, started.elapsed())));
        }
        bar.tick();
        if !goes_on(ended, REDRAW) {
            break bar.finish_and_clear();
        }
    }
}

/// The text for what a transfer has moved.
fn moved(progress: &Progress, elapsed: Duration) -> String {
    let rate = progress.moved_bytes() as f64 / elapsed.as_secs_f64().max(0.1);
    format!("{} ({}/s), saved {}", bytes(progress.moved_bytes()), bytes(rate as u64), bytes(progress.saved_bytes()))
}

fn set_total(bar: &ProgressBar, unit: Unit, total: u64) {
    let template = match unit {
        Unit::Steps => STEPS,
        Unit::Transfer => TRANSFER,
        Unit::Bytes if total == 0 => SPINNER,
        Unit::Bytes => BAR,
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the templates above are well formed"));
    bar.set_length(total);
    bar.reset_eta();
}

fn print_lines(watched: Watched<'_>, ended: &Receiver<()>) {
    let Watched { label, unit, progress } = watched;
    let started = Instant::now();
    while goes_on(ended, NEXT_LINE) {
        let mut line = line(label, unit, progress.done_bytes(), progress.total_bytes());
        if unit == Unit::Transfer {
            line = format!("{}, {}\n", line.trim_end(), moved(progress, started.elapsed()));
        }
        // A closed standard error leaves no way to report it.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn line(label: &str, unit: Unit, done: u64, total: u64) -> String {
    let percent = (u128::from(done) * 100).checked_div(u128::from(total));
    match (unit, percent) {
        (Unit::Steps | Unit::Transfer, percent) => format!("{label}: {} %\n", percent.unwrap_or(0)),
        (Unit::Bytes, Some(percent)) => format!("{label}: {percent} %, {} of {}\n", bytes(done), bytes(total)),
        (Unit::Bytes, None) => format!("{label}: {}\n", bytes(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line("ingest", Unit::Bytes, 1 << 20, 4 << 20), "ingest: 25 %, 1.0 MiB of 4.0 MiB\n");
        assert_eq!(line("ingest", Unit::Bytes, 1 << 20, 0), "ingest: 1.0 MiB\n");
        assert_eq!(line("gc", Unit::Steps, u64::MAX, u64::MAX), "gc: 100 %\n");
        assert_eq!(line("gc", Unit::Steps, 0, 0), "gc: 0 %\n");
    }

    #[test]
    fn templates_are_well_formed() {
        for template in [BAR, STEPS, TRANSFER, SPINNER] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
