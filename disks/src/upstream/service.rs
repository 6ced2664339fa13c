//! The upstream as a mount uses it: started, asked, and stopped as one service.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chunkstore::Result;
use chunkstore::catalog::{Catalog, Selector};
use chunkstore::format::RecordCodec;
use chunkstore::format::manifest::ChunkSource;
use chunkstore::metrics::Metrics;
use chunkstore::storage::LocalDir;
use parking_lot::Mutex;
use replicate::rpc::transport::RateLimit;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::boot_recorder::BootRecorder;
use super::cache_fill::{CacheFiller, FillCounters, FillQueue};
use super::fetch::{Fetcher, FetcherParts, FetcherSource};
use super::hydrate::{Hydration, Hydrator};
use super::merged_names::{FarList, MergedCatalog, MergedNames};
use super::negative_cache::NegativeCache;
use super::on_open::OpenHandler;
use super::queue::{DEMANDS, OTHERS};
use super::reconnect::{Connect, ReconnectingClient, is_passing};
use super::unsealed_cache::UnsealedCache;
use super::{FarSource, ReadObserver};
use crate::names::{LocalNames, Names};

/// Options of a mount with an upstream, or of one that records boots.
pub struct UpstreamServiceOptions {
    /// Drives connections and background tasks.
    pub runtime: Handle,
    /// The local store.
    pub dir: PathBuf,
    /// Its catalog.
    pub catalog: Catalog,
    /// The local store, which is read first.
    pub local: Arc<dyn ChunkSource>,
    /// Connects to the local store's owner.
    pub near: Connect,
    /// Connects to the far store; none if it only records.
    pub far: Option<Connect>,
    /// The far store as the operator named it.
    pub address: String,
    /// How long a read waits for the far store before it fails.
    pub read_timeout: Duration,
    /// Snapshots to complete in the background.
    pub hydrate: Vec<Selector>,
    /// Whether boot orders are recorded.
    pub record: bool,
    /// Registry of its counters.
    pub metrics: Metrics,
}

/// The local store and the far one behind it.
pub struct UpstreamService {
    runtime: Handle,
    address: String,
    upstream: Option<Upstream>,
    recorder: Option<Arc<BootRecorder>>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    keeping: Mutex<Option<JoinHandle<()>>>,
}

struct Upstream {
    fetcher: Arc<Fetcher>,
    names: Arc<MergedNames>,
    fill_counters: Arc<FillCounters>,
    open_handler: Arc<OpenHandler>,
    hydrator: Arc<Hydrator>,
}

/// State of an upstream, for the status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpstreamStatus {
    /// As the operator named it.
    pub address: String,
    /// Whether it answered the last request.
    pub is_connected: bool,
    /// Records that came.
    pub fetched_records: u64,
    /// Their bytes, as they travelled.
    pub fetched_bytes: u64,
    /// Requests that brought them.
    pub requests: u64,
    /// Records that were not what they should be.
    pub refused_records: u64,
    /// Records that wait or are on their way.
    pub waiting_records: u64,
    /// Records that were put into the local store.
    pub kept_records: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Of those: records that were damaged there.
    pub healed_records: u64,
    /// Records that were given and not kept.
    pub not_kept_records: u64,
    /// Whether nothing can be kept now.
    pub is_keeping_failing: bool,
    /// The hydrations that were asked for.
    pub hydrations: Vec<Hydration>,
}

