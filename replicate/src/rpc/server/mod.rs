//! The owner of a store: accepts connections and handles their requests.
//!
//! Every connection has a task that reads its frames, and one that writes. Requests of one connection run concurrently;
//! work on the store runs on its own threads, a few at a time, so that neither a slow disk nor a slow peer delays
//! others. The memory of a connection is bounded: waiting requests by a common budget, answers by short queues.

mod answers;
mod connection;
mod dispatch;
mod family;
mod jobs;
mod partial_snapshots;
mod rights;
mod sessions;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chunkstore::metrics::{self, Counter, Description, Metrics, Unit};
use chunkstore::store::Store;
use chunkstore::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, interval, timeout};

pub(crate) use self::answers::prefix_of;
pub use self::connection::serve_stream;
pub use self::family::{Families, FamilyAnswer, RequestFamily};
pub use self::jobs::run as run_job;
use self::sessions::{Flushes, Session};
use crate::rpc::auth::{Quota, TokenFile};
use crate::rpc::transport::{Acceptor, Raw};
use crate::rpc::wire::{Meter, SessionSecret};

/// Most connections before authentication; beyond, the oldest is dropped.
const UNAUTHENTICATED_MAX: usize = 256;
/// Most connections.
const CONNECTIONS_MAX: usize = 1024;
/// Time limit for the handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(15);
/// Most bytes of waiting requests, of all connections.
const WAITING_BYTES_MAX: usize = 48 << 20;
/// Time that connections get to finish when the owner has to end.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// The options of an owner.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// The owner ends after this time without connections; never if not given.
    pub idle_exit: Option<Duration>,
    /// Whether a command started it rather than an operator: clients may then ask it to end.
    pub is_temporary: bool,
    /// Request families that it serves besides this crate's requests.
    pub families: Families,
}

const CONNECTIONS: Description = Description::new("connections", Unit::Count, "Clients that are connected now.");
const REQUESTS: Description = Description::new("requests_total", Unit::Count, "Requests that were answered.");
const ERRORS: Description = Description::new("errors_total", Unit::Count, "Requests that were answered by an error.");
const PUSHES: Description =
    Description::new("pushes_total", Unit::Count, "Snapshots received from other stores, by push or pull.");

/// The owner's counters in the store's registry.
struct Counters {
    meter: Arc<Meter>,
    requests: Counter,
    errors: Counter,
    pushes: Counter,
}

impl Counters {
    fn registered(metrics: &Metrics) -> Self {
        Self {
            meter: Arc::new(Meter::registered(metrics)),
            requests: metrics.counter(REQUESTS),
            errors: metrics.counter(ERRORS),
            pushes: metrics.counter(PUSHES),
        }
    }
}

/// An owner.
pub struct Server {
    store: Arc<Store>,
    options: ServeOptions,
    tokens: TokenFile,
    quota: Quota,
    counters: Counters,
    sessions: Mutex<HashMap<SessionSecret, Weak<Session>>>,
    flushes: Arc<Flushes>,
    /// Limits concurrent work on the store.
    workers: Arc<Semaphore>,
    waiting_bytes: Arc<Semaphore>,
    connections: AtomicUsize,
    last_used: Mutex<Instant>,
    next_secret: AtomicU64,
    secret_seed: [u8; 32],
    leaving: watch::Sender<bool>,
}

impl Server {
    /// An owner of an open store. `seed` must be random and secret: the secrets of sessions are derived from it.
    pub fn new(store: Arc<Store>, options: ServeOptions, seed: [u8; 32]) -> Arc<Self> {
        let dir = store.dir().to_path_buf();
        let counters = Counters::registered(store.metrics());
        let workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;
        let server = Arc::new(Self {
            store,
            options,
            tokens: TokenFile::new(&dir),
            quota: Quota::new(&dir),
            counters,
            sessions: Mutex::default(),
            flushes: Arc::default(),
            workers: Arc::new(Semaphore::new(workers)),
            waiting_bytes: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            connections: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            next_secret: AtomicU64::new(0),
            secret_seed: seed,
            leaving: watch::Sender::new(false),
        });
        let weak = Arc::downgrade(&server);
        let connections = move || weak.upgrade().map_or(0, |server| server.connections.load(Ordering::SeqCst) as u64);
        server.store.metrics().observe(metrics::Kind::Gauge, CONNECTIONS, connections);
        server
    }

