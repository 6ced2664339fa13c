//! The socket in a clone's directory, through which other processes ask its holder for commits.
//!
//! A request is one line of JSON; the response is several lines, first of progress, then the result. Only the user of
//! the process and root are served. A client that disconnects early stops the commit.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chunkstore::catalog::Snapshot;
use chunkstore::{Error, Progress, Result};
use replicate::rpc::wire::{WireError, shown};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::commit::{CommitOptions, Committed};
use super::open_clone::OpenClone;
use super::publisher::Publisher;

const FILE: &str = "socket";
/// Longest line.
pub(super) const LINE_BYTES_MAX: u64 = 1 << 20;
/// Time within which a client must send its request.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);
/// Interval of progress messages.
const TELL_EVERY: Duration = Duration::from_millis(200);
const FAILED: &str = "the commit failed; the log of the process that has the clone open tells why";

/// A request.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    Commit(CommitOptions),
}

/// A response.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Progress {
        done_bytes: u64,
        total_bytes: u64,
    },
    Committed {
        /// The new snapshot's catalog file.
        snapshot: String,
        base: String,
        written_bytes: u64,
    },
    Failed(WireError),
}

/// A listening socket; removed when dropped.
pub(super) struct Listening {
    path: PathBuf,
    task: AbortHandle,
}

