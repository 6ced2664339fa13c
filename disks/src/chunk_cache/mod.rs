//! The cache from which all disks of a mount get their chunks: one source, one bound, one set of threads.
//!
//! Each missing chunk or node is loaded once, however many readers ask (`single_flight`). A few threads load, demands
//! before readahead (`decoders`, `loader`). A look-up never waits, and waiting holds no thread. What the source has
//! ready is loaded by the reader itself, which saves two thread switches. Imports `stats` and the seam to the upstream.

mod decoded_cache;
mod decoders;
mod failure;
#[cfg(test)]
pub(crate) mod fake_source;
mod loader;
mod retry;
mod single_flight;
#[cfg(test)]
mod tests;
mod uncached;

use std::num::NonZero;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use chunkstore::format::NodeId;
use chunkstore::format::manifest::ChunkSource;
use chunkstore::metrics::Metrics;
use chunkstore::{Error, Result};
use quick_cache::sync::Cache as QuickCache;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::decoded_cache::DecodedCache;
pub(crate) use self::decoded_cache::{Cached, Key};
use self::decoders::Decoders;
pub(crate) use self::retry::Retry;
pub(crate) use self::single_flight::Lookup;
use self::single_flight::{PendingLoad, SingleFlight};
use crate::stats::{Statistics, Stats};
use crate::upstream::{FarSource, ReadObserver, Urgency};

/// Default of [`ChunkCacheOptions::cache_bytes_max`].
const CACHE_BYTES_MAX: u64 = 256 << 20;
/// Default of [`ChunkCacheOptions::timeout`].
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// Nodes whose data bytes are remembered.
const COUNTED_NODES_MAX: usize = 64 << 10;

/// Options of a cache.
pub struct ChunkCacheOptions {
    /// Most memory that decoded chunks and manifest nodes take.
    pub cache_bytes_max: u64,
    /// Threads that load what is missing.
    pub threads: usize,
    /// How long a read waits for a source that can't be reached.
    pub timeout: Duration,
    /// The source of what the local one lacks.
    pub far: Option<Arc<dyn FarSource>>,
    /// Registry of its counters.
    pub metrics: Metrics,
    /// Observes reads of snapshots.
    pub observer: Option<Arc<dyn ReadObserver>>,
}

impl Default for ChunkCacheOptions {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            cache_bytes_max: CACHE_BYTES_MAX,
            threads: processors.max(2),
            timeout: TIMEOUT,
            metrics: Metrics::default(),
            far: None,
            observer: None,
        }
    }
}

/// The cache that the disks of a mount share.
pub struct ChunkCache {
    /// This cache, for tasks and threads that load for it.
    this: Weak<Self>,
    source: Arc<dyn ChunkSource>,
    runtime: Handle,
    options: ChunkCacheOptions,
    decoded: DecodedCache,
    loads: Arc<SingleFlight>,
    decoders: Decoders,
    /// Bytes of chunks below the nodes that were counted.
    data_bytes: QuickCache<NodeId, u64>,
    /// One task counts at a time: counting is for `ls` and must not delay readers.
    counting: Semaphore,
    stats: Stats,
}

impl ChunkCache {
    /// Gets chunks from `source`; what waits runs on `runtime`.
    pub fn new(source: Arc<dyn ChunkSource>, runtime: Handle) -> Arc<Self> {
        Self::with_options(source, runtime, ChunkCacheOptions::default())
    }

