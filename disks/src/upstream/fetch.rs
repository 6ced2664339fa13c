//! Fetches batches from the queue with several requests at a time. Records that arrive are decoded, verified, handed to
//! the readers that wait for them, and queued for the local store.
//!
//! Demands have a connection of their own, so that prefetching does not delay them. A request that fails
//! because the far store is away is repeated when it is back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{Chunk, ChunkId, Kind, NodeId, RecordCodec, RecordId};
use chunkstore::metrics::Metrics;
use chunkstore::{Error, Result};
use parking_lot::Mutex;
use replicate::rpc::client::{Arrived, Client};
use replicate::rpc::wire::Fetch;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::cache_fill::FillQueue;
use super::decode::{Decoding, Intake, told};
use super::negative_cache::NegativeCache;
use super::neighbourhood::Neighbourhood;
use super::queue::{Batch, DEMANDS, Fetched, OTHERS};
use super::reconnect::{ReconnectingClient, is_passing};
use super::unsealed_cache::UnsealedCache;
use super::{FarSource, Fetching, Urgency};

/// Requests under way at a time, of each lane.
const REQUESTS: [usize; 2] = [12, 6];
/// Records of a request, of each lane. Six times 32 chunks fill 100 Mbit/s at 150 ms twice.
const IDS: [usize; 2] = [16, 32];
/// Pause while the local store is behind.
const BEHIND: Duration = Duration::from_millis(5);
/// A demand counts as recent for so long.
const RECENT: Duration = Duration::from_millis(300);

/// Fetches from one far store.
pub(super) struct Fetcher {
    pub(super) intake: Intake,
    pub(super) negative_cache: Arc<NegativeCache>,
    neighbourhood: Neighbourhood,
    lanes: [Arc<ReconnectingClient>; 2],
    near: Arc<ReconnectingClient>,
    last_demand: Mutex<Option<Instant>>,
    read_timeout: Duration,
    runtime: Handle,
}

/// Where a fetcher finds things, and where it puts them.
pub(super) struct FetcherParts {
    pub(super) lanes: [Arc<ReconnectingClient>; 2],
    pub(super) near: Arc<ReconnectingClient>,
    pub(super) local: Arc<dyn ChunkSource>,
    pub(super) fill_queue: FillQueue,
    pub(super) unsealed_cache: Arc<UnsealedCache>,
    pub(super) negative_cache: Arc<NegativeCache>,
    pub(super) codec: RecordCodec,
    pub(super) read_timeout: Duration,
    pub(super) runtime: Handle,
    pub(super) metrics: Metrics,
}

impl Fetcher {
    pub(super) fn new(surroundings: FetcherParts) -> Arc<Self> {
        let FetcherParts {
            lanes,
            near,
            local,
            fill_queue,
            unsealed_cache,
            negative_cache,
            codec,
            read_timeout,
            runtime,
            metrics,
        } = surroundings;
        Arc::new(Self {
            intake: Intake::new(unsealed_cache, fill_queue, local, codec, &metrics),
            negative_cache,
            neighbourhood: Neighbourhood::default(),
            lanes,
            near,
            last_demand: Mutex::default(),
            read_timeout,
            runtime,
        })
    }

