//! One connection: admits its client, reads its requests, and writes the answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use chunkstore::{Error, Result};
use parking_lot::Mutex;
use tokio::io::{BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::sessions::Session;
use super::{Connected, Server};
use crate::rpc::auth::Grant;
use crate::rpc::client::{Client, IDLE_TIMEOUT, Link, WRITE_BUFFER_BYTES, write_queue};
use crate::rpc::transport::{Peer, Stream};
use crate::rpc::wire::{
    ForStream, Frame, FrameReader, FrameWriter, Hello, Kind, Meter, Purpose, Reply, SessionId, SessionSecret, Welcome,
    WireError, read_preamble, write_preamble,
};

/// Most concurrent requests of one connection.
const REQUESTS_MAX: usize = 16;
/// Most frames of answers that wait to be written.
const OUT_FRAMES: usize = 2;
/// Most sessions of one connection.
const SESSIONS_MAX: usize = 64;
/// Longest `Hello`.
const HELLO_BYTES_MAX: usize = 4 << 10;

/// An admitted client, with its stream.
pub(super) struct Admitted {
    connection: Arc<Connection>,
    reader: FrameReader<ReadHalf<Stream>>,
    writer: FrameWriter<BufWriter<WriteHalf<Stream>>>,
    queue: mpsc::Receiver<Frame>,
    _connected: Connected,
}

/// The state that the requests of a connection share.
pub(super) struct Connection {
    pub(super) server: Arc<Server>,
    pub(super) grant: Grant,
    credential: Credential,
    out: mpsc::Sender<Frame>,
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
}

/// The handling of a request, not started yet.
type Answer = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;

/// When a request is handled.
pub(super) enum Turn {
    /// Before the next request is read, because later ones rely on it.
    Next(Answer),
    /// Concurrently with others.
    Any(Answer),
}

impl Turn {
    pub(super) fn next(answer: impl Future<Output = Result<Reply>> + Send + 'static) -> Self {
        Self::Next(Box::pin(answer))
    }

    pub(super) fn any(answer: impl Future<Output = Result<Reply>> + Send + 'static) -> Self {
        Self::Any(Box::pin(answer))
    }
}

/// How a client was admitted.
enum Credential {
    /// By its user, from the kernel's credentials.
    User,
    Token(String),
    Certificate(String),
}

/// Serves one stream until it ends: for tests, and for a store that the command itself opened.
pub async fn serve_stream(server: Arc<Server>, stream: Stream, peer: Peer) {
    match welcome(&server, stream, peer).await {
        Ok(admitted) => admitted.serve().await,
        Err(error) => tracing::info!("a connection was not admitted: {error}"),
    }
}

/// Buffer between a client and an owner in one process.
const DUPLEX_BYTES: usize = 256 << 10;

impl Server {
    /// A client in this process, which may do everything.
    ///
    /// # Errors
    /// None is expected.
    pub async fn client(self: &Arc<Self>) -> Result<Client> {
        let (here, there) = tokio::io::duplex(DUPLEX_BYTES);
        let uid = rustix::process::getuid().as_raw();
        tokio::spawn(serve_stream(Arc::clone(self), Box::new(there), Peer::Local { uid, pid: None }));
        Client::start(Box::new(here), &Hello::default(), &Link::default()).await
    }
}

/// Performs the handshake. A client that is not admitted gets the reason.
pub(super) async fn welcome(server: &Arc<Server>, mut stream: Stream, peer: Peer) -> Result<Admitted> {
    let meter = Arc::clone(&server.counters.meter);
    // Sent before anything is read, so that a client of another version learns the reason.
    write_preamble(&mut stream, &meter).await?;
    let (mut read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(BufWriter::with_capacity(WRITE_BUFFER_BYTES, write), Arc::clone(&meter));
    let admitted = admit(server, &mut read, &peer, &meter).await;
    let (connected, grant, credential) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            let refusal = Frame::new(Kind::Error, 0, WireError::from(&error).to_bytes());
            writer.write(&refusal).await?;
            writer.flush().await?;
            writer.shutdown().await;
            return Err(error);
        }
    };
    writer.write(&Frame::new(Kind::Reply, 0, server.welcome_of(&grant).to_bytes())).await?;
    writer.flush().await?;
    let (out, queue) = mpsc::channel(OUT_FRAMES);
    let connection = Connection { server: Arc::clone(server), grant, credential, out, sessions: Mutex::default() };
    let reader = FrameReader::new(read, meter);
    Ok(Admitted { connection: Arc::new(connection), reader, writer, queue, _connected: connected })
}

