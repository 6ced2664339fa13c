//! One connection, shared by many requests: sends them, and gives each answer's frames to its request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chunkstore::format::RecordCodec;
use chunkstore::metrics::Counter;
use chunkstore::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncWrite, BufWriter, ReadHalf, WriteHalf};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::local_packs::LocalPacks;
use crate::rpc::transport::{RateLimit, Stream};
use crate::rpc::wire::{
    ForStream, Frame, FrameReader, FrameWriter, Hello, Kind, Meter, Reply, Request, Welcome, WireError, read_preamble,
    shown, write_preamble,
};

/// Interval of keep-alives on an idle connection.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(20);
/// A side that was silent for this long counts as dead.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// A far side that sends keep-alives and no answer is given up after this time: longer than a walk over the largest
/// image takes.
const ANSWER_TIME_MAX: Duration = Duration::from_mins(30);
/// More than this side's keep-alives in that time.
const IDLE_BYTES_MAX: u64 = 16 << 10;
/// Most frames that wait to be written.
const OUT_FRAMES: usize = 4;
/// Most bytes of received answers that wait to be processed: more than all requests together ask for.
const UNREAD_BYTES_MAX: usize = 192 << 20;
/// Write buffer of a stream: small frames are sent together.
pub(crate) const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// The properties of a connection's link.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Its rate limit, which other connections may share.
    pub limit: Option<Arc<RateLimit>>,
    /// Bytes sent after encryption; 0 without encryption.
    pub tls_bytes_sent: Counter,
    /// The store's packs, if the client can open them itself.
    pub packs: Option<Arc<LocalPacks>>,
    /// Whether the other side is another machine, which may pretend to work. A local owner may take any time.
    pub is_far: bool,
}

/// A connection to a store's owner.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    out: mpsc::Sender<Frame>,
    waiting: Mutex<Waiting>,
    next_request: AtomicU32,
    round_trips: AtomicU64,
    welcome: Welcome,
    /// The negotiated version of the protocol.
    version: u16,
    codec: RecordCodec,
    meter: Arc<Meter>,
    unread_bytes: Arc<AtomicUsize>,
    /// Bytes of the handshake, which no request caused.
    handshake_bytes: u64,
    link: Link,
    /// Tells the reading and the writing task that the connection ended; they also end when this is dropped.
    ended: watch::Sender<bool>,
    runtime: Handle,
}

/// Requests without their last frame.
#[derive(Default)]
struct Waiting {
    answers: HashMap<u32, UnboundedSender<Unread>>,
    /// Bytes received for abandoned requests since the last frame that a request waited for.
    ignored_bytes: usize,
    /// Why the connection ended.
    ended: Option<String>,
    activity: LastActivity,
}

/// When a connection last did more than send keep-alives.
struct LastActivity {
    at: Instant,
    /// Bytes that this side had sent by then.
    sent_bytes: u64,
}

impl Default for LastActivity {
    fn default() -> Self {
        Self { at: Instant::now(), sent_bytes: 0 }
    }
}

/// A received frame that its request has not taken yet.
struct Unread {
    frame: Frame,
    /// Of the connection.
    bytes: Arc<AtomicUsize>,
}

impl Unread {
    /// # Errors
    /// If there are too many already: a peer must not fill the memory.
    fn new(frame: Frame, bytes: &Arc<AtomicUsize>) -> Result<Self> {
        let before = bytes.fetch_add(frame.payload.len(), Ordering::Relaxed);
        let unread = Self { frame, bytes: Arc::clone(bytes) };
        if before > UNREAD_BYTES_MAX { Err(broken("it answers more than was asked for")) } else { Ok(unread) }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.frame.payload.len(), Ordering::Relaxed);
    }
}

