//! Finding a store's owner, or starting one.
//!
//! The owner that a command starts is this program again, by exec, in a session of its own, so that it outlives the
//! command, its terminal, and an ssh connection that waits for all descriptors to be closed. Until it listens, its
//! standard error is a pipe to the command; if it can't start, it reports the reason there.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use chunkstore::{Backoff, Error, Result};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{Chunk, ChunkId, NodeId, RecordId};
use tokio::runtime::Handle;

use crate::rpc::address::Address;
use crate::rpc::auth;
use crate::rpc::client::{Client, Link, LocalPacks, LocalReader, OwnerConnection};
use crate::rpc::transport::{self, ConnectOptions, Stream};
use crate::rpc::wire::{Hello, Located, WireError};

/// A started owner listens within this time, unless it has to rebuild the index.
const START_TIME_MAX: Duration = Duration::from_mins(10);
/// The longest that an owner's socket stays after the owner has ended, with a margin.
const RETRY_TIME_MAX: Duration = Duration::from_secs(40);
const DELAYS: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(300));
/// Set for an owner that a command starts: if it can't start, it reports the reason as a [`WireError`].
pub const STARTED_BY_COMMAND: &str = "VMSTORE_STARTED_BY_COMMAND";

/// How to start an owner.
#[derive(Clone, Debug)]
pub struct Starter {
    /// The program `vmstore`.
    pub program: PathBuf,
    /// The owner ends after this time without clients.
    pub idle_exit: Duration,
    /// Whether it is started to free space: on a full disk it then releases the store's reserve to be able to open.
    pub frees_space: bool,
}

/// The outcome of starting an owner.
enum Started {
    Listens,
    /// Another process has the store: an owner that was faster, or one with exclusive access, as the error says.
    Lost(Error),
}

/// Connects to the owner of the store in `dir`; if there is none and a starter is given, starts it.
///
/// # Errors
/// [`Error::NotFound`] if there is no store; [`Error::Denied`] if it is another user's; [`Error::Unreachable`] if there
/// is no owner and none was to be started; [`Error::Busy`] if another process has exclusive access to the store;
/// otherwise the reason why none could be started.
pub async fn connect(dir: &Path, starter: Option<&Starter>) -> Result<Client> {
    connect_with(dir, starter, &LocalPacks::new(dir, &Handle::current())).await
}

/// [`connect`], with packs that other connections use as well.
async fn connect_with(dir: &Path, starter: Option<&Starter>, packs: &Arc<LocalPacks>) -> Result<Client> {
    check_is_store(dir)?;
    let until = Instant::now() + RETRY_TIME_MAX;
    let (mut delays, mut busy) = (DELAYS, None);
    loop {
        let error = match greet(dir, packs).await {
            Ok(client) => return Ok(client),
            // An owner of another version ends soon if a command started it.
            Err(error @ (Error::Unreachable { .. } | Error::Busy { .. } | Error::Refused { .. })) => error,
            Err(error) => return Err(error),
        };
        let Some(starter) = starter else { return Err(error) };
        let is_absent = matches!(error, Error::Unreachable { .. });
        if Instant::now() >= until {
            return Err(busy.filter(|_| is_absent).unwrap_or(error));
        }
        if is_absent {
            match start(dir, starter).await? {
                Started::Listens => {
                    busy = None;
                    continue;
                }
                Started::Lost(holder) => busy = Some(holder),
            }
        }
        sleep(delays.next_delay()).await;
    }
}

fn check_is_store(dir: &Path) -> Result<()> {
    for name in ["config.toml", "packs"] {
        match dir.join(name).try_exists() {
            Ok(true) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::denied(format!("store {} is another user's", dir.display())));
            }
            // Opening it reports any other reason.
            _ => {}
        }
    }
    Err(Error::not_found(format!("store {}", dir.display())))
}

/// Opens a stream to the owner of the store in `dir`, starting it if there is none, without a handshake: for passing on
/// another client's bytes.
///
/// # Errors
/// As [`connect`].
pub async fn open_stream(dir: &Path, starter: &Starter) -> Result<Stream> {
    // The handshake tells a living owner from a leftover socket.
    let client = connect(dir, Some(starter)).await?;
    let stream = open(dir).await;
    drop(client);
    stream
}

async fn open(dir: &Path) -> Result<Stream> {
    Ok(transport::connect(&Address::Path(dir.to_path_buf()), &ConnectOptions::default()).await?.stream)
}

async fn greet(dir: &Path, packs: &Arc<LocalPacks>) -> Result<Client> {
    let stream = open(dir).await?;
    let hello = Hello { program: crate::PROGRAM.to_owned(), token: None };
    let link = Link { packs: Some(Arc::clone(packs)), ..Link::default() };
    Client::start(stream, &hello, &link).await
}

async fn start(dir: &Path, starter: &Starter) -> Result<Started> {
    let failed = |error| Error::io("starting", &starter.program, error);
    let mut command = Command::new(&starter.program);
    command
        .arg("--store")
        .arg(dir)
        .args(["serve", "--background", "--idle-exit"])
        .arg(starter.idle_exit.as_secs().to_string())
        .args(starter.frees_space.then_some("--frees-space"))
        .env(STARTED_BY_COMMAND, "1")
        // The owner outlives the command and must not keep its secret.
        .env_remove(auth::TOKEN_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec, two system calls that are safe there and touch no memory.
    unsafe {
        command.pre_exec(detach);
    }
    let child = command.spawn().map_err(failed)?;
    timeout(START_TIME_MAX, outcome(child)).await.unwrap_or_else(|_| {
        Err(Error::Unreachable { what: "the store's owner was started and does not listen; see owner.log".into() })
    })
}

/// Detaches from the terminal and closes all descriptors but the first three, in a child that outlives its parent,
/// before exec. It makes only system calls that are safe there.
///
/// # Errors
/// If the system refuses.
pub fn detach() -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
    }
    Ok(())
}

