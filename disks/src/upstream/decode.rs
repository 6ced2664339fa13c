//! Decodes fetched records: finds the bases of deltas, and verifies that the content is what was asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{Chunk, ChunkId, Codec, Kind, NodeId, Record, RecordCodec, RecordId};
use chunkstore::metrics::{Counter, Description, Metrics, Unit};
use chunkstore::pack::check_plain;
use chunkstore::{Error, Result};
use replicate::rpc::wire::{Fetch, WireError};

use super::cache_fill::{FetchedRecord, FillQueue};
use super::queue::{Fetched, Queue};
use super::unsealed_cache::UnsealedCache;

/// Bound of the score by which bases are expected here or not.
const SURE: i32 = 32;

/// Marks an error as one of the far store.
pub(super) fn told(error: &Error) -> Error {
    match error {
        Error::Damaged { what, detail } => Error::damaged(what, format!("{detail} (upstream)")),
        other => WireError::from(other).into(),
    }
}

/// Counts what is fetched.
pub(super) struct Counters {
    pub(super) records: Counter,
    pub(super) bytes: Counter,
    pub(super) requests: Counter,
    pub(super) refused: Counter,
}

impl Counters {
    fn registered(metrics: &Metrics) -> Self {
        let counter = |name, unit, help| metrics.counter(Description::new(name, unit, help));
        Self {
            records: counter("upstream_records_total", Unit::Count, "Records that came from the upstream."),
            bytes: counter("upstream_bytes_total", Unit::Bytes, "Bytes of these records, as they travelled."),
            requests: counter("upstream_requests_total", Unit::Count, "Requests for records."),
            refused: counter(
                "upstream_refused_records_total",
                Unit::Count,
                "Records that were not what they should be.",
            ),
        }
    }
}

/// Hands fetched records to the readers that wait for them and to the local store.
pub(super) struct Intake {
    pub(super) queue: Queue,
    pub(super) unsealed_cache: Arc<UnsealedCache>,
    pub(super) fill_queue: FillQueue,
    pub(super) counters: Counters,
    /// Above 0 if most deltas have their bases here.
    pub(super) bases_here: AtomicI32,
    /// The local store, for bases.
    pub(super) local: Arc<dyn ChunkSource>,
    /// The local store's.
    codec: RecordCodec,
}

impl Intake {
    pub(super) fn new(
        unsealed_cache: Arc<UnsealedCache>,
        fill_queue: FillQueue,
        local: Arc<dyn ChunkSource>,
        codec: RecordCodec,
        metrics: &Metrics,
    ) -> Self {
        let (queue, counters) = (Queue::default(), Counters::registered(metrics));
        Self { queue, unsealed_cache, fill_queue, counters, bases_here: AtomicI32::new(0), local, codec }
    }

    /// The content of a record that was fetched and is not sealed in the local store yet.
    pub(super) fn unsealed(&self, id: RecordId) -> Option<Vec<u8>> {
        let record = self.unsealed_cache.get(id)?;
        let (header, payload) = (&record.header, &record.payload);
        self.codec.decode(header, payload, None).ok()
    }
}

/// The records of one answer.
pub(super) struct Decoding<'a> {
    intake: &'a Intake,
    /// The upstream's.
    codec: RecordCodec,
    bases: HashMap<RecordId, Vec<u8>>,
    /// Whether the local store was already checked for bases, although they came along.
    has_looked: bool,
}

impl<'a> Decoding<'a> {
    pub(super) fn new(intake: &'a Intake, codec: RecordCodec) -> Self {
        Self { intake, codec, bases: HashMap::new(), has_looked: false }
    }

    fn plain(&self, record: &Record, base: Option<&[u8]>) -> Result<Vec<u8>> {
        let header = &record.header;
        let decoded = self.codec.decode(header, &record.payload, base);
        decoded.map_err(|detail| Error::damaged(format!("record {}", header.id), detail))
    }

