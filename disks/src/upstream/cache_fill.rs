//! Puts fetched records into the local store, in the background and as far as there is room.
//!
//! A failure to keep a record fails no read. A record that the local owner claims to have, although it could not be
//! read, is reported; if it turns out to be damaged, it is put again, whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chunkstore::format::{ChunkId, Kind, Record, RecordId};
use chunkstore::metrics::{Counter, Description, Gauge, Metrics, Unit};
use chunkstore::store::Claim;
use chunkstore::{Error, Result};
use replicate::rpc::client::ClientSession;
use replicate::rpc::wire::Purpose;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::negative_cache::NegativeCache;
use super::reconnect::{ReconnectingClient, is_passing};
use super::unsealed_cache::UnsealedCache;

/// Bytes that may wait to be kept; records that arrive beyond this are not kept.
const WAITING_BYTES_MAX: u64 = 32 << 20;
/// Records that are put together.
const BATCH: usize = 128;
/// Records are sealed at this many bytes or at this age; before that they can't be read from the store.
const UNSEALED_BYTES_MAX: usize = 16 << 20;
const UNSEALED_TIME_MAX: Duration = Duration::from_secs(20);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(15);
/// Pause while the owner is being replaced.
const PAUSE_SHORT: Duration = Duration::from_secs(1);

/// A record that was fetched and verified.
pub(super) struct FetchedRecord {
    /// Without a base.
    pub(super) whole: Arc<Record>,
    /// As it came, if that was a delta.
    pub(super) delta: Option<Record>,
}

impl FetchedRecord {
    fn id(&self) -> RecordId {
        self.whole.header.id
    }

    fn bytes(&self) -> usize {
        self.whole.bytes() + self.delta.as_ref().map_or(0, Record::bytes)
    }
}

/// Counters of the records that were kept.
pub(super) struct FillCounters {
    waiting_bytes: Gauge,
    pub(super) records: Counter,
    pub(super) bytes: Counter,
    pub(super) healed: Counter,
    pub(super) not_kept: Counter,
    pub(super) is_failing: AtomicBool,
}

impl FillCounters {
    fn registered(metrics: &Metrics) -> Self {
        let count = |name, help| metrics.counter(Description::new(name, Unit::Count, help));
        let bytes = |name, help| Description::new(name, Unit::Bytes, help);
        Self {
            waiting_bytes: metrics.gauge(bytes("kept_waiting_bytes", "Fetched bytes that wait to be kept.")),
            records: count("kept_records_total", "Fetched records that were put into the local store."),
            bytes: metrics.counter(bytes("kept_bytes_total", "Bytes of these records.")),
            healed: count("healed_records_total", "Damaged records of the local store that were replaced."),
            not_kept: count("not_kept_records_total", "Fetched records that were given to readers and not kept."),
            is_failing: AtomicBool::new(false),
        }
    }
}

/// The queue in front of [`CacheFiller`].
#[derive(Clone)]
pub(super) struct FillQueue {
    sender: mpsc::UnboundedSender<FetchedRecord>,
    pub(super) fill_counters: Arc<FillCounters>,
}

impl FillQueue {
    /// A queue and its receiver.
    pub(super) fn new(metrics: &Metrics) -> (Self, mpsc::UnboundedReceiver<FetchedRecord>) {
        let (sender, offered) = mpsc::unbounded_channel();
        (Self { sender, fill_counters: Arc::new(FillCounters::registered(metrics)) }, offered)
    }

    /// Whether too much waits. Never true after the filler has ended: the queue would not drain.
    pub(super) fn is_behind(&self) -> bool {
        !self.sender.is_closed() && self.fill_counters.waiting_bytes.get() > WAITING_BYTES_MAX / 2
    }

    pub(super) fn offer(&self, kept: FetchedRecord) {
        let (waiting_bytes, bytes) = (&self.fill_counters.waiting_bytes, kept.bytes() as u64);
        waiting_bytes.add(bytes);
        if waiting_bytes.get() > WAITING_BYTES_MAX + bytes || self.sender.send(kept).is_err() {
            waiting_bytes.subtract(bytes);
            self.fill_counters.not_kept.increment();
        }
    }
}

/// The task that puts queued records into the local store.
pub(super) struct CacheFiller {
    near: Arc<ReconnectingClient>,
    unsealed_cache: Arc<UnsealedCache>,
    negative_cache: Arc<NegativeCache>,
    fill_counters: Arc<FillCounters>,
    session: Option<ClientSession>,
    unsealed: Vec<(RecordId, Kind)>,
    unsealed_bytes: usize,
    seal_at: Instant,
    not_before: Instant,
}

impl CacheFiller {
    pub(super) fn new(
        near: Arc<ReconnectingClient>,
        unsealed_cache: Arc<UnsealedCache>,
        negative_cache: Arc<NegativeCache>,
        fill_queue: &FillQueue,
    ) -> Self {
        let now = Instant::now();
        Self {
            near,
            unsealed_cache,
            negative_cache,
            fill_counters: Arc::clone(&fill_queue.fill_counters),
            session: None,
            unsealed: Vec::new(),
            unsealed_bytes: 0,
            seal_at: now,
            not_before: now,
        }
    }

