//! The records to fetch: each once, however many readers want it, the most urgent first.

use std::collections::{HashMap, VecDeque};
use std::thread;

use chunkstore::format::manifest::Node;
use chunkstore::format::{Chunk, Kind, RecordId};
use chunkstore::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use replicate::rpc::wire::WireError;
use tokio::sync::{Notify, oneshot};

use super::Urgency;

/// Most queued records without a waiting reader; beyond this the oldest are dropped.
const IDLE_MAX: usize = 64 << 10;

/// A fetched and verified record.
#[derive(Clone, Debug)]
pub(super) enum Fetched {
    Chunk(Chunk),
    Node(Node),
}

/// Records of one kind, to be fetched with one request.
pub(super) type Batch = Vec<(RecordId, Kind)>;

/// The queue of one far store.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the two lanes.
    wake: [Notify; 2],
}

#[derive(Default)]
struct State {
    wanted: HashMap<RecordId, Wanted>,
    /// By urgency. May still list records that moved to another line or were taken.
    lines: [VecDeque<RecordId>; 3],
}

struct Wanted {
    kind: Kind,
    urgency: Urgency,
    is_sent: bool,
    waiters: Vec<oneshot::Sender<Result<Fetched>>>,
}

impl Queue {
    /// Requests a record; the answer arrives at the receiver.
    pub(super) fn want(&self, id: RecordId, kind: Kind, urgency: Urgency) -> oneshot::Receiver<Result<Fetched>> {
        let (answer, receiver) = oneshot::channel();
        self.lock().add(id, kind, urgency, Some(answer));
        self.wake[lane_of(urgency)].notify_one();
        receiver
    }

    /// Requests records without waiting for them, in this order.
    pub(super) fn prefetch(&self, ids: impl IntoIterator<Item = RecordId>, kind: Kind, urgency: Urgency) {
        let mut state = self.lock();
        for id in ids {
            state.add(id, kind, urgency, None);
        }
        drop(state);
        self.wake[lane_of(urgency)].notify_one();
    }

    /// Whether a record is queued or being fetched.
    pub(super) fn has(&self, id: RecordId) -> bool {
        self.lock().wanted.contains_key(&id)
    }

    /// The next records for a lane, at most `most`; waits until there are some.
    pub(super) async fn take(&self, lane: usize, most: usize) -> Batch {
        loop {
            let batch = self.try_take(lane, most);
            if !batch.is_empty() {
                return batch;
            }
            self.wake[lane].notified().await;
        }
    }

    fn try_take(&self, lane: usize, most: usize) -> Batch {
        let urgencies: &[Urgency] =
            if lane == DEMANDS { &[Urgency::Demand] } else { &[Urgency::Ahead, Urgency::Later] };
        let mut state = self.lock();
        let State { wanted, lines } = &mut *state;
        let mut batch = Batch::new();
        for urgency in urgencies {
            let line = &mut lines[*urgency as usize];
            while batch.len() < most
                && let Some(id) = line.pop_front()
            {
                let Some(entry) = wanted.get_mut(&id).filter(|entry| !entry.is_sent && entry.urgency == *urgency)
                else {
                    continue;
                };
                entry.is_sent = true;
                batch.push((id, entry.kind));
            }
        }
        batch
    }

    /// Puts records that could not be fetched back at the front, without demands whose readers gave up.
    pub(super) fn put_back(&self, batch: &[(RecordId, Kind)]) {
        let mut state = self.lock();
        let State { wanted, lines } = &mut *state;
        for (id, _) in batch.iter().rev() {
            let Some(entry) = wanted.get_mut(id) else { continue };
            entry.waiters.retain(|waiter| !waiter.is_closed());
            if entry.urgency == Urgency::Demand && entry.waiters.is_empty() {
                wanted.remove(id);
                continue;
            }
            entry.is_sent = false;
            lines[entry.urgency as usize].push_front(*id);
        }
        drop(state);
        self.wake.iter().for_each(Notify::notify_one);
    }

    /// Guards taken records: a panic before they are answered or put back fails them.
    pub(super) fn in_flight<'a>(&'a self, batch: &'a Batch) -> InFlight<'a> {
        InFlight { queue: self, batch }
    }

    /// Answers all readers that wait for a record.
    pub(super) fn answer(&self, id: RecordId, answer: &Result<Fetched>) {
        let Some(entry) = self.lock().wanted.remove(&id) else { return };
        for waiter in entry.waiters {
            // The reader may have given up.
            let _ = waiter.send(copy(answer));
        }
    }

    /// Number of records that are queued or being fetched.
    pub(super) fn len(&self) -> usize {
        self.lock().wanted.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn add(&mut self, id: RecordId, kind: Kind, urgency: Urgency, waiter: Option<oneshot::Sender<Result<Fetched>>>) {
        let is_new = !self.wanted.contains_key(&id);
        let wanted = || Wanted { kind, urgency, is_sent: false, waiters: Vec::new() };
        let entry = self.wanted.entry(id).or_insert_with(wanted);
        entry.waiters.extend(waiter);
        if !entry.is_sent && (is_new || urgency > entry.urgency) {
            entry.urgency = urgency;
            self.lines[urgency as usize].push_back(id);
            self.shorten(urgency);
        }
    }

    fn shorten(&mut self, urgency: Urgency) {
        let line = &mut self.lines[urgency as usize];
        if urgency == Urgency::Demand || line.len() <= IDLE_MAX {
            return;
        }
        let Some(oldest) = line.pop_front() else { return };
        let is_idle = |entry: &Wanted| !entry.is_sent && entry.urgency == urgency && entry.waiters.is_empty();
        if self.wanted.get(&oldest).is_some_and(is_idle) {
            self.wanted.remove(&oldest);
        }
    }
}

/// Records that are being fetched. Without this, a panic would leave them marked as sent for ever.
#[must_use]
pub(super) struct InFlight<'a> {
    queue: &'a Queue,
    batch: &'a Batch,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.batch.iter().for_each(|(id, _)| self.queue.answer(*id, &Err(Error::Interrupted)));
        }
    }
}

