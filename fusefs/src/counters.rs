//! Counters of the requests that the mount answers.

use chunkstore::metrics::{Counter, Description, Metrics, Unit};
use serde::{Deserialize, Serialize};

/// Counters in the registry of the mount.
pub(crate) struct Counters {
    reads: Counter,
    read_bytes: Counter,
    writes: Counter,
    written_bytes: Counter,
    failures: Counter,
}

/// How many requests were answered since the view was mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// Reads.
    pub reads: u64,
    /// Bytes that they asked for, within the disks' sizes.
    pub read_bytes: u64,
    /// Writes to clones.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Requests that failed and could not have been known to.
    pub failures: u64,
}

impl Counters {
    pub(crate) fn registered(metrics: &Metrics) -> Self {
        let counter = |name, unit, help| metrics.counter(Description::new(name, unit, help));
        Self {
            reads: counter("fuse_reads_total", Unit::Count, "Read requests of the kernel."),
            read_bytes: counter("fuse_read_bytes_total", Unit::Bytes, "Bytes that these asked for."),
            writes: counter("fuse_writes_total", Unit::Count, "Write requests of the kernel."),
            written_bytes: counter("fuse_written_bytes_total", Unit::Bytes, "Bytes of these."),
            failures: counter("fuse_failures_total", Unit::Count, "Requests that failed unexpectedly."),
        }
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.reads.increment();
        self.read_bytes.add(bytes);
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.writes.increment();
        self.written_bytes.add(bytes);
    }

    pub(crate) fn failed(&self) {
        self.failures.increment();
    }

    pub(crate) fn snapshot(&self) -> Requests {
        Requests {
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            failures: self.failures.get(),
        }
    }
}