impl Client {
    /// Performs the handshake over a new stream.
    ///
    /// # Errors
    /// [`Error::Denied`] if the other side does not admit the client; [`Error::Refused`] if it speaks no common
    /// version; [`Error::Unreachable`] if the connection fails.
    pub async fn start(mut stream: Stream, hello: &Hello, link: &Link) -> Result<Self> {
        let meter = Arc::new(Meter::default());
        write_preamble(&mut stream, &meter).await?;
        let (read, write) = tokio::io::split(stream);
        let mut writer = FrameWriter::new(BufWriter::with_capacity(WRITE_BUFFER_BYTES, write), Arc::clone(&meter));
        writer.write(&Frame::new(Kind::Request, 0, hello.to_bytes())).await?;
        writer.flush().await?;
        let (version, welcome, reader) = timeout(IDLE_TIMEOUT, welcomed(read, &meter)).await.map_err(|_| {
            Error::Unreachable { what: format!("the other side did not answer within {} s", IDLE_TIMEOUT.as_secs()) }
        })??;
        let codec = RecordCodec::new(welcome.zstd_level);
        if let Some(packs) = &link.packs {
            packs.set_codec(&codec);
        }
        let (out, queue) = mpsc::channel(OUT_FRAMES);
        let shared = Arc::new(Shared {
            out,
            waiting: Mutex::default(),
            next_request: AtomicU32::new(1),
            round_trips: AtomicU64::new(0),
            welcome,
            version,
            codec,
            handshake_bytes: meter.sent_bytes() + meter.received_bytes(),
            meter,
            unread_bytes: Arc::default(),
            link: link.clone(),
            ended: watch::Sender::new(false),
            runtime: Handle::current(),
        });
        let weak = || Arc::downgrade(&shared);
        tokio::spawn(write_all(queue, writer, shared.ended.subscribe(), link.limit.clone(), weak()));
        let (ended, reading) = (shared.ended.subscribe(), read_all(reader, link.limit.clone(), weak()));
        tokio::spawn(async move {
            tokio::select! {
                () = reading => {}
                () = over(ended) => {}
            }
        });
        Ok(Self { shared })
    }

    /// The other side's introduction.
    pub fn welcome(&self) -> &Welcome {
        &self.shared.welcome
    }

    /// # Errors
    /// [`Error::Refused`] if the other side speaks only versions of the protocol before this one.
    pub(super) fn check_version(&self, least: u16, what: &str) -> Result<()> {
        let version = self.shared.version;
        if version >= least {
            return Ok(());
        }
        let program = shown(&self.shared.welcome.program);
        Err(Error::refused(format!(
            "the other side ({program}) is too old: {what} need version {least} of the protocol"
        )))
    }

    /// Encodes and decodes the records of the store on the other side.
    pub fn codec(&self) -> &RecordCodec {
        &self.shared.codec
    }

    /// The bytes that passed through the connection.
    pub fn meter(&self) -> &Meter {
        &self.shared.meter
    }

    /// Bytes of the handshake, both directions.
    pub fn handshake_bytes(&self) -> u64 {
        self.shared.handshake_bytes
    }

    /// Bytes sent after encryption; 0 without encryption.
    pub(crate) fn tls_bytes_sent(&self) -> u64 {
        self.shared.link.tls_bytes_sent.get()
    }

    /// The store's packs, if they are read directly and not through the connection.
    pub(crate) fn packs(&self) -> Option<&Arc<LocalPacks>> {
        self.shared.link.packs.as_ref().filter(|packs| packs.are_readable())
    }

    /// How often a request was sent while none was under way: each such time costs the link's latency.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::Relaxed)
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.waiting().ended.is_some()
    }

    /// Waits for a future of this client, on a thread outside the runtime.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.shared.runtime.block_on(future)
    }

    /// Runs blocking work for a task.
    pub(crate) async fn block<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T> {
        let this = self.clone();
        let done = self.shared.runtime.spawn_blocking(move || work(&this)).await;
        done.map_err(|_| Error::Interrupted)
    }

    /// Spawns a task on the client's runtime.
    pub(crate) fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) {
        self.shared.runtime.spawn(future);
    }

    /// Sends a request. The result yields the answer's frames.
    pub(crate) async fn send(&self, kind: Kind, payload: impl Into<Bytes>) -> Result<Answer> {
        let (request, frames) = self.shared.register()?;
        let answer = Answer { request, frames, shared: Arc::clone(&self.shared) };
        let frame = Frame::new(kind, request, payload);
        self.shared.out.send(frame).await.map_err(|_| self.shared.error())?;
        Ok(answer)
    }

    /// Sends a request whose answer is one message.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply> {
        self.send(Kind::Request, request.to_bytes()).await?.reply().await
    }
}

/// The rest of the handshake.
async fn welcomed(
    mut read: ReadHalf<Stream>,
    meter: &Arc<Meter>,
) -> Result<(u16, Welcome, FrameReader<ReadHalf<Stream>>)> {
    let version = read_preamble(&mut read, meter).await?;
    let mut reader = FrameReader::new(read, Arc::clone(meter));
    let frame = reader.read(IDLE_TIMEOUT).await?.ok_or_else(|| Error::Unreachable {
        what: "the other side closed the connection during the handshake".into(),
    })?;
    match frame.kind {
        Kind::Reply => Ok((version, Welcome::from_bytes(&frame.payload).map_err(broken)?, reader)),
        Kind::Error => Err(WireError::from_bytes(&frame.payload).map_err(broken)?.into()),
        _ => Err(broken("its first message is no Welcome".to_owned())),
    }
}

