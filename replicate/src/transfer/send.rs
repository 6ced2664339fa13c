//! Claims records that the receiver may lack, reads those that it does lack, and puts them.
//!
//! Batches are claimed and sent concurrently, so that others fill the link while one waits for an answer. Records that
//! another sender has claimed are claimed again at the end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chunkstore::format::{Codec, HEADER_BYTES, Record, RecordCodec, RecordId};
use chunkstore::store::Claim;
use chunkstore::{Error, Progress, Result};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::report::TransferCounters;
use super::walk::Candidate;
use crate::rpc::client::{Arrived, Bases, Client, ClientSession, Decided, broken, decode, expect_done};
use crate::rpc::wire::Fetch;

/// Batches that are claimed or sent at a time.
const TASKS: usize = 12;
/// Records that are read together.
const GROUP_RECORDS: usize = 32;
/// Most ids that are remembered as present at the receiver; beyond, some are claimed twice, and a dry run counts some
/// twice.
const SEEN_MAX: usize = 1 << 20;
/// While this many records are claimed by others, no more are claimed.
const ELSEWHERE_MAX: usize = 32 << 10;
/// Longest interval between progress updates.
const STEP: Duration = Duration::from_millis(200);
/// Longest wait for another sender. The receiver lets a claim lapse long before.
const ELSEWHERE_TIME_MAX: Duration = Duration::from_mins(30);

/// Records that the receiver is known to have, over several snapshots.
#[derive(Default)]
pub(super) struct Seen {
    ids: Mutex<HashSet<RecordId>>,
    full: Mutex<HashSet<RecordId>>,
    /// Full records of the current snapshot that a dry run would have sent: they can be bases once it is published.
    planned_full: Mutex<HashSet<RecordId>>,
}

impl Seen {
    fn has(&self, id: RecordId) -> bool {
        self.ids.lock().contains(&id)
    }

    fn add(set: &Mutex<HashSet<RecordId>>, ids: impl IntoIterator<Item = RecordId>) {
        let mut set = set.lock();
        if set.len() > SEEN_MAX {
            set.clear();
        }
        set.extend(ids);
    }

    /// In a dry run: the receiver would have the snapshot by now.
    pub(super) fn publish_planned(&self) {
        let planned = std::mem::take(&mut *self.planned_full.lock());
        Self::add(&self.full, planned);
    }
}

/// The transfer of one snapshot. Cheap to clone: its tasks share it.
#[derive(Clone)]
pub(super) struct Sending {
    source: Client,
    /// One for each connection to the receiver; claims go over the first.
    sinks: Vec<Arc<ClientSession>>,
    dry_run: bool,
    counters: Arc<TransferCounters>,
    seen: Arc<Seen>,
    progress: Arc<Progress>,
    /// By the claim's number and the position in it.
    elsewhere: Arc<Mutex<HashMap<(u32, usize), Candidate>>>,
}

/// A candidate that is to be sent.
struct Wanted {
    candidate: Candidate,
    /// Never as a delta.
    whole: bool,
}

impl Sending {
    pub(super) fn new(source: Client, sinks: Vec<Arc<ClientSession>>, dry_run: bool, shared: &Shared<'_>) -> Self {
        let (counters, seen) = (Arc::clone(shared.counters), Arc::clone(shared.seen));
        let progress = Arc::clone(shared.progress);
        Self { source, sinks, dry_run, counters, seen, progress, elsewhere: Arc::default() }
    }

