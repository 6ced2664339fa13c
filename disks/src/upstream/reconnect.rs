//! A connection to a store that is made again when it ends, with longer pauses after each failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chunkstore::{Backoff, Error, Result};
use replicate::rpc::client::Client;
use replicate::rpc::transport::RateLimit;
use replicate::rpc::wire::Welcome;
use replicate::transfer::check_params;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::Fetching;

/// Makes a connection, which keeps to the limit if there is one.
pub type Connect = Arc<dyn Fn(Option<Arc<RateLimit>>) -> Fetching<Client> + Send + Sync>;

const DELAYS: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// A store elsewhere.
pub(super) struct ReconnectingClient {
    connect: Connect,
    limit: Option<Arc<RateLimit>>,
    /// Parameters that the store must share with this one.
    like: Option<Welcome>,
    state: Mutex<State>,
    is_up: AtomicBool,
}

struct State {
    client: Option<Client>,
    delays: Backoff,
    not_before: Instant,
}

impl ReconnectingClient {
    pub(super) fn new(connect: &Connect, like: Option<&Welcome>, limit: Option<Arc<RateLimit>>) -> Arc<Self> {
        let state = State { client: None, delays: DELAYS, not_before: Instant::now() };
        let like = like.cloned();
        Arc::new(Self {
            connect: Arc::clone(connect),
            limit,
            like,
            state: Mutex::new(state),
            is_up: AtomicBool::new(false),
        })
    }

    /// Whether the last attempt to connect succeeded, or there was none.
    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// A connection that had not ended when this was called. Tries once to make one, perhaps after a pause.
    ///
    /// # Errors
    /// Why none can be made.
    pub(super) async fn client(&self) -> Result<Client> {
        let mut state = self.state.lock().await;
        if let Some(client) = state.client.as_ref().filter(|client| !client.has_ended()) {
            return Ok(client.clone());
        }
        state.client = None;
        sleep_until(state.not_before).await;
        let connected = (self.connect)(self.limit.clone()).await.and_then(|client| self.checked(client));
        self.is_up.store(connected.is_ok(), Ordering::Relaxed);
        match connected {
            Ok(client) => {
                state.client = Some(client.clone());
                state.delays.reset();
                Ok(client)
            }
            Err(error) => {
                state.not_before = Instant::now() + state.delays.next_delay();
                Err(error)
            }
        }
    }

    fn checked(&self, client: Client) -> Result<Client> {
        match &self.like {
            Some(like) => check_params(like, client.welcome()).map(|()| client),
            None => Ok(client),
        }
    }
}

/// Whether another attempt may succeed: the other side is away, or about to be replaced.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unreachable { .. } | Error::Busy { .. })
}