    /// Serves a lane of the queue for ever.
    pub(super) async fn run(self: Arc<Self>, lane: usize) {
        let turns = Arc::new(Semaphore::new(REQUESTS[lane]));
        loop {
            let turn = Arc::clone(&turns).acquire_owned().await.expect("turns are never closed");
            while lane == OTHERS && self.intake.fill_queue.is_behind() {
                // Prefetched records that are not kept may be gone when they are wanted.
                sleep(BEHIND).await;
            }
            let batch = self.intake.queue.take(lane, IDS[lane]).await;
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                this.fetch_batch(lane, batch).await;
                drop(turn);
            });
        }
    }

    /// Whether a reader waits, or did just now.
    pub(super) fn is_demanded(&self) -> bool {
        let last = *self.last_demand.lock();
        last.is_some_and(|last| last.elapsed() < RECENT)
    }

    fn note_demand(&self) {
        *self.last_demand.lock() = Some(Instant::now());
    }

    pub(super) fn is_up(&self) -> bool {
        self.lanes.iter().any(|link| link.is_up())
    }

    /// The connection for everything but demands.
    pub(super) fn link(&self) -> &Arc<ReconnectingClient> {
        &self.lanes[OTHERS]
    }

    /// The owner of the local store.
    pub(super) fn near(&self) -> &Arc<ReconnectingClient> {
        &self.near
    }

    /// The local store, which is read first.
    pub(super) fn local(&self) -> &Arc<dyn ChunkSource> {
        &self.intake.local
    }

    async fn fetch_batch(self: &Arc<Self>, lane: usize, batch: Batch) {
        let _in_flight = self.intake.queue.in_flight(&batch);
        match self.request(lane, &batch).await {
            Ok(()) => {}
            Err(error) if is_passing(&error) => {
                tracing::debug!("upstream: {error}; {} records are asked for again", batch.len());
                self.intake.queue.put_back(&batch);
            }
            Err(error) => batch.iter().for_each(|(id, _)| self.intake.queue.answer(*id, &Err(told(&error)))),
        }
        if lane == DEMANDS {
            self.note_demand();
        }
    }

    async fn request(self: &Arc<Self>, lane: usize, batch: &Batch) -> Result<()> {
        let client = self.lanes[lane].client().await?;
        let fetch = if self.intake.bases_here.load(Ordering::Relaxed) > 0 { Fetch::Stored } else { Fetch::WithBases };
        let lacking = self.ask(&client, batch, fetch).await?;
        if !lacking.is_empty() {
            self.ask(&client, &lacking, Fetch::Whole).await?;
        }
        Ok(())
    }

    /// Requests records and decodes them as they arrive. Returns the deltas whose bases are missing.
    async fn ask(self: &Arc<Self>, client: &Client, batch: &Batch, fetch: Fetch) -> Result<Batch> {
        self.intake.counters.requests.increment();
        let ids: Vec<RecordId> = batch.iter().map(|(id, _)| *id).collect();
        let (arrived, arriving) = mpsc::channel();
        let (this, wanted, codec) = (Arc::clone(self), batch.clone(), client.codec().clone());
        let decoding = tokio::task::spawn_blocking(move || this.decode_all(&wanted, &arriving, fetch, codec));
        let mut each = |came| {
            // It is received until the sender is gone.
            let _ = arrived.send(came);
            Ok(())
        };
        let asked = client.records(&ids, fetch, &mut each).await;
        drop(arrived);
        let lacking = decoding.await.map_err(|_| Error::Interrupted)?;
        asked.map(|()| lacking)
    }

    fn decode_all(&self, wanted: &Batch, arriving: &Receiver<Arrived>, fetch: Fetch, codec: RecordCodec) -> Batch {
        let mut decoding = Decoding::new(&self.intake, codec);
        let mut lacking = Batch::new();
        for arrived in arriving {
            match arrived {
                Arrived::Base(record) => decoding.add_base(&record),
                Arrived::Wanted(at, Err(error)) => self.intake.queue.answer(wanted[at].0, &Err(told(&error))),
                Arrived::Wanted(at, Ok(record)) => {
                    if !decoding.take(wanted[at], record, fetch) {
                        lacking.push(wanted[at]);
                    }
                }
            }
        }
        lacking
    }

    /// Fetches the neighbours of a missed chunk that are not here.
    fn bring_neighbours(self: &Arc<Self>, id: ChunkId) {
        let mut ids = self.neighbourhood.missed(id);
        ids.retain(|id| !self.intake.unsealed_cache.has((*id).into()) && !self.intake.queue.has((*id).into()));
        if ids.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        // The caller's thread may not be one of the runtime's.
        self.runtime.spawn(async move {
            if let Ok(lacking) = this.lacking(ids).await {
                this.prefetch(&lacking, Urgency::Ahead);
            }
        });
    }

    /// Which of these are neither in the local store nor just fetched.
    pub(super) async fn lacking(&self, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>> {
        let records: Vec<RecordId> = ids.iter().map(|id| (*id).into()).collect();
        let is_here = self.near.client().await?.has(&records).await?;
        let lacks =
            |(id, is_here): (ChunkId, bool)| (!is_here && !self.intake.unsealed_cache.has(id.into())).then_some(id);
        Ok(ids.into_iter().zip(is_here).filter_map(lacks).collect())
    }

    pub(super) fn prefetch(&self, ids: &[ChunkId], urgency: Urgency) {
        for id in ids {
            self.negative_cache.add(*id);
        }
        self.intake.queue.prefetch(ids.iter().map(|id| (*id).into()), Kind::Chunk, urgency);
    }

    /// Waits for an answer, up to the timeout.
    async fn patiently(read_timeout: Duration, answer: oneshot::Receiver<Result<Fetched>>) -> Result<Fetched> {
        match timeout(read_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::unreachable("the mount ends")),
            Err(_) => Err(Error::unreachable(format!("upstream did not answer within {} s", read_timeout.as_secs()))),
        }
    }
}

/// A [`Fetcher`] as a [`FarSource`].
pub(super) struct FetcherSource(pub(super) Arc<Fetcher>);

impl FarSource for FetcherSource {
    fn is_absent(&self, id: ChunkId) -> bool {
        // While upstream is away, chunks that arrived by other ways must be found.
        self.0.is_up() && self.0.negative_cache.has(id)
    }

    fn fetch(&self, id: ChunkId, urgency: Urgency) -> Fetching<Chunk> {
        let fetcher = &self.0;
        fetcher.negative_cache.add(id);
        if let Some(plain) = fetcher.intake.unsealed(id.into()) {
            return Box::pin(std::future::ready(Chunk::verify(id, plain)));
        }
        let (answer, read_timeout) = (fetcher.intake.queue.want(id.into(), Kind::Chunk, urgency), fetcher.read_timeout);
        if urgency == Urgency::Demand {
            fetcher.note_demand();
            fetcher.bring_neighbours(id);
        }
        Box::pin(async move {
            match Fetcher::patiently(read_timeout, answer).await? {
                Fetched::Chunk(chunk) => Ok(chunk),
                Fetched::Node(_) => Err(Error::damaged(format!("chunk {id}"), "a manifest node has its id")),
            }
        })
    }

    fn fetch_node(&self, id: NodeId, urgency: Urgency) -> Fetching<Node> {
        let fetcher = &self.0;
        if let Some(plain) = fetcher.intake.unsealed(id.into()) {
            return Box::pin(std::future::ready(Node::verify(id, &plain)));
        }
        if urgency == Urgency::Demand {
            fetcher.note_demand();
        }
        let (answer, read_timeout) = (fetcher.intake.queue.want(id.into(), Kind::Node, urgency), fetcher.read_timeout);
        Box::pin(async move {
            match Fetcher::patiently(read_timeout, answer).await? {
                Fetched::Node(node) => Ok(node),
                Fetched::Chunk(_) => Err(Error::damaged(format!("manifest node {id}"), "a chunk has its id")),
            }
        })
    }

    fn neighbours(&self, ids: &[ChunkId]) {
        self.0.neighbourhood.add(ids);
    }
}
