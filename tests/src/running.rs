//! Processes that run in parallel with a test: commands, and owners of stores. They end with the test.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Vmstore, stderr};

/// Longest wait for an event.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until a condition holds; fails with its name if it does not in time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what} did not happen in {} s", PATIENCE.as_secs());
        thread::sleep(LOOK_EVERY);
    }
}

/// A command that runs in parallel with the test.
#[derive(Debug)]
pub struct Running {
    /// None once it has been waited for.
    child: Option<Child>,
    what: String,
}

impl Running {
    /// Starts a command, its output kept.
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self { child: Some(child.unwrap_or_else(|error| panic!("{what}: {error}"))), what }
    }

    /// The process.
    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("only what consumes `self` takes it")
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child().try_wait().unwrap().is_none()
    }

    /// Kills it, unless it has ended, and returns how it ended.
    pub fn kill(mut self) -> Output {
        self.child().kill().unwrap();
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        self.child.take().expect("only this takes it").wait_with_output().unwrap()
    }

    /// Waits for its end, which must be a good one; returns what it printed.
    pub fn succeed(self) -> String {
        let what = self.what.clone();
        let output = self.wait();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{what} ended with {}: {}{printed}", output.status, stderr(&output));
        printed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end(child);
        }
    }
}

/// An owner in the foreground, as an operator runs it.
pub struct Serving {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    listening: Vec<Listening>,
}

/// Where an owner listens, in its own words.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Such as `tls://127.0.0.1:41234`.
    pub address: String,
    /// The fingerprint of its key, if it has one.
    pub fingerprint: Option<String>,
}

impl Serving {
    /// Starts `vmstore serve ARGS...` and waits until it listens on every `--listen` and in its store.
    pub fn start<A: AsRef<str>>(vmstore: &Vmstore, args: &[A]) -> Self {
        let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        let mut command = vmstore.command(["serve"].iter().chain(&args));
        // An owner that an operator starts stays.
        command.env_remove("VMSTORE_IDLE_EXIT");
        let addresses = args.iter().filter(|arg| **arg == "--listen").count();
        let mut started = None;
        eventually("a free port", || match Self::try_of(&mut command, vmstore.store(), addresses) {
            // A port that was left may be another connection's for a moment.
            Err(said) if said.contains("Address already in use") => false,
            outcome => {
                started = Some(outcome.unwrap_or_else(|said| panic!("{command:?}: {said}")));
                true
            }
        });
        started.expect("it waited for it")
    }

    /// Starts a command that runs an owner of a store, and waits until it listens there and on so many addresses.
    pub fn of(command: &mut Command, store: &Path, addresses: usize) -> Self {
        Self::try_of(command, store, addresses).unwrap_or_else(|said| panic!("{command:?}: {said}"))
    }

    /// Starts one; what it said if it ends before it listens on all addresses.
    fn try_of(command: &mut Command, store: &Path, addresses: usize) -> Result<Self, String> {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, pipe) = (Arc::default(), child.stderr.take().expect("it was piped"));
        let (tell, heard) = mpsc::channel();
        let reader = read_along(pipe, Arc::clone(&said), tell);
        let mut serving = Self { child, said, reader: Some(reader), listening: Vec::new() };
        for _ in 0..addresses {
            match heard.recv_timeout(PATIENCE) {
                Ok(listening) => serving.listening.push(listening),
                Err(_) => return Err(serving.said()),
            }
        }
        eventually("an owner", || {
            assert!(serving.child.try_wait().unwrap().is_none(), "{command:?} ended: {}", serving.said());
            // Until it has taken the place of another owner, that one listens.
            holder(store) == Some(serving.pid()) && listens(store)
        });
        Ok(serving)
    }

    /// Where it listens besides its store, in the order of its arguments.
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard error so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills it.
    pub fn kill(mut self) {
        end(&mut self.child);
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut ended = None;
        eventually("the end of an owner after SIGTERM", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.expect("it was waited for")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        end(&mut self.child);
        if let Some(reader) = self.reader.take() {
            // A panic of its own says nothing more.
            let _ = reader.join();
        }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("pid", &self.pid()).field("listening", &self.listening).finish_non_exhaustive()
    }
}

/// Whether an owner accepts connections at a store's socket.
pub fn listens(store: &Path) -> bool {
    UnixStream::connect(store.join("owner.sock")).is_ok()
}

/// The process that holds a store, or held it last, by its own words in the lock.
pub fn holder(store: &Path) -> Option<u32> {
    let text = fs::read_to_string(store.join("lock")).ok()?;
    text.strip_prefix("process ")?.split_once(' ')?.0.parse().ok()
}

/// A process that has ended can't be killed, and need not be.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Keeps an owner's output, and reports each address that it listens on.
fn read_along(pipe: ChildStderr, said: Arc<Mutex<String>>, tell: mpsc::Sender<Listening>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("listening on ") {
                let (address, fingerprint) =
                    rest.split_once(" fingerprint ").map_or((rest, None), |(a, f)| (a, Some(f)));
                let fingerprint = fingerprint.map(str::to_owned);
                // Nobody asks any more once the test has what it waited for.
                let _ = tell.send(Listening { address: address.to_owned(), fingerprint });
            }
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    })
}
