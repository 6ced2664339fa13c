//! What a mount counts: cheap to note, and a picture of it for `vmfs status`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A picture of all counters since the mount began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Memory that the cache of decoded chunks takes.
    pub cache_bytes: u64,
    /// Its bound.
    pub cache_bytes_max: u64,
    /// Chunks that a read found decoded.
    pub cache_hits: u64,
    /// Chunks that a read did not find decoded.
    pub cache_misses: u64,
    /// Reads that ended, failed ones included.
    pub reads: u64,
    /// Reads that ended with an error.
    pub failed_reads: u64,
    /// Reads that have not ended.
    pub waiting_reads: u64,
    /// Bytes given to readers, holes included.
    pub read_bytes: u64,
    /// Plain bytes of chunks that came from the local store.
    pub local_bytes: u64,
    /// Plain bytes of chunks that came from the upstream.
    pub upstream_bytes: u64,
    /// Plain bytes of chunks that were asked for before a reader came.
    pub readahead_bytes: u64,
    /// Those of them that a reader came for.
    pub readahead_used_bytes: u64,
    /// How long reads took.
    pub latency: Latency,
}

/// How long reads took, in steps of about a fifth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Half of all took no longer.
    pub p50_us: u64,
    /// Nine of ten took no longer.
    pub p90_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// None took longer.
    pub max_us: u64,
}

/// Where a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The local store.
    Local,
    /// The upstream.
    Upstream,
}

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) cache_hits: Count,
    pub(crate) cache_misses: Count,
    pub(crate) readahead_bytes: Count,
    pub(crate) readahead_used_bytes: Count,
    local_bytes: Count,
    upstream_bytes: Count,
    begun_reads: Count,
    ended_reads: Count,
    failed_reads: Count,
    read_bytes: Count,
    latencies: Histogram,
}

impl Stats {
    /// Notes that a chunk came.
    pub(crate) fn came(&self, origin: Origin, bytes: u64) {
        match origin {
            Origin::Local => self.local_bytes.add(bytes),
            Origin::Upstream => self.upstream_bytes.add(bytes),
        }
    }

    /// Notes that a read begins; it ends when the guard is dropped.
    pub(crate) fn begin_read(&self) -> Reading<'_> {
        self.begun_reads.add(1);
        Reading { stats: self, began: Instant::now(), read_bytes: None }
    }

    /// A picture of now, but for the cache's size.
    pub(crate) fn picture(&self) -> Statistics {
        let reads = self.ended_reads.get();
        Statistics {
            cache_bytes: 0,
            cache_bytes_max: 0,
            cache_hits: self.cache_hits.get(),
            cache_misses: self.cache_misses.get(),
            reads,
            failed_reads: self.failed_reads.get(),
            waiting_reads: self.begun_reads.get().saturating_sub(reads),
            read_bytes: self.read_bytes.get(),
            local_bytes: self.local_bytes.get(),
            upstream_bytes: self.upstream_bytes.get(),
            readahead_bytes: self.readahead_bytes.get(),
            readahead_used_bytes: self.readahead_used_bytes.get(),
            latency: self.latencies.picture(),
        }
    }
}

/// A read that has not ended. One that is given up counts as failed.
pub(crate) struct Reading<'a> {
    stats: &'a Stats,
    began: Instant,
    read_bytes: Option<u64>,
}

impl Reading<'_> {
    /// Notes that all bytes were given.
    pub(crate) fn succeed(mut self, bytes: usize) {
        self.read_bytes = Some(bytes as u64);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        match self.read_bytes {
            Some(bytes) => self.stats.read_bytes.add(bytes),
            None => self.stats.failed_reads.add(1),
        }
        self.stats.latencies.note(self.began.elapsed());
        self.stats.ended_reads.add(1);
    }
}

/// Steps for each doubling, and doublings: up to 2^32 microseconds, which is more than an hour.
const STEPS: u64 = 4;
const DOUBLINGS: u64 = 32;
const BUCKETS: usize = (STEPS * (DOUBLINGS + 1)) as usize;

/// Counts by the logarithm of a duration.
struct Histogram {
    counts: [Count; BUCKETS],
    max_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Count::default()), max_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)].add(1);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    fn picture(&self) -> Latency {
        let counts: Vec<u64> = self.counts.iter().map(Count::get).collect();
        let max_us = self.max_us.load(Ordering::Relaxed);
        let at = |percent: u64| percentile_us(&counts, percent).min(max_us);
        Latency { p50_us: at(50), p90_us: at(90), p99_us: at(99), max_us }
    }
}

/// Below 4 µs each has its own; above, four for each doubling.
fn bucket(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let doubling = u64::from(us.ilog2()) - 1;
    let step = (us >> (doubling - 1)) - STEPS;
    ((doubling * STEPS + step) as usize).min(BUCKETS - 1)
}

/// The longest duration that is counted in a bucket.
fn longest_us(bucket: usize) -> u64 {
    let (doubling, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    if doubling == 0 { step } else { ((STEPS + step + 1) << (doubling - 1)) - 1 }
}

fn percentile_us(counts: &[u64], percent: u64) -> u64 {
    let all: u64 = counts.iter().sum();
    let wanted = (all * percent).div_ceil(100);
    let mut counted = 0;
    let found = counts.iter().position(|count| {
        counted += count;
        counted >= wanted
    });
    found.filter(|_| all > 0).map_or(0, longest_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_all_durations_in_order() {
        for us in (0..10_000).chain((0..64).map(|bit| 1 << bit)) {
            let bucket = bucket(us);
            if bucket < BUCKETS - 1 {
                assert!(us <= longest_us(bucket), "{us} in {bucket}");
                assert!(bucket == 0 || us > longest_us(bucket - 1), "{us} in {bucket}");
                assert!(longest_us(bucket) - us <= us / 4, "{us} told as {}", longest_us(bucket));
            }
        }
    }

    #[test]
    fn percentiles_and_reads_are_told() {
        let stats = Stats::default();
        for ms in 1..=100 {
            stats.latencies.note(Duration::from_millis(ms));
        }
        let latency = stats.picture().latency;
        for (told, truth) in [(latency.p50_us, 50_000), (latency.p90_us, 90_000), (latency.p99_us, 99_000)] {
            assert!(told >= truth && told <= truth * 5 / 4, "{told} for {truth}");
        }
        assert_eq!(latency.max_us, 100_000);

        let waiting = stats.begin_read();
        stats.begin_read().succeed(10);
        drop(stats.begin_read());
        let picture = stats.picture();
        assert_eq!((picture.reads, picture.failed_reads, picture.waiting_reads, picture.read_bytes), (2, 1, 1, 10));
        drop(waiting);
        assert_eq!(stats.picture().waiting_reads, 0);
    }
}