/// The lane of demands.
pub(super) const DEMANDS: usize = 0;
/// The lane of everything that no reader waits for.
pub(super) const OTHERS: usize = 1;

fn lane_of(urgency: Urgency) -> usize {
    if urgency == Urgency::Demand { DEMANDS } else { OTHERS }
}

/// A copy of an answer, for the next reader.
pub(super) fn copy<T: Clone>(answer: &Result<T>) -> Result<T> {
    match answer {
        Ok(got) => Ok(got.clone()),
        Err(error) => Err(Error::from(WireError::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use chunkstore::format::ChunkId;

    use super::*;

    fn id(n: u32) -> RecordId {
        ChunkId::of(&n.to_le_bytes()).into()
    }

    fn chunk() -> Fetched {
        Fetched::Chunk(Chunk::hash(b"x".to_vec()))
    }

    fn taken(queue: &Queue, lane: usize, most: usize) -> Vec<RecordId> {
        queue.try_take(lane, most).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn each_is_taken_once_the_urgent_first_and_can_become_more_urgent() {
        let queue = Queue::default();
        let wants = [(1, Urgency::Later), (2, Urgency::Ahead), (3, Urgency::Demand), (4, Urgency::Later)];
        wants.iter().for_each(|(n, urgency)| queue.prefetch([id(*n)], Kind::Chunk, *urgency));
        let _waiting = queue.want(id(4), Kind::Chunk, Urgency::Demand);
        // Less urgent is no change.
        queue.prefetch([id(3)], Kind::Chunk, Urgency::Later);
        assert_eq!(taken(&queue, DEMANDS, 9), [id(3), id(4)]);
        assert_eq!(taken(&queue, OTHERS, 1), [id(2)]);
        assert_eq!(taken(&queue, OTHERS, 9), [id(1)]);
        assert!(taken(&queue, DEMANDS, 9).is_empty() && queue.len() == 4);
    }

    #[test]
    fn all_who_wait_are_answered_also_who_came_late() {
        let queue = Queue::default();
        let mut waiting = vec![queue.want(id(1), Kind::Chunk, Urgency::Demand)];
        taken(&queue, DEMANDS, 1);
        waiting.push(queue.want(id(1), Kind::Chunk, Urgency::Demand));
        assert!(taken(&queue, DEMANDS, 1).is_empty(), "it is on its way");
        queue.answer(id(1), &Ok(chunk()));
        for mut answer in waiting {
            assert!(matches!(answer.try_recv(), Ok(Ok(Fetched::Chunk(_)))));
        }
        let mut failed = queue.want(id(1), Kind::Chunk, Urgency::Demand);
        queue.answer(id(1), &Err(Error::damaged("x", "y")));
        assert!(matches!(failed.try_recv(), Ok(Err(Error::Damaged { .. }))));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn what_is_put_back_comes_first_unless_nobody_waits_any_more() {
        let queue = Queue::default();
        let _waits = queue.want(id(1), Kind::Chunk, Urgency::Demand);
        drop(queue.want(id(2), Kind::Chunk, Urgency::Demand));
        queue.prefetch([id(3)], Kind::Chunk, Urgency::Later);
        let demands = queue.try_take(DEMANDS, 9);
        let others = queue.try_take(OTHERS, 9);
        let _later = queue.want(id(4), Kind::Chunk, Urgency::Demand);
        queue.put_back(&demands);
        queue.put_back(&others);
        assert_eq!(taken(&queue, DEMANDS, 9), [id(1), id(4)]);
        assert_eq!(taken(&queue, OTHERS, 9), [id(3)]);
    }

    #[test]
    fn a_panic_of_a_fetch_fails_all_who_wait_and_the_record_can_be_wanted_again() {
        let queue = Queue::default();
        let mut waiting = [0; 3].map(|_| queue.want(id(1), Kind::Chunk, Urgency::Demand));
        let batch = queue.try_take(DEMANDS, 1);
        let fetched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _in_flight = queue.in_flight(&batch);
            panic!("while it is fetched");
        }));
        assert!(fetched.is_err());
        for answer in &mut waiting {
            assert!(matches!(answer.try_recv(), Ok(Err(_))));
        }
        let _waits = queue.want(id(1), Kind::Chunk, Urgency::Demand);
        assert_eq!(taken(&queue, DEMANDS, 1), [id(1)]);
    }

    #[test]
    fn what_nobody_waits_for_is_bounded() {
        let queue = Queue::default();
        queue.prefetch((0..IDLE_MAX as u32 + 100).map(id), Kind::Chunk, Urgency::Later);
        assert_eq!(queue.len(), IDLE_MAX);
        assert!(!queue.has(id(0)) && queue.has(id(IDLE_MAX as u32)));
    }

    #[tokio::test]
    async fn who_takes_is_woken() {
        let queue = std::sync::Arc::new(Queue::default());
        let taking = std::sync::Arc::clone(&queue);
        let taken = tokio::spawn(async move { taking.take(DEMANDS, 9).await });
        tokio::task::yield_now().await;
        queue.prefetch([id(1)], Kind::Chunk, Urgency::Demand);
        assert_eq!(taken.await.unwrap().len(), 1);
    }
}