/// Reads the owner's standard error until it listens or has ended.
async fn outcome(mut child: Child) -> Result<Started> {
    let mut said = String::new();
    let mut pipe = child.stderr.take().expect("it was piped");
    pipe.read_to_string(&mut said).await.map_err(|error| Error::io("reading", "the owner's pipe", error))?;
    let last = said.lines().last().unwrap_or_default();
    if let Ok(error) = serde_json::from_str::<WireError>(last) {
        return match error {
            busy @ WireError::Busy { .. } => Ok(Started::Lost(busy.into())),
            error => Err(error.into()),
        };
    }
    match timeout(Duration::from_millis(10), child.wait()).await {
        Ok(Ok(status)) if !status.success() => {
            let what = format!("the store's owner could not be started ({status}): {}", said.trim());
            Err(Error::Unreachable { what })
        }
        _ => Ok(Started::Listens),
    }
}

/// Reports to the command that started this owner why it can't start.
pub fn tell_starter(error: &Error) {
    let error = WireError::from(error);
    eprintln!("{}", serde_json::to_string(&error).expect("an error has only strings"));
}

/// The current owner of a store: when it ends, the next request finds or starts another. For plain threads.
///
/// As a source of chunks it reads the packs itself and asks the owner where records lie; it works without an owner as
/// long as it knows the locations.
pub struct Reconnecting {
    runtime: Handle,
    dir: PathBuf,
    starter: Starter,
    client: Mutex<Client>,
    packs: Arc<LocalPacks>,
}

/// Records fetched together, and again together after a broken connection.
const GROUP_IDS: usize = 64;
/// Most owners that may end during one request.
const ATTEMPTS: usize = 5;

impl Reconnecting {
    /// Connects to the owner of the store in `dir`, and starts it if there is none.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn new(runtime: &Handle, dir: &Path, starter: Starter) -> Result<Self> {
        let packs = LocalPacks::new(dir, runtime);
        let client = runtime.block_on(connect_with(dir, Some(&starter), &packs))?;
        Ok(Self { runtime: runtime.clone(), dir: dir.to_path_buf(), starter, client: Mutex::new(client), packs })
    }

    /// A connection that was still open when this was called.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn client(&self) -> Result<Client> {
        let mut client = self.client.lock();
        if client.has_ended() {
            tracing::info!("the store's owner has ended; connecting to another");
            *client = self.runtime.block_on(connect_with(&self.dir, Some(&self.starter), &self.packs))?;
        }
        Ok(client.clone())
    }

    /// Repeats an idempotent request until it completes on one connection.
    fn lasting<T>(&self, request: impl Fn(&Client) -> Result<T>) -> Result<T> {
        let mut attempt = 1;
        loop {
            match request(&self.client()?) {
                Err(Error::Unreachable { what }) if attempt < ATTEMPTS => tracing::info!("{what}; trying again"),
                result => return result,
            }
            attempt += 1;
        }
    }
}

impl Reconnecting {
    /// Whether an owner is connected now.
    fn is_connected(&self) -> bool {
        self.client.try_lock().is_some_and(|client| !client.has_ended())
    }
}

impl ChunkSource for Reconnecting {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        LocalReader::new(&self.packs, self).chunks(ids, each)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        LocalReader::new(&self.packs, self).node(id)
    }

    fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        LocalReader::new(&self.packs, self).nodes(ids, each)
    }

    fn chunk_at_hand(&self, id: ChunkId) -> Option<Chunk> {
        LocalReader::new(&self.packs, self).chunk_at_hand(id)
    }

    fn expect(&self, ids: &[ChunkId]) {
        // A hint is not worth starting an owner for.
        if self.is_connected() {
            LocalReader::new(&self.packs, self).expect(ids);
        }
    }

    fn expect_nodes(&self, ids: &[NodeId]) {
        if self.is_connected() {
            LocalReader::new(&self.packs, self).expect_nodes(ids);
        }
    }
}

impl OwnerConnection for Reconnecting {
    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<Located>>> {
        self.lasting(|client| client.locate(ids))
    }

    fn fetch_chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        for (group, ids) in ids.chunks(GROUP_IDS).enumerate() {
            let fetched = self.lasting(|client| collect(|each| client.fetch_chunks(ids, each)))?;
            fetched.into_iter().try_for_each(|(at, chunk)| each(group * GROUP_IDS + at, chunk))?;
        }
        Ok(())
    }

    fn fetch_nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        for (group, ids) in ids.chunks(GROUP_IDS).enumerate() {
            let fetched = self.lasting(|client| collect(|each| client.fetch_nodes(ids, each)))?;
            fetched.into_iter().try_for_each(|(at, node)| each(group * GROUP_IDS + at, node))?;
        }
        Ok(())
    }
}

/// Collects all items that are handed over, each with its position.
fn collect<T>(
    fetch: impl FnOnce(&mut dyn FnMut(usize, Result<T>) -> Result<()>) -> Result<()>,
) -> Result<Vec<(usize, Result<T>)>> {
    let mut fetched = Vec::new();
    fetch(&mut |at, one| {
        fetched.push((at, one));
        Ok(())
    })?;
    Ok(fetched)
}