    /// Sends the batches' records, until the batches end and no record is claimed by another sender.
    pub(super) async fn run(&self, mut batches: mpsc::Receiver<Vec<Candidate>>) -> Result<()> {
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        let mut asking: JoinSet<Result<Vec<Wanted>>> = JoinSet::new();
        let mut number = 0;
        let mut ended = false;
        // Of those that are elsewhere.
        let mut decided_last = Instant::now();
        loop {
            self.progress.check()?;
            self.tell();
            let elsewhere = self.elsewhere.lock().len();
            if elsewhere == 0 {
                decided_last = Instant::now();
            } else if decided_last.elapsed() > ELSEWHERE_TIME_MAX {
                return Err(broken("records stayed claimed by another sender for 30 minutes"));
            }
            if elsewhere > 0 && asking.is_empty() {
                let this = self.clone();
                asking.spawn(async move { this.ask_again().await });
            }
            if ended && tasks.is_empty() && asking.is_empty() && elsewhere == 0 {
                return Ok(());
            }
            tokio::select! {
                batch = batches.recv(), if !ended && tasks.len() < TASKS && elsewhere < ELSEWHERE_MAX => match batch {
                    Some(batch) => {
                        let this = self.clone();
                        number += 1;
                        tasks.spawn(async move { this.claim_and_send(number, batch).await });
                    }
                    None => ended = true,
                },
                Some(done) = tasks.join_next() => done.map_err(|_| failed())??,
                Some(decided) = asking.join_next() => {
                    let wanted = decided.map_err(|_| failed())??;
                    if self.elsewhere.lock().len() < elsewhere {
                        decided_last = Instant::now();
                    }
                    if !wanted.is_empty() {
                        let this = self.clone();
                        number += 1;
                        tasks.spawn(async move { this.send(number, wanted).await });
                    }
                }
                () = sleep(STEP) => {}
            }
        }
    }

    fn tell(&self) {
        let saved = self.counters.plain_bytes_considered.get().saturating_sub(self.counters.plain_bytes_sent.get());
        self.progress.set_transfer(self.counters.record_bytes.get(), saved);
    }

    /// Claims a batch and sends the missing records.
    async fn claim_and_send(&self, number: usize, batch: Vec<Candidate>) -> Result<()> {
        self.count_considered(&batch);
        let batch: Vec<_> = batch.into_iter().filter(|candidate| !self.seen.has(candidate.id)).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = batch.iter().map(|candidate| candidate.id).collect();
        let (request, claims) = self.sinks[0].claim(&ids).await?;
        let mut wanted = Vec::new();
        let mut present = Vec::new();
        for (position, (candidate, claim)) in batch.into_iter().zip(claims).enumerate() {
            match claim {
                Claim::Present => present.push(candidate.id),
                Claim::Yours => wanted.push(Wanted { candidate, whole: false }),
                Claim::YoursWhole => wanted.push(Wanted { candidate, whole: true }),
                Claim::Elsewhere => drop(self.elsewhere.lock().insert((request, position), candidate)),
            }
        }
        Seen::add(&self.seen.ids, present);
        self.send(number, wanted).await
    }

    fn count_considered(&self, batch: &[Candidate]) {
        for candidate in batch.iter().filter(|candidate| candidate.is_chunk) {
            self.counters.chunks_considered.increment();
            self.counters.plain_bytes_considered.add(u64::from(candidate.plain_bytes));
        }
    }

    /// Asks for the outcome of records claimed by others, and returns those that have to be sent after all.
    async fn ask_again(&self) -> Result<Vec<Wanted>> {
        let mut wanted = Vec::new();
        let decided = self.sinks[0].decided().await?;
        if decided.is_empty() {
            // A receiver waits before it answers with nothing; one that does not wait is not polled without end.
            sleep(STEP).await;
        }
        for Decided { request, position, claim } in decided {
            let candidate = self.elsewhere.lock().remove(&(request, position));
            // The outcome of a claim may overtake the answer to it.
            let Some(candidate) = candidate else { continue };
            match claim {
                Claim::Present => Seen::add(&self.seen.ids, [candidate.id]),
                Claim::Yours | Claim::YoursWhole => {
                    wanted.push(Wanted { candidate, whole: claim == Claim::YoursWhole });
                }
                Claim::Elsewhere => return Err(broken("a record that another session has claimed counts as decided")),
            }
        }
        Ok(wanted)
    }

