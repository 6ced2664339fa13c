//! Shows on standard error how far a long operation is.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use chunkstore::progress::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::args::{Global, ProgressMode};
use crate::output::bytes;

/// What is over before that shows no bar.
const FIRST: Duration = Duration::from_millis(300);
const REDRAW: Duration = Duration::from_millis(100);
const NEXT_LINE: Duration = Duration::from_secs(1);

const BAR: &str = "{msg}  {bar:30}  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
const SPINNER: &str = "{msg}  {spinner}  {binary_bytes}  {binary_bytes_per_sec}";

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Display {
    Nothing,
    Bar,
    Lines,
}

impl Display {
    fn of(global: &Global) -> Self {
        match (global.progress, io::stderr().is_terminal()) {
            (ProgressMode::Never, _) | (ProgressMode::Auto, false) => Self::Nothing,
            (ProgressMode::Auto, true) if global.quiet => Self::Nothing,
            (_, true) => Self::Bar,
            (ProgressMode::Always, false) => Self::Lines,
        }
    }
}

/// Does `work` while its progress is shown under the name `label`.
pub(crate) fn watch<T>(
    global: &Global,
    console: &MultiProgress,
    label: &str,
    progress: &Progress,
    work: impl FnOnce() -> T,
) -> T {
    let display = Display::of(global);
    if display == Display::Nothing {
        return work();
    }
    thread::scope(|scope| {
        // Dropping `working` ends the other thread, also when `work` panics.
        let (working, ended) = mpsc::channel();
        scope.spawn(move || match display {
            Display::Bar => draw_bar(console, label, progress, &ended),
            _ => print_lines(label, progress, &ended),
        });
        let result = work();
        drop(working);
        result
    })
}

fn goes_on(ended: &Receiver<()>, wait: Duration) -> bool {
    ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout)
}

fn draw_bar(console: &MultiProgress, label: &str, progress: &Progress, ended: &Receiver<()>) {
    if !goes_on(ended, FIRST) {
        return;
    }
    let bar = console.add(ProgressBar::no_length().with_message(label.to_owned()));
    let mut total_bytes = None;
    loop {
        let total = progress.total_bytes();
        if total_bytes != Some(total) {
            total_bytes = Some(total);
            set_total(&bar, total);
        }
        bar.set_position(progress.done_bytes());
        bar.tick();
        if !goes_on(ended, REDRAW) {
            break bar.finish_and_clear();
        }
    }
}

fn set_total(bar: &ProgressBar, total_bytes: u64) {
    let template = if total_bytes == 0 { SPINNER } else { BAR };
    bar.set_style(ProgressStyle::with_template(template).expect("the templates above are well formed"));
    bar.set_length(total_bytes);
    bar.reset_eta();
}

fn print_lines(label: &str, progress: &Progress, ended: &Receiver<()>) {
    while goes_on(ended, NEXT_LINE) {
        // Nobody is left to tell if standard error is closed.
        let _ = io::stderr().write_all(line(label, progress.done_bytes(), progress.total_bytes()).as_bytes());
    }
}

fn line(label: &str, done_bytes: u64, total_bytes: u64) -> String {
    match (u128::from(done_bytes) * 100).checked_div(u128::from(total_bytes)) {
        Some(percent) => format!("{label}: {percent} %, {} of {}\n", bytes(done_bytes), bytes(total_bytes)),
        None => format!("{label}: {}\n", bytes(done_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line("ingest web01", 1 << 20, 4 << 20), "ingest web01: 25 %, 1.0 MiB of 4.0 MiB\n");
        assert_eq!(line("ingest web01", 1 << 20, 0), "ingest web01: 1.0 MiB\n");
        assert!(line("x", u64::MAX, u64::MAX).contains("100 %"));
    }

    #[test]
    fn templates_are_well_formed() {
        for template in [BAR, SPINNER] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
