//! A registry of counters, gauges and histograms, each with a name, a unit and a help text.
//!
//! A handle is a clone of the metric: noting a value costs one relaxed atomic operation and takes no lock. The registry
//! only keeps the descriptions and another handle of each, to read them all in one snapshot. A value that something
//! else counts already is registered as a function, so that nothing is counted twice.
//!
//! Names are those of the field: `_total` for what only grows, the unit before it (`read_bytes_total`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

/// The metrics of one store, mount or process. Clones share them.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    description: Description,
    source: Source,
}

/// Where a value is read.
#[derive(Clone)]
enum Source {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    Function(Kind, Arc<dyn Fn() -> u64 + Send + Sync>),
}

/// What a metric is called and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name, such as `read_bytes_total`.
    pub name: &'static str,
    /// A label's name and value, where several metrics share the name: `("source", "local")`.
    pub label: Option<(&'static str, &'static str)>,
    /// What a value of 1 means.
    pub unit: Unit,
    /// What it counts, in one sentence.
    pub help: &'static str,
}

impl Description {
    /// A metric without a label.
    pub const fn new(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, label: None, unit, help }
    }

    /// The same with a label.
    #[must_use]
    pub const fn with_label(self, name: &'static str, value: &'static str) -> Self {
        Self { label: Some((name, value)), ..self }
    }

    fn is_same_metric(&self, other: &Self) -> bool {
        (self.name, self.label) == (other.name, other.label)
    }
}

/// What a value of 1 means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One event or one thing.
    Count,
    /// One byte.
    Bytes,
    /// One microsecond.
    Microseconds,
}