    /// Keeps queued records until it is stopped, then seals them.
    pub(super) async fn run(
        mut self,
        mut offered: mpsc::UnboundedReceiver<FetchedRecord>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            tokio::select! {
                biased;
                () = sleep_until(self.seal_at), if !self.unsealed.is_empty() => self.seal().await,
                first = offered.recv() => match first {
                    Some(first) => self.keep(Self::gather(first, &mut offered)).await,
                    None => break,
                },
                () = stopped(&mut stop) => break,
            }
        }
        self.seal().await;
    }

    fn gather(first: FetchedRecord, offered: &mut mpsc::UnboundedReceiver<FetchedRecord>) -> Vec<FetchedRecord> {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = offered.try_recv()
        {
            batch.push(next);
        }
        batch
    }

    async fn keep(&mut self, batch: Vec<FetchedRecord>) {
        let bytes = batch.iter().map(FetchedRecord::bytes).sum::<usize>() as u64;
        let kept =
            if Instant::now() < self.not_before { Ok(false) } else { self.try_keep(&batch).await.map(|()| true) };
        self.fill_counters.waiting_bytes.subtract(bytes);
        match kept {
            Ok(true) => {
                if self.fill_counters.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("records from upstream are kept again");
                }
                if self.unsealed_bytes >= UNSEALED_BYTES_MAX {
                    self.seal().await;
                }
            }
            Ok(false) => self.fill_counters.not_kept.add(batch.len() as u64),
            Err(error) => {
                self.fill_counters.not_kept.add(batch.len() as u64);
                self.fail(&error);
            }
        }
    }

    fn fail(&mut self, error: &Error) {
        if !self.fill_counters.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!("records from upstream are not kept for now: {error}");
        }
        self.session = None;
        self.unsealed.clear();
        self.unsealed_bytes = 0;
        self.not_before = Instant::now() + if is_passing(error) { PAUSE_SHORT } else { PAUSE };
    }

    async fn try_keep(&mut self, batch: &[FetchedRecord]) -> Result<()> {
        if self.session.is_none() {
            let client = self.near.client().await?;
            self.session = Some(ClientSession::begin(&client, Purpose::Receive, None).await?);
        }
        let session = self.session.as_ref().expect("one was begun");
        let ids: Vec<RecordId> = batch.iter().map(FetchedRecord::id).collect();
        let claims = claims(session, &ids, &self.fill_counters).await?;
        let records = chosen(session, batch, &claims).await?;
        session.put_all(&records).await?;
        if self.unsealed.is_empty() {
            self.seal_at = Instant::now() + UNSEALED_TIME_MAX;
        }
        let bytes: usize = records.iter().map(Record::bytes).sum();
        self.unsealed.extend(records.iter().map(|record| (record.header.id, record.header.kind)));
        self.unsealed_bytes += bytes;
        self.fill_counters.records.add(records.len() as u64);
        self.fill_counters.bytes.add(bytes as u64);
        Ok(())
    }

    /// Makes the records durable and readable from the local store.
    async fn seal(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(error) = session.flush().await {
            return self.fail(&error);
        }
        for (id, _) in self.unsealed.iter().filter(|(_, kind)| *kind == Kind::Chunk) {
            self.negative_cache.remove(ChunkId::from_bytes(*id.as_bytes()));
        }
        self.unsealed_cache.remove(self.unsealed.drain(..).map(|(id, _)| id));
        self.unsealed_bytes = 0;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender means stop, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Claims what the local store lacks. It could not give these records, so those that it claims to have are checked.
async fn claims(session: &ClientSession, ids: &[RecordId], fill_counters: &FillCounters) -> Result<Vec<Claim>> {
    let (_, mut claims) = session.claim(ids).await?;
    let is_present = |at: &usize| claims[*at] == Claim::Present;
    let present: Vec<usize> = (0..ids.len()).filter(is_present).collect();
    let suspects: Vec<RecordId> = present.iter().map(|at| ids[*at]).collect();
    if suspects.is_empty() {
        return Ok(claims);
    }
    let is_bad = session.client().suspect(&suspects).await?;
    let bad: Vec<usize> = present.into_iter().zip(is_bad).filter(|(_, is_bad)| *is_bad).map(|(at, _)| at).collect();
    let again: Vec<RecordId> = bad.iter().map(|at| ids[*at]).collect();
    if again.is_empty() {
        return Ok(claims);
    }
    let (_, anew) = session.claim(&again).await?;
    for (at, claim) in bad.into_iter().zip(anew) {
        claims[at] = claim;
        fill_counters.healed.add(u64::from(claim == Claim::YoursWhole));
    }
    Ok(claims)
}

/// The records to put: as deltas where the store has the base.
async fn chosen(session: &ClientSession, batch: &[FetchedRecord], claims: &[Claim]) -> Result<Vec<Record>> {
    let yours = || batch.iter().zip(claims).filter(|(_, claim)| matches!(claim, Claim::Yours | Claim::YoursWhole));
    let deltas = || yours().filter(|(_, claim)| **claim == Claim::Yours).filter_map(|(kept, _)| kept.delta.as_ref());
    let bases: Vec<RecordId> = deltas().filter_map(|delta| delta.header.base).collect();
    let is_full = if bases.is_empty() { Vec::new() } else { session.client().full(&bases).await? };
    let full: HashSet<RecordId> = bases.into_iter().zip(is_full).filter(|(_, full)| *full).map(|(id, _)| id).collect();
    let record = |(kept, claim): (&FetchedRecord, &Claim)| {
        let delta = kept.delta.as_ref().filter(|_| *claim == Claim::Yours);
        let fits = |delta: &&Record| delta.header.base.is_some_and(|base| full.contains(&base));
        delta.filter(fits).unwrap_or(&kept.whole).clone()
    };
    Ok(yours().map(record).collect())
}
