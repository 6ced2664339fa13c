//! The counters of a mount, and a picture of them for `vmfs status`.

use std::time::Instant;

use chunkstore::metrics::{Counter, Description, Gauge, Histogram, Metrics, Percentiles, Unit};
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

/// The counters, each one in the registry of the mount.
pub(crate) struct Stats {
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) readahead_bytes: Counter,
    pub(crate) readahead_used_bytes: Counter,
    local_bytes: Counter,
    upstream_bytes: Counter,
    waiting_reads: Gauge,
    reads: Counter,
    failed_reads: Counter,
    read_bytes: Counter,
    latency: Histogram,
}

impl Stats {
    /// Registers them.
    pub(crate) fn registered(metrics: &Metrics) -> Self {
        let count = |name, help| metrics.counter(Description::new(name, Unit::Count, help));
        let bytes = |name, help| metrics.counter(Description::new(name, Unit::Bytes, help));
        let loaded = |source| {
            let help = "Plain bytes of chunks that were loaded, by where they came from.";
            metrics.counter(Description::new("loaded_bytes_total", Unit::Bytes, help).with_label("source", source))
        };
        Self {
            cache_hits: count("chunk_cache_hits_total", "Chunks that a read found decoded."),
            cache_misses: count("chunk_cache_misses_total", "Chunks that a read did not find decoded."),
            readahead_bytes: bytes(
                "readahead_bytes_total",
                "Plain bytes of chunks that were loaded ahead of a reader.",
            ),
            readahead_used_bytes: bytes("readahead_used_bytes_total", "Bytes read ahead that a reader came for."),
            local_bytes: loaded("local"),
            upstream_bytes: loaded("upstream"),
            waiting_reads: metrics.gauge(Description::new("waiting_reads", Unit::Count, "Reads that have not ended.")),
            reads: count("reads_total", "Reads that ended, failed ones included."),
            failed_reads: count("failed_reads_total", "Reads that ended with an error."),
            read_bytes: bytes("read_bytes_total", "Bytes given to readers, holes included."),
            latency: metrics.histogram(Description::new("read_latency", Unit::Microseconds, "How long reads took.")),
        }
    }

    /// Notes that a chunk came.
    pub(crate) fn came(&self, origin: Origin, bytes: u64) {
        match origin {
            Origin::Local => self.local_bytes.add(bytes),
            Origin::Upstream => self.upstream_bytes.add(bytes),
        }
    }

    /// Notes that a read begins; it ends when the guard is dropped.
    pub(crate) fn begin_read(&self) -> Reading<'_> {
        self.waiting_reads.add(1);
        Reading { stats: self, began: Instant::now(), read_bytes: None }
    }

    /// A picture of now, but for the cache's size.
    pub(crate) fn picture(&self) -> Statistics {
        let Percentiles { p50_us, p90_us, p99_us, max_us, .. } = self.latency.percentiles();
        Statistics {
            cache_bytes: 0,
            cache_bytes_max: 0,
            cache_hits: self.cache_hits.get(),
            cache_misses: self.cache_misses.get(),
            reads: self.reads.get(),
            failed_reads: self.failed_reads.get(),
            waiting_reads: self.waiting_reads.get(),
            read_bytes: self.read_bytes.get(),
            local_bytes: self.local_bytes.get(),
            upstream_bytes: self.upstream_bytes.get(),
            readahead_bytes: self.readahead_bytes.get(),
            readahead_used_bytes: self.readahead_used_bytes.get(),
            latency: Latency { p50_us, p90_us, p99_us, max_us },
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
        self.stats.latency.note(self.began.elapsed());
        self.stats.reads.increment();
        self.stats.waiting_reads.subtract(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn percentiles_and_reads_are_told() {
        let stats = Stats::registered(&Metrics::default());
        for ms in 1..=100 {
            stats.latency.note(Duration::from_millis(ms));
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