    /// Asks the owner to end: it accepts no new connections, and ends when the existing ones are closed or some seconds
    /// have passed.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Accepts connections until it has to end: by [`Server::leave`], or because it was idle for long or its store is
    /// gone. When this returns, everything acknowledged is durable.
    pub async fn serve(self: &Arc<Self>, acceptors: Vec<Acceptor>) {
        let unauthenticated = Arc::new(Unauthenticated::default());
        let loops: Vec<_> = acceptors
            .into_iter()
            .map(|acceptor| tokio::spawn(accept_all(Arc::clone(self), acceptor, Arc::clone(&unauthenticated))))
            .collect();
        self.wait_for_the_end().await;
        for accepting in &loops {
            accepting.abort();
        }
        self.leave();
        let _ = timeout(DRAIN_TIME_MAX, self.drained()).await;
        let this = Arc::clone(self);
        let flushed = tokio::task::spawn_blocking(move || {
            let flushed = this.store.flush_open_packs();
            this.flushes.finish();
            flushed
        });
        let flushed = flushed.await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!("unpublished records are lost: {error}");
        }
    }

    async fn wait_for_the_end(&self) {
        let mut leaving = self.leaving.subscribe();
        let mut tick = interval(Duration::from_secs(1));
        let lock = self.store.dir().join("lock");
        loop {
            tokio::select! {
                _ = leaving.wait_for(|leaving| *leaving) => return,
                _ = tick.tick() => {}
            }
            if !lock.exists() {
                return tracing::warn!("the store is gone from {}", self.store.dir().display());
            }
            if self.options.idle_exit.is_some_and(|most| self.idle_time().is_some_and(|idle| idle >= most)) {
                return tracing::info!("the store is idle");
            }
        }
    }

    /// The time since the last connection closed, if there is none.
    fn idle_time(&self) -> Option<Duration> {
        let last_used = *self.last_used.lock();
        (self.connections.load(Ordering::SeqCst) == 0).then(|| last_used.elapsed())
    }

    async fn drained(&self) {
        while self.connections.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs work on the store on a blocking thread, within the limit.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Store>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = Arc::clone(&self.workers).acquire_owned().await.expect("the workers are never closed");
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&store)
        });
        done.await.unwrap_or_else(|_| Err(failed()))
    }
}

/// The error for a request whose work panicked.
fn failed() -> Error {
    Error::refused("the owner failed at this request; its log tells why")
}

/// Counts a connection while it lives.
struct Connected(Arc<Server>);

impl Connected {
    /// # Errors
    /// [`Error::Busy`] if there are too many.
    fn new(server: &Arc<Server>) -> Result<Self> {
        let before = server.connections.fetch_add(1, Ordering::SeqCst);
        let connected = Self(Arc::clone(server));
        if before >= CONNECTIONS_MAX {
            return Err(Error::busy("the store", format!("{CONNECTIONS_MAX} clients, the most it accepts")));
        }
        Ok(connected)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Connections before authentication, the oldest first.
#[derive(Default)]
struct Unauthenticated(Mutex<std::collections::VecDeque<tokio::task::AbortHandle>>);

impl Unauthenticated {
    /// Adds one, and drops the oldest if there are too many.
    fn add(&self, connection: tokio::task::AbortHandle) {
        let mut unauthenticated = self.0.lock();
        unauthenticated.retain(|connection| !connection.is_finished());
        unauthenticated.push_back(connection);
        if unauthenticated.len() > UNAUTHENTICATED_MAX
            && let Some(oldest) = unauthenticated.pop_front()
        {
            oldest.abort();
        }
    }
}

async fn accept_all(server: Arc<Server>, mut acceptor: Acceptor, unauthenticated: Arc<Unauthenticated>) {
    loop {
        match acceptor.accept().await {
            Ok(raw) => {
                let connection = tokio::spawn(greet(Arc::clone(&server), raw));
                unauthenticated.add(connection.abort_handle());
            }
            Err(error) => {
                // Most likely out of descriptors, which will be free again.
                tracing::warn!("can't take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Performs the handshake of a connection, and serves an admitted client on a task of its own.
async fn greet(server: Arc<Server>, raw: Raw) {
    let greeted = timeout(HANDSHAKE_TIME_MAX, async {
        let (stream, peer) = raw.handshake().await?;
        connection::welcome(&server, stream, peer).await
    });
    match greeted.await {
        Ok(Ok(admitted)) => drop(tokio::spawn(admitted.serve())),
        Ok(Err(error)) => tracing::info!("a connection was not admitted: {error}"),
        Err(_) => tracing::info!("a connection did not complete the handshake in time"),
    }
}