    /// Reads and puts records, in groups; returns when the receiver has them.
    async fn send(&self, number: usize, mut wanted: Vec<Wanted>) -> Result<()> {
        let sink = &self.sinks[number % self.sinks.len()];
        let mut answers = Vec::new();
        while !wanted.is_empty() {
            let group: Vec<_> = wanted.drain(..wanted.len().min(GROUP_RECORDS)).collect();
            let records = self.fit(self.read(group).await?).await?;
            self.count_sent(&records);
            if self.dry_run {
                continue;
            }
            let mut batch = sink.batch();
            for (record, _) in &records {
                batch.push(record);
                if batch.is_full() {
                    answers.push(sink.put(std::mem::replace(&mut batch, sink.batch())).await?);
                }
            }
            if !batch.is_empty() {
                answers.push(sink.put(batch).await?);
            }
            Seen::add(&self.seen.ids, records.iter().map(|(record, _)| record.header.id));
        }
        for answer in answers {
            expect_done(&answer.reply().await?)?;
        }
        Ok(())
    }

    fn count_sent(&self, records: &[(Record, Option<RecordId>)]) {
        for (record, _) in records {
            let counters = &self.counters;
            counters.record_bytes.add((HEADER_BYTES + record.payload.len()) as u64);
            if record.header.kind == chunkstore::format::Kind::Chunk {
                counters.chunks_sent.increment();
                counters.plain_bytes_sent.add(u64::from(record.header.plain_bytes));
                counters.deltas_sent.add(u64::from(record.header.codec == Codec::Delta));
            }
        }
        if self.dry_run {
            // In a real run the receiver would have these by now.
            Seen::add(&self.seen.ids, records.iter().map(|(record, _)| record.header.id));
            let whole = records.iter().filter(|(record, _)| record.header.codec != Codec::Delta);
            Seen::add(&self.seen.planned_full, whole.map(|(record, _)| record.header.id));
        }
    }

    /// The records of a group as stored at the source, each with another possible base.
    async fn read(&self, group: Vec<Wanted>) -> Result<Vec<(Record, Option<RecordId>)>> {
        let mut records = Vec::with_capacity(group.len());
        let (mut stored, mut whole) = (Vec::new(), Vec::new());
        for Wanted { candidate, whole: needs_whole } in group {
            match candidate.node {
                Some(record) if !needs_whole || record.header.codec != Codec::Delta => records.push((record, None)),
                _ if needs_whole => whole.push((candidate.id, None)),
                _ => stored.push((candidate.id, candidate.like)),
            }
        }
        records.extend(self.fetch(&stored, Fetch::Stored).await?);
        records.extend(self.fetch(&whole, Fetch::Whole).await?);
        Ok(records)
    }