/// How a value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds to it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Subtracts what was added before.
    pub fn subtract(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Steps for each doubling, and doublings: up to 2^32 microseconds, which is more than an hour.
const STEPS: u64 = 4;
const DOUBLINGS: u64 = 32;
const BUCKETS: usize = (STEPS * (DOUBLINGS + 1)) as usize;

/// Counts durations by their logarithm, in steps of about a fifth.
#[derive(Clone, Default)]
pub struct Histogram(Arc<Buckets>);

struct Buckets {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

impl Default for Buckets {
    fn default() -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { counts, sum_us: AtomicU64::new(0), max_us: AtomicU64::new(0) }
    }
}

/// The percentiles of a histogram; each at most a quarter above the exact one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// How many durations were noted.
    pub count: u64,
    /// Their sum.
    pub sum_us: u64,
    /// Half of them were no longer.
    pub p50_us: u64,
    /// Nine of ten were no longer.
    pub p90_us: u64,
    /// 99 of 100 were no longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Histogram {
    /// Counts a duration.
    pub fn note(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.counts[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
        self.0.max_us.fetch_max(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn percentiles(&self) -> Percentiles {
        let counts: Vec<u64> = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let (sum_us, max_us) = (self.0.sum_us.load(Ordering::Relaxed), self.0.max_us.load(Ordering::Relaxed));
        let at = |percent: u64| percentile_us(&counts, percent).min(max_us);
        Percentiles { count: counts.iter().sum(), sum_us, p50_us: at(50), p90_us: at(90), p99_us: at(99), max_us }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.percentiles().fmt(f)
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

impl Metrics {
    /// A counter. The same name and label give the same counter.
    ///
    /// # Panics
    /// If the name and label are those of another kind of metric.
    pub fn counter(&self, description: Description) -> Counter {
        match self.source(description, || Source::Counter(Counter::default())) {
            Source::Counter(counter) => counter,
            _ => panic!("{} is no counter", description.name),
        }
    }

    /// A gauge. The same name and label give the same gauge.
    ///
    /// # Panics
    /// If the name and label are those of another kind of metric.
    pub fn gauge(&self, description: Description) -> Gauge {
        match self.source(description, || Source::Gauge(Gauge::default())) {
            Source::Gauge(gauge) => gauge,
            _ => panic!("{} is no gauge", description.name),
        }
    }

    /// A histogram of durations. The same name and label give the same histogram.
    ///
    /// # Panics
    /// If the name and label are those of another kind of metric.
    pub fn histogram(&self, description: Description) -> Histogram {
        match self.source(description, || Source::Histogram(Histogram::default())) {
            Source::Histogram(histogram) => histogram,
            _ => panic!("{} is no histogram", description.name),
        }
    }

    /// Reads a value that is counted elsewhere. `read` must be quick and must not use this registry; it replaces an
    /// earlier function of the same name and label.
    pub fn observe(&self, kind: Kind, description: Description, read: impl Fn() -> u64 + Send + Sync + 'static) {
        let mut entries = self.entries();
        entries.retain(|entry| !entry.description.is_same_metric(&description));
        entries.push(Entry { description, source: Source::Function(kind, Arc::new(read)) });
    }

    fn source(&self, description: Description, make: impl FnOnce() -> Source) -> Source {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter().find(|entry| entry.description.is_same_metric(&description)) {
            return entry.source.clone();
        }
        let source = make();
        entries.push(Entry { description, source: source.clone() });
        source
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock()
    }

    /// The values of all metrics now, by name and label.
    pub fn snapshot(&self) -> Vec<Sample> {
        let mut samples: Vec<Sample> = self.entries().iter().map(Sample::of).collect();
        samples.sort_by(|a, b| (&a.name, &a.label).cmp(&(&b.name, &b.label)));
        samples
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}

/// The value of one metric at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its label's name and value, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<(String, String)>,
    /// What a value of 1 means.
    pub unit: Unit,
    /// What it counts.
    pub help: String,
    /// The value.
    #[serde(flatten)]
    pub value: Value,
}

/// A value, with what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "lowercase")]
pub enum Value {
    /// Only grows while the process lives.
    Counter(u64),
    /// Goes up and down.
    Gauge(u64),
    /// Of durations.
    Histogram(Percentiles),
}

impl Sample {
    fn of(entry: &Entry) -> Self {
        let Description { name, label, unit, help } = entry.description;
        let value = match &entry.source {
            Source::Counter(counter) => Value::Counter(counter.get()),
            Source::Gauge(gauge) => Value::Gauge(gauge.get()),
            Source::Histogram(histogram) => Value::Histogram(histogram.percentiles()),
            Source::Function(Kind::Counter, read) => Value::Counter(read()),
            Source::Function(Kind::Gauge, read) => Value::Gauge(read()),
        };
        let label = label.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { name: name.to_owned(), label, unit, help: help.to_owned(), value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READS: Description = Description::new("reads_total", Unit::Count, "Reads that ended.");

    #[test]
    fn handles_of_one_name_and_label_are_one_metric() {
        let metrics = Metrics::default();
        let (reads, same) = (metrics.counter(READS), metrics.clone().counter(READS));
        let far = metrics.counter(READS.with_label("source", "upstream"));
        reads.add(2);
        same.increment();
        far.increment();
        let values = |name: &str| -> Vec<_> {
            metrics.snapshot().into_iter().filter(|s| s.name == name).map(|s| (s.label, s.value)).collect()
        };
        let label = Some(("source".to_owned(), "upstream".to_owned()));
        assert_eq!(values("reads_total"), [(None, Value::Counter(3)), (label, Value::Counter(1))]);

        let clients = metrics.gauge(Description::new("clients", Unit::Count, "Clients."));
        clients.add(3);
        clients.subtract(1);
        assert_eq!(values("clients"), [(None, Value::Gauge(2))]);
        metrics.observe(Kind::Gauge, Description::new("clients", Unit::Count, "Clients."), || 7);
        assert_eq!(values("clients"), [(None, Value::Gauge(7))]);
    }

    #[test]
    #[should_panic(expected = "reads_total is no gauge")]
    fn a_name_is_of_one_kind() {
        let metrics = Metrics::default();
        metrics.counter(READS);
        metrics.gauge(READS);
    }

    #[test]
    fn a_snapshot_survives_json() {
        let metrics = Metrics::default();
        metrics.counter(READS.with_label("source", "local")).add(5);
        metrics.histogram(Description::new("read_time", Unit::Microseconds, "Time.")).note(Duration::from_millis(3));
        let json = serde_json::to_string(&metrics.snapshot()).unwrap();
        assert!(json.contains(r#""kind":"counter","value":5"#), "{json}");
        assert_eq!(serde_json::from_str::<Vec<Sample>>(&json).unwrap(), metrics.snapshot());
    }

    #[test]
    fn buckets_cover_all_durations_in_order() {
        for us in (0..10_000).chain((0..64).map(|bit| 1 << bit)) {
            let bucket = bucket(us);
            if bucket < BUCKETS - 1 {
                assert!(us <= longest_us(bucket), "{us} in {bucket}");
                assert!(bucket == 0 || us > longest_us(bucket - 1), "{us} in {bucket}");
                assert!(longest_us(bucket) - us <= us / 4, "{us} read as {}", longest_us(bucket));
            }
        }
    }

    #[test]
    fn percentiles_are_at_most_a_quarter_above() {
        let histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), Percentiles::default());
        for ms in 1..=100 {
            histogram.note(Duration::from_millis(ms));
        }
        let read = histogram.percentiles();
        for (read, exact) in [(read.p50_us, 50_000), (read.p90_us, 90_000), (read.p99_us, 99_000)] {
            assert!(read >= exact && read <= exact * 5 / 4, "{read} for {exact}");
        }
        assert_eq!((read.count, read.sum_us, read.max_us), (100, 5_050_000, 100_000));
    }
}