async fn admit(
    server: &Arc<Server>,
    read: &mut ReadHalf<Stream>,
    peer: &Peer,
    meter: &Arc<Meter>,
) -> Result<(Connected, Grant, Credential)> {
    read_preamble(read, meter).await?;
    let mut reader = FrameReader::new(read, Arc::clone(meter));
    let frame = reader.read_short(HELLO_BYTES_MAX).await?;
    let hello = Hello::from_bytes(&frame.payload).map_err(Error::invalid)?;
    let (grant, credential) = server.grant_of(peer, hello.token)?;
    if *server.leaving.borrow() {
        return Err(Error::busy("the store", "an owner that is ending"));
    }
    tracing::debug!("{} ({}) is connected", grant.name(), hello.program);
    Ok((Connected::new(server)?, grant, credential))
}

impl Server {
    /// The grant of a client: users that can write the store's files may do everything, others what their certificate
    /// or token grants.
    fn grant_of(&self, peer: &Peer, token: Option<String>) -> Result<(Grant, Credential)> {
        if let Peer::Local { uid, .. } = peer {
            let (store, root) = (self.uid()?, 0);
            if *uid != store && *uid != root {
                return Err(Error::Denied { what: format!("the store is another user's (uid {store})") });
            }
            return Ok((Grant::local(), Credential::User));
        }
        let credential = match (token, peer.client_name()) {
            (Some(token), _) => Credential::Token(token),
            (None, Some(name)) => Credential::Certificate(name.to_owned()),
            (None, None) => return Err(Error::denied("this needs a token")),
        };
        Ok((self.grant_by(&credential)?, credential))
    }

    /// The current grant of a credential.
    fn grant_by(&self, credential: &Credential) -> Result<Grant> {
        let known = match credential {
            Credential::User => Some(Grant::local()),
            Credential::Token(token) => self.tokens.find(token)?,
            Credential::Certificate(name) => self.tokens.find_client(name)?,
        };
        known.ok_or_else(|| Error::denied("the token is not known here"))
    }

    fn uid(&self) -> Result<u32> {
        use std::os::unix::fs::MetadataExt;
        let dir = self.store.dir();
        Ok(std::fs::metadata(dir).map_err(|error| Error::io("looking at", dir, error))?.uid())
    }

    fn welcome_of(&self, grant: &Grant) -> Welcome {
        let config = self.store.config();
        let params = config.format.chunk_params();
        Welcome {
            program: crate::PROGRAM.to_owned(),
            store_id: config.format.store_id.clone(),
            chunk_params: [params.min_bytes, params.avg_bytes, params.max_bytes, params.zero_run_min_bytes],
            zstd_level: config.defaults.zstd_level,
            role: grant.role().to_string(),
        }
    }
}