    async fn fetch(
        &self,
        wanted: &[(RecordId, Option<RecordId>)],
        fetch: Fetch,
    ) -> Result<Vec<(Record, Option<RecordId>)>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = wanted.iter().map(|(id, _)| *id).collect();
        let mut records = Vec::with_capacity(ids.len());
        self.source
            .records(&ids, fetch, &mut |arrived| {
                if let Arrived::Wanted(at, record) = arrived {
                    records.push((record?, wanted[at].1));
                }
                Ok(())
            })
            .await?;
        Ok(records)
    }

    /// Adapts deltas: if the receiver lacks the base, they are encoded against another one, or as full records.
    async fn fit(&self, records: Vec<(Record, Option<RecordId>)>) -> Result<Vec<(Record, Option<RecordId>)>> {
        let is_delta = |(record, _): &&(Record, Option<RecordId>)| record.header.codec == Codec::Delta;
        let bases: HashSet<RecordId> = records
            .iter()
            .filter(is_delta)
            .flat_map(|(record, like)| record.header.base.into_iter().chain(*like))
            .collect();
        let full = self.full_at_sink(&bases).await?;
        let mut fitting = Vec::with_capacity(records.len());
        for (record, like) in records {
            let fits = record.header.base.is_none_or(|base| full.contains(&base));
            let like = like.filter(|like| full.contains(like));
            fitting.push((if fits { record } else { self.encode_anew(record, like).await? }, like));
        }
        Ok(fitting)
    }

    /// Which of these are present as full records.
    async fn full_at_sink(&self, ids: &HashSet<RecordId>) -> Result<HashSet<RecordId>> {
        let (mut full, mut unknown) = (HashSet::new(), Vec::new());
        for id in ids {
            if self.seen.full.lock().contains(id) {
                full.insert(*id);
            } else {
                unknown.push(*id);
            }
        }
        if unknown.is_empty() {
            return Ok(full);
        }
        let answers = self.sinks[0].client().full(&unknown).await?;
        let found: Vec<_> =
            unknown.into_iter().zip(answers).filter(|(_, is_full)| *is_full).map(|(id, _)| id).collect();
        Seen::add(&self.seen.full, found.iter().copied());
        full.extend(found);
        Ok(full)
    }

    async fn encode_anew(&self, record: Record, like: Option<RecordId>) -> Result<Record> {
        let wanted = [(record.header.id, None)];
        let (whole, _) = self.fetch(&wanted, Fetch::Whole).await?.pop().ok_or_else(failed)?;
        let Some(like) = like else { return Ok(whole) };
        let Some(base) = self.plain(like).await? else { return Ok(whole) };
        let codec = self.source.codec().clone();
        let encoded = tokio::task::spawn_blocking(move || delta(&codec, whole, like, &base)).await;
        encoded.map_err(|_| failed())?
    }

    /// The plain bytes of a record of the source, if it can be read.
    async fn plain(&self, id: RecordId) -> Result<Option<Vec<u8>>> {
        match self.fetch(&[(id, None)], Fetch::Whole).await {
            Ok(mut records) => {
                records.pop().map(|(record, _)| decode(self.source.codec(), &record, &Bases::new())).transpose()
            }
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn failed() -> Error {
    Error::refused("a part of the transfer failed unexpectedly")
}

/// The record as a delta, if that is clearly smaller.
fn delta(codec: &RecordCodec, whole: Record, base_id: RecordId, base: &[u8]) -> Result<Record> {
    let plain = decode(codec, &whole, &Bases::new())?;
    Ok(codec.delta(&whole, &plain, (base_id, base)).unwrap_or(whole))
}

#[cfg(test)]
mod tests {
    use chunkstore::format::ChunkId;

    use super::*;
    use crate::rpc::client::testing::client_of;
    use crate::rpc::wire::{Purpose, Reply, Request, SessionSecret, claims_to_bytes};

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_keeps_claims_elsewhere_is_given_up() {
        let far = client_of(true, |request| match request {
            Request::Begin { .. } => Some(Reply::Begun { secret: SessionSecret([7; 16]), trusts_parent: false }),
            Request::Claim { ids, .. } => Some(Reply::Claims(claims_to_bytes(&vec![Claim::Elsewhere; ids.0.len()]))),
            Request::Await { .. } => Some(Reply::Decided(Vec::new())),
            _ => None,
        })
        .await;
        let session = ClientSession::begin(&far, Purpose::Receive, None).await.unwrap();
        let (counters, seen, progress) = (Arc::default(), Arc::default(), Arc::default());
        let shared = Shared { counters: &counters, seen: &seen, progress: &progress };
        let sending = Sending::new(client_of(false, |_| None).await, vec![Arc::new(session)], false, &shared);
        let (batches, coming) = mpsc::channel(1);
        let id = ChunkId::of(b"content").into();
        let candidate = Candidate { id, plain_bytes: 7, node: None, is_chunk: true, like: None };
        batches.send(vec![candidate]).await.unwrap();
        drop(batches);
        let started = Instant::now();
        let error = sending.run(coming).await.unwrap_err();
        assert!(matches!(&error, Error::Unreachable { what } if what.contains("another sender")), "{error}");
        assert!(started.elapsed() < 2 * ELSEWHERE_TIME_MAX, "{:?}", started.elapsed());
    }
}