    /// Adds a base that came along, unless it fails verification.
    pub(super) fn add_base(&mut self, record: &Record) {
        let header = &record.header;
        if header.codec != Codec::Delta
            && let Ok(plain) = self.plain(record, None).and_then(|plain| check_plain(header.kind, header.id, plain))
        {
            self.bases.insert(header.id, plain);
        }
    }

    /// Decodes a record and hands it on; false if its base is missing.
    pub(super) fn take(&mut self, (id, kind): (RecordId, Kind), record: Record, fetch: Fetch) -> bool {
        if let Some(base) = record.header.base {
            self.learn(base, kind, fetch);
            if !self.bases.contains_key(&base) {
                return fetch == Fetch::Whole;
            }
        }
        let counters = &self.intake.counters;
        counters.bytes.add(record.bytes() as u64);
        match self.verified(id, kind, &record) {
            Ok((got, whole)) => {
                let delta = Some(record).filter(|record| record.header.base.is_some());
                let whole = Arc::new(whole);
                self.intake.unsealed_cache.add(Arc::clone(&whole));
                // Before the answer: a reader may stop the service at once.
                self.intake.fill_queue.offer(FetchedRecord { whole, delta });
                self.intake.queue.answer(id, &Ok(got));
            }
            Err(error) => {
                counters.refused.add(1);
                tracing::error!("upstream sent a wrong record: {error}");
                self.intake.queue.answer(id, &Err(told(&error)));
            }
        }
        counters.records.add(1);
        true
    }

    /// Looks for a base in the local store, and learns whether bases need to travel.
    fn learn(&mut self, base: RecordId, kind: Kind, fetch: Fetch) {
        let came = self.bases.contains_key(&base);
        if came && self.has_looked {
            return;
        }
        self.has_looked = true;
        let found = self.local_base(base, kind);
        let step = if found.is_some() { 1 } else { -1 };
        let bases_here = &self.intake.bases_here;
        let sure = bases_here.load(Ordering::Relaxed).saturating_add(step).clamp(-SURE, SURE);
        bases_here.store(sure, Ordering::Relaxed);
        if let Some(plain) = found.filter(|_| !came && fetch != Fetch::Whole) {
            self.bases.insert(base, plain);
        }
    }

    fn local_base(&self, base: RecordId, kind: Kind) -> Option<Vec<u8>> {
        if let Some(plain) = self.intake.unsealed(base) {
            return Some(plain);
        }
        let local = &self.intake.local;
        match kind {
            Kind::Node => local.node(NodeId::from_bytes(*base.as_bytes())).ok().map(|node| node.encode()),
            _ => local.chunk(ChunkId::from_bytes(*base.as_bytes())).ok().map(Chunk::into_bytes),
        }
    }

    /// The verified content, and a record of it without a base.
    fn verified(&mut self, id: RecordId, kind: Kind, record: &Record) -> Result<(Fetched, Record)> {
        let header = record.header;
        if header.kind != kind {
            return Err(Error::damaged(format!("record {id}"), "it is of another kind"));
        }
        let base = header.base.and_then(|base| self.bases.remove(&base).map(|plain| (base, plain)));
        let plain = self.plain(record, base.as_ref().map(|(_, plain)| plain.as_slice()));
        // Another delta of this answer may have the same base.
        self.bases.extend(base);
        let plain = check_plain(kind, id, plain?)?;
        let whole = match header.base {
            // It is kept whole, and seldom for long.
            Some(_) => self.intake.codec.fast().encode(kind, id, &plain, None),
            None => record.clone(),
        };
        let got = match kind {
            Kind::Node => Fetched::Node(Node::verify(NodeId::from_bytes(*id.as_bytes()), &plain)?),
            _ => Fetched::Chunk(Chunk::verify(ChunkId::from_bytes(*id.as_bytes()), plain)?),
        };
        Ok((got, whole))
    }
}