impl Admitted {
    /// Serves the client until it disconnects.
    pub(super) async fn serve(self) {
        let Self { connection, mut reader, mut writer, mut queue, _connected } = self;
        let writing = tokio::spawn(async move {
            let written = write_queue(&mut queue, &mut writer, None).await;
            writer.shutdown().await;
            // From now on no answer can be sent: running requests end when they try.
            drop(queue);
            written
        });
        let mut requests = JoinSet::new();
        let turns = Arc::new(Semaphore::new(REQUESTS_MAX));
        let ended = loop {
            while requests.try_join_next().is_some() {}
            let read = tokio::select! {
                read = reader.read(IDLE_TIMEOUT) => read,
                () = connection.out.closed() => break Ok(()),
            };
            match read {
                Ok(Some(frame)) if frame.kind == Kind::Ping => {}
                Ok(Some(frame)) => {
                    let turn = Arc::clone(&turns).acquire_owned().await.expect("turns are never closed");
                    let (number, bytes) = (frame.request, frame.payload.len() as u32);
                    match connection.dispatch(frame) {
                        Ok(Turn::Next(answer)) => connection.answer(number, answer).await,
                        Ok(Turn::Any(answer)) => {
                            let room = connection.server.room_for(bytes).await;
                            let connection = Arc::clone(&connection);
                            requests.spawn(async move {
                                connection.answer(number, answer).await;
                                drop((turn, room));
                            });
                        }
                        Err(error) => connection.finish(number, Err(error)).await,
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = ended {
            tracing::info!("lost {}: {error}", connection.grant.name());
        }
        // The answers are not needed; work on the store itself is completed, but its result is dropped.
        requests.shutdown().await;
        // Not on a thread of the runtime: ending a session may block on the disk.
        let sessions = std::mem::take(&mut *connection.sessions.lock());
        let _ = tokio::task::spawn_blocking(move || drop(sessions)).await;
        drop(connection);
        let _ = writing.await;
    }
}

impl Server {
    /// Waits until a request's bytes fit into the common budget.
    async fn room_for(&self, bytes: u32) -> tokio::sync::OwnedSemaphorePermit {
        Arc::clone(&self.waiting_bytes).acquire_many_owned(bytes).await.expect("the room is never closed")
    }
}

impl Connection {
    /// Handles a request and sends the answer.
    async fn answer(&self, number: u32, answer: Answer) {
        let result = match self.check_grant() {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        };
        self.finish(number, result).await;
    }

    /// Checks that the client's grant has not changed since it was admitted.
    fn check_grant(&self) -> Result<()> {
        if self.server.grant_by(&self.credential)? != self.grant {
            return Err(Error::denied("the client's rights have changed; connect again"));
        }
        Ok(())
    }

    pub(super) async fn begin(
        self: Arc<Self>,
        session: SessionId,
        purpose: Purpose,
        snapshot: Option<String>,
    ) -> Result<Reply> {
        let (server, grant) = (Arc::clone(&self.server), self.grant.clone());
        let begun = self.server.work(move |store| {
            let begun = Session::begin(&server, store, grant, purpose, snapshot.as_deref())?;
            Ok(Arc::new(begun))
        });
        let begun = begun.await?;
        self.server.register(&begun);
        let reply = Reply::Begun { secret: begun.secret(), trusts_parent: begun.writer().trusts_parent() };
        self.add(session, begun)?;
        Ok(reply)
    }

    #[expect(clippy::unused_async, reason = "every answer is a future")]
    pub(super) async fn attach(self: Arc<Self>, session: SessionId, secret: SessionSecret) -> Result<Reply> {
        let shared = self.server.session(secret)?;
        self.add(session, shared)?;
        Ok(Reply::Done)
    }

    fn add(&self, id: SessionId, session: Arc<Session>) -> Result<()> {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= SESSIONS_MAX {
            return Err(Error::refused(format!("a connection has at most {SESSIONS_MAX} sessions")));
        }
        if sessions.contains_key(&id) {
            return Err(Error::invalid("a session's number is used twice"));
        }
        sessions.insert(id, session);
        Ok(())
    }

    pub(super) fn session(&self, id: SessionId) -> Result<Arc<Session>> {
        self.sessions.lock().get(&id).cloned().ok_or_else(|| Error::not_found("the session"))
    }

    /// Ends a session for this connection.
    pub(super) fn end(&self, id: SessionId) -> Option<Arc<Session>> {
        self.sessions.lock().remove(&id)
    }

    /// Sends part of an answer.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the client is gone.
    pub(super) async fn part(&self, kind: Kind, request: u32, payload: impl Into<Bytes>) -> Result<()> {
        let frame = Frame::new(kind, request, payload);
        self.out.send(frame).await.map_err(|_| Error::Interrupted)
    }

    /// Sends the last frame of an answer.
    pub(super) async fn finish(&self, request: u32, result: Result<Reply>) {
        self.server.counters.requests.increment();
        let (kind, payload) = match result {
            Ok(reply) => (Kind::Reply, reply.to_bytes()),
            Err(error) => {
                tracing::debug!("{}: {error}", self.grant.name());
                self.server.counters.errors.increment();
                self.server.note(&error);
                (Kind::Error, WireError::from(&error).to_bytes())
            }
        };
        // A disconnected client needs no answer.
        let _ = self.part(kind, request, payload).await;
    }
}

impl Server {
    /// A damaged index is rebuilt at the next open: this owner ends, so that the next one does it.
    fn note(&self, error: &Error) {
        if matches!(error, Error::IndexDamaged { .. }) {
            tracing::error!("{error}; the owner ends, so that the next one rebuilds it");
            self.leave();
        }
    }
}