impl UpstreamService {
    /// Starts all background tasks. An unreachable far store is no error: its snapshots appear once it is there.
    ///
    /// # Errors
    /// [`chunkstore::Error::Refused`] if the stores cut chunks differently; [`chunkstore::Error::Denied`] if the far
    /// store does not admit us; if the local owner can't be reached.
    pub async fn start(options: UpstreamServiceOptions) -> Result<Arc<Self>> {
        let near = ReconnectingClient::new(&options.near, None, None);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        let mut keeping = None;
        let mut far_link = None;
        let upstream = match &options.far {
            None => None,
            Some(far) => {
                let limit = Arc::new(RateLimit::unlimited());
                let local_owner = near.client().await?;
                let (like, codec) = (local_owner.welcome().clone(), local_owner.codec().clone());
                let link = |limit| ReconnectingClient::new(far, Some(&like), limit);
                let lanes = [link(None), link(None)];
                greet(&lanes[OTHERS]).await?;
                far_link = Some(Arc::clone(&lanes[OTHERS]));
                let far = Background { lanes, hydration: link(Some(Arc::clone(&limit))), limit, codec };
                let (upstream, kept) = far.start(&options, &near, stopped, &mut tasks).await;
                keeping = Some(kept);
                Some(upstream)
            }
        };
        let recorder = options.record.then(|| BootRecorder::new(options.catalog.clone(), near, far_link));
        tasks.extend(recorder.iter().map(|recorder| options.runtime.spawn(Arc::clone(recorder).run())));
        Ok(Arc::new(Self {
            runtime: options.runtime,
            address: options.address,
            upstream,
            recorder,
            stop,
            tasks: Mutex::new(tasks),
            keeping: Mutex::new(keeping),
        }))
    }

    /// The source of what the local store lacks; none without an upstream.
    pub fn far(&self) -> Option<Arc<dyn FarSource>> {
        let far = |upstream: &Upstream| Arc::new(FetcherSource(Arc::clone(&upstream.fetcher))) as Arc<dyn FarSource>;
        self.upstream.as_ref().map(far)
    }

    /// The snapshots of both stores; none without an upstream.
    pub fn names(&self) -> Option<Arc<dyn Names>> {
        self.upstream.as_ref().map(|upstream| Arc::clone(&upstream.names) as Arc<dyn Names>)
    }

    /// Records boot orders; none if that is off.
    pub fn observer(&self) -> Option<Arc<dyn ReadObserver>> {
        self.recorder.as_ref().map(|recorder| Arc::clone(recorder) as Arc<dyn ReadObserver>)
    }

    /// State of the upstream; none without one.
    pub fn status(&self) -> Option<UpstreamStatus> {
        let upstream = self.upstream.as_ref()?;
        let (fetcher, fill_counters) = (&upstream.fetcher, &upstream.fill_counters);
        Some(UpstreamStatus {
            address: self.address.clone(),
            is_connected: fetcher.is_up(),
            fetched_records: fetcher.intake.counters.records.get(),
            fetched_bytes: fetcher.intake.counters.bytes.get(),
            requests: fetcher.intake.counters.requests.get(),
            refused_records: fetcher.intake.counters.refused.get(),
            waiting_records: fetcher.intake.queue.len() as u64,
            kept_records: fill_counters.records.get(),
            kept_bytes: fill_counters.bytes.get(),
            healed_records: fill_counters.healed.get(),
            not_kept_records: fill_counters.not_kept.get(),
            is_keeping_failing: fill_counters.is_failing.load(Ordering::Relaxed),
            hydrations: upstream.hydrator.hydrations(),
        })
    }

    /// Stops all tasks: fetched records are sealed, and recorded boot orders are kept.
    pub async fn stop(&self) {
        self.abort();
        self.stop.send_replace(true);
        let keeping = lock(&self.keeping).take();
        if let Some(keeping) = keeping {
            // It only waits for the local owner.
            let _ = keeping.await;
        }
        if let Some(upstream) = &self.upstream {
            upstream.open_handler.note_presence().await;
        }
        if let Some(recorder) = &self.recorder {
            recorder.finish().await;
        }
    }

    /// [`UpstreamService::stop`] for threads.
    pub fn stop_blocking(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let _ = super::wait_for(&self.runtime, async move {
            this.stop().await;
            Ok(())
        });
    }

    fn abort(&self) {
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
    }
}