    /// As [`ChunkCache::new`], but not with the default options.
    pub fn with_options(source: Arc<dyn ChunkSource>, runtime: Handle, options: ChunkCacheOptions) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let loads = Arc::<SingleFlight>::default();
            let cache = this.clone();
            let work = move |batch| {
                if let Some(cache) = cache.upgrade() {
                    cache.load(batch);
                }
            };
            Self {
                this: this.clone(),
                source,
                runtime,
                decoded: DecodedCache::new(options.cache_bytes_max),
                decoders: Decoders::start(options.threads.max(1), &loads, work),
                loads,
                data_bytes: QuickCache::new(COUNTED_NODES_MAX),
                counting: Semaphore::new(1),
                stats: Stats::registered(&options.metrics),
                options,
            }
        })
    }

    /// Where chunks come from.
    pub fn source(&self) -> &Arc<dyn ChunkSource> {
        &self.source
    }

    /// The runtime that drives the futures.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The counters now.
    pub fn statistics(&self) -> Statistics {
        let (cache_bytes, cache_bytes_max) = (self.decoded.bytes(), self.decoded.bytes_max());
        Statistics { cache_bytes, cache_bytes_max, ..self.stats.picture() }
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(crate) fn options(&self) -> &ChunkCacheOptions {
        &self.options
    }

    /// The retries of a read that begins now.
    pub(crate) fn new_retry(&self) -> Retry {
        Retry::new(&self.runtime, self.options.timeout)
    }

    /// Looks up what a reader needs now, and starts to load what is missing.
    pub(crate) fn demand(&self, keys: &[Key]) -> Vec<Lookup> {
        let found: Vec<Lookup> = keys.iter().map(|key| self.look(*key)).collect();
        let new = found.iter().filter_map(|found| match found {
            Lookup::Pending(PendingLoad { load, is_new: true }) => Some(Arc::clone(load)),
            _ => None,
        });
        // The reader itself tries or queues the first; the threads begin with the others.
        self.decoders.push(new.skip(1), Urgency::Demand);
        found
    }

    fn look(&self, key: Key) -> Lookup {
        let found = match self.decoded.get(&key) {
            Some(cached) => Lookup::Hit(cached),
            None => self.loads.find(key, Urgency::Demand, &self.decoded),
        };
        if let Key::Chunk(_) = key {
            self.count(&found);
        }
        found
    }

    fn count(&self, found: &Lookup) {
        match found {
            Lookup::Hit(cached) => {
                self.stats.cache_hits.add(1);
                self.count_use(cached);
            }
            Lookup::Pending(_) => self.stats.cache_misses.add(1),
        }
    }

    fn count_use(&self, cached: &Cached) {
        if cached.begin_use() {
            self.stats.readahead_used_bytes.add(cached.bytes().len() as u64);
        }
    }

    /// Loads what a reader will probably need.
    pub(crate) fn prefetch(&self, keys: impl IntoIterator<Item = Key>) {
        let absent = keys.into_iter().filter(|key| self.decoded.peek(key).is_none());
        let loads = absent.filter_map(|key| match self.loads.find(key, Urgency::Ahead, &self.decoded) {
            Lookup::Pending(PendingLoad { load, is_new: true }) => Some(load),
            _ => None,
        });
        let loads: Vec<_> = loads.collect();
        self.decoders.push(loads, Urgency::Ahead);
    }

    /// Waits for a pending load. If it fails with a transient error, tries again until the timeout.
    pub(crate) async fn obtain(&self, key: Key, mut found: Lookup, retry: &mut Retry) -> Result<Arc<Cached>> {
        loop {
            let error = match self.arrival(found, retry).await {
                Ok(cached) => {
                    // The load may have ended before it saw this reader.
                    self.count_use(&cached);
                    return Ok(cached);
                }
                Err(error) => error,
            };
            if !failure::is_transient(&error) || !retry.pause().await {
                return Err(failure::repeated(&error));
            }
            found = self.demand(&[key]).remove(0);
        }
    }

    async fn arrival(&self, found: Lookup, retry: &Retry) -> Result<Arc<Cached>, Arc<Error>> {
        let load = match found {
            Lookup::Hit(cached) => return Ok(cached),
            Lookup::Pending(coming) => coming.load,
        };
        if let Some(taken) = self.loads.take(&load)
            && let Some(taken) = self.load_at_hand(taken)
        {
            taken.put_back();
            self.decoders.push([Arc::clone(&load)], Urgency::Demand);
        }
        if let Some(outcome) = load.ended() {
            return outcome;
        }
        retry.within(load.end()).await.unwrap_or_else(|| {
            let waited_s = self.options.timeout.as_secs();
            Err(Arc::new(Error::unreachable(format!("the store gave no answer in {waited_s} s"))))
        })
    }

    /// Gets one chunk or node.
    pub(crate) async fn get(&self, key: Key, retry: &mut Retry) -> Result<Arc<Cached>> {
        let found = self.demand(&[key]).remove(0);
        self.obtain(key, found, retry).await
    }
}