/// An error of a peer that breaks the protocol.
pub(crate) fn broken(what: impl Into<String>) -> Error {
    Error::Unreachable { what: format!("the other side breaks the protocol: {}", what.into()) }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    fn register(&self) -> Result<(u32, UnboundedReceiver<Unread>)> {
        let (sender, frames) = mpsc::unbounded_channel();
        let request = self.next_request.fetch_add(1, Ordering::Relaxed).max(1);
        let mut waiting = self.waiting();
        if waiting.ended.is_some() {
            drop(waiting);
            return Err(self.error());
        }
        if waiting.answers.is_empty() {
            self.round_trips.fetch_add(1, Ordering::Relaxed);
            waiting.activity.at = Instant::now();
        }
        waiting.answers.insert(request, sender);
        Ok((request, frames))
    }

    fn error(&self) -> Error {
        let ended = self.waiting().ended.clone();
        Error::Unreachable { what: ended.unwrap_or_else(|| "the connection ended".to_owned()) }
    }

    /// Fails all waiting and all later requests.
    fn end(&self, error: &Error) {
        let mut waiting = self.waiting();
        let what = match error {
            Error::Unreachable { what } => what.clone(),
            other => other.to_string(),
        };
        waiting.ended.get_or_insert(what);
        waiting.answers.clear();
        self.ended.send_replace(true);
    }

    /// Fails if the other side only sends keep-alives.
    fn check_activity(&self) -> Result<()> {
        let sent_bytes = self.meter.sent_bytes();
        let is_slowed = self.link.limit.as_ref().is_some_and(|limit| limit.holds_back());
        let mut waiting = self.waiting();
        let Waiting { answers, activity, .. } = &mut *waiting;
        if answers.is_empty() || is_slowed || sent_bytes > activity.sent_bytes + IDLE_BYTES_MAX {
            *activity = LastActivity { at: Instant::now(), sent_bytes };
        }
        if self.link.is_far && activity.at.elapsed() > ANSWER_TIME_MAX {
            let what = format!("the other side sent only keep-alives for {} minutes", ANSWER_TIME_MAX.as_secs() / 60);
            return Err(Error::Unreachable { what });
        }
        Ok(())
    }

    /// Gives a frame to the request that waits for it.
    fn deliver(&self, frame: Frame) -> Result<()> {
        if frame.kind == Kind::Ping {
            return self.check_activity();
        }
        let is_last = matches!(frame.kind, Kind::Reply | Kind::Error);
        let mut waiting = self.waiting();
        waiting.activity.at = Instant::now();
        let known =
            if is_last { waiting.answers.remove(&frame.request) } else { waiting.answers.get(&frame.request).cloned() };
        if let Some(waiter) = known {
            waiting.ignored_bytes = 0;
            // An abandoned request does not want it.
            let _ = waiter.send(Unread::new(frame, &self.unread_bytes)?);
            return Ok(());
        }
        // Answers to abandoned requests still arrive.
        let last = self.next_request.load(Ordering::Relaxed);
        if frame.request == 0 || frame.request >= last {
            return Err(broken("it answers a request that was not sent"));
        }
        // A peer that keeps answering abandoned requests may never answer the others.
        waiting.ignored_bytes += frame.payload.len();
        if waiting.ignored_bytes > UNREAD_BYTES_MAX {
            return Err(broken("it continues an abandoned answer without end"));
        }
        Ok(())
    }
}

/// Ends a connection that is no longer read, even if the reading task was dropped with its runtime: other threads would
/// wait for ever.
struct Reading(std::sync::Weak<Shared>);

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.end(&Error::Unreachable { what: "the connection was dropped".into() });
        }
    }
}

async fn read_all(
    mut reader: FrameReader<ReadHalf<Stream>>,
    limit: Option<Arc<RateLimit>>,
    shared: std::sync::Weak<Shared>,
) {
    let reading = Reading(shared);
    loop {
        let read = reader.read(IDLE_TIMEOUT).await;
        let Some(shared) = reading.0.upgrade() else { return };
        let delivered = match read {
            Ok(Some(frame)) => {
                if let Some(limit) = &limit {
                    limit.pass(frame.wire_bytes()).await;
                }
                shared.deliver(frame)
            }
            Ok(None) => Err(Error::Unreachable { what: "the other side closed the connection".into() }),
            Err(error) => Err(error),
        };
        if let Err(error) = delivered {
            return shared.end(&error);
        }
    }
}