impl Listening {
    /// Listens in the directory of an open clone.
    ///
    /// # Errors
    /// If the socket can't be made.
    pub(super) fn start(shared: &Arc<OpenClone>, publisher: &Arc<dyn Publisher>) -> Result<Self> {
        let path = shared.dir.join(FILE);
        // Left by a process that was killed: this one has the lock.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &path, error)),
            _ => {}
        }
        let runtime = shared.cache.runtime();
        let _inside = runtime.enter();
        let bound = short_path(&shared.dir).and_then(|(_open, short)| UnixListener::bind(short));
        let listener = bound.map_err(|error| Error::io("listening at", &path, error))?;
        let task = runtime.spawn(accept(listener, Arc::downgrade(shared), Arc::clone(publisher)));
        Ok(Self { path, task: task.abort_handle() })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket's path may have 108 bytes at most; this one is short, and holds while the directory is open.
fn short_path(dir: &Path) -> io::Result<(File, PathBuf)> {
    let open = File::open(dir)?;
    let path = Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join(FILE);
    Ok((open, path))
}

async fn accept(listener: UnixListener, shared: Weak<OpenClone>, publisher: Arc<dyn Publisher>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(TELL_EVERY).await;
            continue;
        };
        if is_allowed(&stream) {
            tokio::spawn(serve(stream, Weak::clone(&shared), Arc::clone(&publisher)));
        }
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn serve(stream: UnixStream, shared: Weak<OpenClone>, publisher: Arc<dyn Publisher>) {
    let (reading, mut writing) = stream.into_split();
    // The client may have disconnected.
    let _ = match read_question(reading).await {
        Some(Ok(Question::Commit(options))) => commit(&mut writing, shared, publisher, options).await,
        Some(Err(error)) => tell(&mut writing, &Answer::Failed(WireError::from(&error))).await,
        None => Ok(()),
    };
}

/// Reads a request; none if nothing arrives.
pub(super) async fn read_question(stream: impl AsyncRead + Unpin) -> Option<Result<Question>> {
    let mut reading = tokio::io::BufReader::new(stream.take(LINE_BYTES_MAX));
    let mut line = String::new();
    timeout(ASK_TIME_MAX, reading.read_line(&mut line)).await.ok()?.ok()?;
    Some(understand(&line))
}

async fn commit(
    writing: &mut OwnedWriteHalf,
    shared: Weak<OpenClone>,
    publisher: Arc<dyn Publisher>,
    options: CommitOptions,
) -> io::Result<()> {
    let Some(shared) = shared.upgrade() else { return Ok(()) };
    let progress = Arc::new(Progress::default());
    let _stop = StopOnDrop(Arc::clone(&progress));
    let watched = Arc::clone(&progress);
    let mut working = tokio::task::spawn_blocking(move || shared.commit(&*publisher, &options, &watched));
    loop {
        tokio::select! {
            done = &mut working => {
                let failed = |_| Err(Error::refused(FAILED));
                return tell(writing, &Answer::of(done.unwrap_or_else(failed))).await;
            }
            () = sleep(TELL_EVERY) => {
                let (done_bytes, total_bytes) = (progress.done_bytes(), progress.total_bytes());
                tell(writing, &Answer::Progress { done_bytes, total_bytes }).await?;
            }
        }
    }
}

async fn tell(writing: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    writing.write_all(&encode(answer)).await
}

/// Stops a commit whose client has disconnected.
struct StopOnDrop(Arc<Progress>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Answer {
    pub(super) fn of(done: Result<Committed>) -> Self {
        match done {
            Ok(Committed { snapshot, base, written_bytes }) => {
                let snapshot = String::from_utf8_lossy(&snapshot.encode()).into_owned();
                Self::Committed { snapshot, base: base.to_string(), written_bytes }
            }
            Err(error) => Self::Failed(WireError::from(&error)),
        }
    }
}

/// Reads a line.
pub(super) fn understand<'line, T: Deserialize<'line>>(line: &'line str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| Error::invalid(format!("not understood: {}", shown(&error.to_string()))))
}

pub(super) fn encode(line: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(line).expect("all keys are strings");
    line.push(b'\n');
    line
}

/// Asks the process that has a clone open for a commit; none if no process listens. Blocks.
///
/// # Errors
/// What it answers; [`Error::Unreachable`] if it goes away before it does: whether there is a snapshot is not known
/// then.
pub(super) fn ask(dir: &Path, options: &CommitOptions, progress: &Progress) -> Result<Option<Committed>> {
    let path = dir.join(FILE);
    let failed = |error| Error::io("asking at", &path, error);
    let connected = short_path(dir).and_then(|(_open, short)| StdStream::connect(short));
    let mut stream = match connected {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        connected => connected.map_err(failed)?,
    };
    stream.write_all(&encode(&Question::Commit(options.clone()))).map_err(failed)?;
    hear(BufReader::new(stream), dir, progress).map(Some)
}

/// Reads answers to the last one. `dir` is the clone's.
pub(super) fn hear(mut answers: impl BufRead, dir: &Path, progress: &Progress) -> Result<Committed> {
    loop {
        progress.check()?;
        let mut line = String::new();
        let read = answers.by_ref().take(LINE_BYTES_MAX).read_line(&mut line);
        if read.map_err(|error| Error::io("asking at", dir.join(FILE), error))? == 0 {
            return Err(Error::unreachable("the process that has the clone open ended before it answered"));
        }
        match understand(&line)? {
            Answer::Progress { done_bytes, total_bytes } => progress.follow(done_bytes, total_bytes),
            Answer::Failed(error) => return Err(about(dir, error.into())),
            Answer::Committed { snapshot, base, written_bytes } => {
                let snapshot = Snapshot::read_file(snapshot.as_bytes())?;
                return Ok(Committed { snapshot, base: base.parse()?, written_bytes });
            }
        }
    }
}

/// Names the clone in a busy error, which does not carry it over the socket.
fn about(dir: &Path, error: Error) -> Error {
    let name = || format!("clone {}", dir.file_name().unwrap_or_default().to_string_lossy());
    match error {
        Error::Busy { holder, .. } => Error::busy(name(), holder),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_answered_controls_the_terminal() {
        let answers = [
            r#"{"failed":{"Busy":{"holder":"\u001b[2J"}}}"#,
            r#"{"failed":{"Refused":{"what":"\u001b[2J"}}}"#,
            r#"{"\u001b[2J":1}"#,
            "{\u{1b}[2J}",
        ];
        for answer in answers {
            let error = hear(answer.as_bytes(), Path::new("clones/c"), &Progress::default()).unwrap_err().to_string();
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }
}