impl Drop for UpstreamService {
    fn drop(&mut self) {
        self.abort();
        self.stop.send_replace(true);
    }
}

/// Checks that the far store may be used, if it is reachable.
async fn greet(link: &ReconnectingClient) -> Result<()> {
    match link.client().await {
        Err(error) if is_passing(&error) => {
            tracing::warn!("upstream is unreachable; its snapshots appear once it is back: {error}");
            Ok(())
        }
        connected => connected.map(drop),
    }
}

/// The connections of an upstream.
struct Background {
    lanes: [Arc<ReconnectingClient>; 2],
    hydration: Arc<ReconnectingClient>,
    limit: Arc<RateLimit>,
    codec: RecordCodec,
}

impl Background {
    async fn start(
        self,
        options: &UpstreamServiceOptions,
        near: &Arc<ReconnectingClient>,
        stopped: watch::Receiver<bool>,
        tasks: &mut Vec<JoinHandle<()>>,
    ) -> (Upstream, JoinHandle<()>) {
        let runtime = &options.runtime;
        let (fill_queue, offered) = FillQueue::new(&options.metrics);
        let (unsealed_cache, negative_cache) = (Arc::new(UnsealedCache::default()), Arc::new(NegativeCache::new()));
        let near_link = || ReconnectingClient::new(&options.near, None, None);
        let keeping =
            CacheFiller::new(near_link(), Arc::clone(&unsealed_cache), Arc::clone(&negative_cache), &fill_queue);
        let fill_counters = Arc::clone(&fill_queue.fill_counters);
        let list = FarList::new(Arc::clone(&self.lanes[OTHERS]));
        let fetcher = Fetcher::new(FetcherParts {
            lanes: self.lanes,
            near: Arc::clone(near),
            local: Arc::clone(&options.local),
            fill_queue,
            unsealed_cache,
            negative_cache,
            codec: self.codec,
            read_timeout: options.read_timeout,
            runtime: runtime.clone(),
            metrics: options.metrics.clone(),
        });
        // So that the first listing shows the far snapshots.
        if let Err(error) = list.refresh().await {
            tracing::debug!("{error}");
        }
        let merged = MergedCatalog { catalog: options.catalog.clone(), near: Arc::clone(near), far: Arc::clone(&list) };
        let hydrator = Arc::new(Hydrator {
            fetcher: Arc::clone(&fetcher),
            merged: merged.clone(),
            near: near_link(),
            far: self.hydration,
            limit: self.limit,
            hydrations: Mutex::new(options.hydrate.iter().map(hydration).collect()),
        });
        let open_handler = Arc::new(OpenHandler {
            fetcher: Arc::clone(&fetcher),
            catalog: options.catalog.clone(),
            storage: LocalDir::new(&options.dir),
            handled: Mutex::default(),
        });
        let (opened, openings) = mpsc::unbounded_channel();
        let local = LocalNames::new(&options.dir, options.catalog.clone());
        let names = Arc::new(MergedNames { runtime: runtime.clone(), local, merged, opened });
        tasks.extend([
            runtime.spawn(Arc::clone(&fetcher).run(DEMANDS)),
            runtime.spawn(Arc::clone(&fetcher).run(OTHERS)),
            runtime.spawn(list.run()),
            runtime.spawn(Arc::clone(&hydrator).run()),
            runtime.spawn(Arc::clone(&open_handler).run(openings)),
        ]);
        let keeping = runtime.spawn(keeping.run(offered, stopped));
        (Upstream { fetcher, names, fill_counters, open_handler, hydrator }, keeping)
    }
}

fn hydration(selector: &Selector) -> (Selector, Hydration, Arc<chunkstore::Progress>) {
    let told = Hydration { snapshot: selector.to_string(), ..Hydration::default() };
    (selector.clone(), told, Arc::default())
}

fn lock<T>(mutex: &Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}