async fn write_all(
    mut queue: mpsc::Receiver<Frame>,
    mut writer: FrameWriter<BufWriter<WriteHalf<Stream>>>,
    ended: watch::Receiver<bool>,
    limit: Option<Arc<RateLimit>>,
    shared: std::sync::Weak<Shared>,
) {
    let written = tokio::select! {
        written = write_queue(&mut queue, &mut writer, limit.as_deref()) => written,
        // The stream is closed although the other side has stopped reading.
        () = failed(ended) => return,
    };
    if let Err(error) = written
        && let Some(shared) = shared.upgrade()
    {
        shared.end(&error);
    }
    writer.shutdown().await;
}

/// Waits until a connection has ended or is no longer used.
async fn over(mut ended: watch::Receiver<bool>) {
    // An error says that the sender is gone, and the connection with it.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Waits until a connection has ended.
async fn failed(mut ended: watch::Receiver<bool>) {
    if ended.wait_for(|ended| *ended).await.is_err() {
        // Frames queued before the connection was dropped are still written.
        std::future::pending::<()>().await;
    }
}

/// Writes queued frames, and keep-alives between them, until all senders are gone.
pub(crate) async fn write_queue<W: AsyncWrite + Unpin>(
    queue: &mut mpsc::Receiver<Frame>,
    writer: &mut FrameWriter<W>,
    limit: Option<&RateLimit>,
) -> Result<()> {
    loop {
        let frame = match queue.try_recv() {
            Ok(frame) => frame,
            Err(mpsc::error::TryRecvError::Disconnected) => return writer.flush().await,
            Err(mpsc::error::TryRecvError::Empty) => {
                writer.flush().await?;
                match timeout(PING_EVERY, queue.recv()).await {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return Ok(()),
                    Err(_) => Frame::new(Kind::Ping, 0, Bytes::new()),
                }
            }
        };
        if let Some(limit) = limit {
            limit.pass(frame.wire_bytes()).await;
        }
        writer.write(&frame).await?;
    }
}

/// An answer in progress. Dropping it abandons the request.
pub(crate) struct Answer {
    request: u32,
    frames: UnboundedReceiver<Unread>,
    shared: Arc<Shared>,
}

impl Answer {
    /// The number of the request.
    pub(crate) fn request(&self) -> u32 {
        self.request
    }

    /// The next frame, of whatever kind but an error.
    pub(crate) async fn frame(&mut self) -> Result<Frame> {
        let frame = self.frames.recv().await.ok_or_else(|| self.shared.error())?.frame.clone();
        match frame.kind {
            Kind::Error => Err(WireError::from_bytes(&frame.payload).map_err(broken)?.into()),
            _ => Ok(frame),
        }
    }

    /// The message of an answer of one frame.
    pub(crate) async fn reply(mut self) -> Result<Reply> {
        let frame = self.frame().await?;
        match frame.kind {
            Kind::Reply => Reply::from_bytes(&frame.payload).map_err(broken),
            _ => Err(broken("an answer has more parts than it should")),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.shared.waiting().answers.remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::client::testing::client_of;
    use crate::rpc::wire::Ids;

    #[tokio::test(start_paused = true)]
    async fn a_far_peer_that_only_sends_keep_alives_is_given_up() {
        let client = client_of(true, |_| None).await;
        tokio::time::sleep(2 * ANSWER_TIME_MAX).await;
        assert!(!client.has_ended(), "nothing was asked");
        let asked = Instant::now();
        let error = client.call(&Request::Full { ids: Ids(Vec::new()) }).await.unwrap_err();
        assert!(matches!(&error, Error::Unreachable { what } if what.contains("only keep-alives")), "{error}");
        let waited = asked.elapsed();
        assert!((ANSWER_TIME_MAX..ANSWER_TIME_MAX + 2 * PING_EVERY).contains(&waited), "{waited:?}");
        assert!(client.has_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_here_may_take_as_long_as_it_likes() {
        let client = client_of(false, |_| None).await;
        let request = Request::Full { ids: Ids(Vec::new()) };
        assert!(timeout(3 * ANSWER_TIME_MAX, client.call(&request)).await.is_err(), "it waits on");
        assert!(!client.has_ended());
    }
}
