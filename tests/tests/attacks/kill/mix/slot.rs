//! A place for one command at a time, where it can be killed by another thread.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tests::{Running, stderr};

use crate::kill::UNREACHABLE;

const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The signal of `kill -9`.
const SIGKILL: i32 = 9;

/// One worker's commands, one after another.
pub(crate) struct Slot {
    state: Mutex<State>,
}

struct State {
    running: Option<Running>,
    /// Whether the command that runs was killed.
    is_killed: bool,
    /// How long the last command took that nothing disturbed.
    whole: Duration,
}

impl Default for Slot {
    fn default() -> Self {
        let whole = Duration::from_millis(100);
        Self { state: Mutex::new(State { running: None, is_killed: false, whole }) }
    }
}

impl Slot {
    /// Runs a command to its end, whatever that is. It must be a good one, or that of a command that was killed, or
    /// whose owner was: that one must say so. `allows` may allow other ends.
    pub(crate) fn run(&self, command: &mut Command, allows: impl Fn(&Output) -> bool) -> Output {
        let started = Instant::now();
        let running = Running::start(command);
        self.state.lock().unwrap().running = Some(running);
        let (output, is_killed) = self.wait();
        let (code, said) = (output.status.code(), stderr(&output));
        let is_right = match code {
            Some(0) => true,
            Some(UNREACHABLE) => said.lines().any(|line| line.starts_with("vmstore: ")),
            Some(_) => allows(&output),
            None => is_killed && output.status.signal() == Some(SIGKILL),
        };
        assert!(is_right && !said.contains("panicked"), "{command:?}: {}: {said}", output.status);
        if code == Some(0) {
            self.state.lock().unwrap().whole = started.elapsed();
        }
        output
    }

    fn wait(&self) -> (Output, bool) {
        loop {
            thread::sleep(LOOK_EVERY);
            let mut state = self.state.lock().unwrap();
            let running = state.running.as_mut().expect("only this takes it");
            if !running.is_running() {
                let output = state.running.take().expect("it is there").wait();
                return (output, std::mem::take(&mut state.is_killed));
            }
        }
    }

    /// Whether a command runs.
    pub(crate) fn is_busy(&self) -> bool {
        self.state.lock().unwrap().running.as_mut().is_some_and(Running::is_running)
    }

    /// How long a command takes that nothing disturbs.
    pub(crate) fn whole(&self) -> Duration {
        self.state.lock().unwrap().whole
    }

    /// Kills the command that runs; returns whether there was one.
    pub(crate) fn kill(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let hit = state.running.as_mut().is_some_and(|running| {
            let runs = running.is_running();
            running.child().kill().unwrap();
            runs
        });
        state.is_killed |= hit;
        hit
    }
}
