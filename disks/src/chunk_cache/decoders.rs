//! The threads that load what is missing: a fixed number, demands first.
//!
//! A load may be queued twice, ahead and then as a demand; the second thread finds it taken and skips it.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use super::single_flight::{Load, LoadGuard, SingleFlight};
use crate::upstream::Urgency;

/// Most loads that a thread takes at once: enough to read neighbours with one call, few enough to share the work.
const DEMANDS_AT_ONCE: usize = 16;
const AHEAD_AT_ONCE: usize = 8;

/// The queue and its threads. When this is dropped, they finish their current loads and end.
pub(crate) struct Decoders {
    queue: Arc<Queue>,
}

struct Queue {
    state: Mutex<State>,
    comes: Condvar,
    threads: usize,
}

#[derive(Default)]
struct State {
    demands: VecDeque<Arc<Load>>,
    ahead: VecDeque<Arc<Load>>,
    idle_threads: usize,
    is_closed: bool,
}

impl Decoders {
    /// Starts threads, each of which takes loads from its queue and does them by `work`.
    pub(crate) fn start(
        threads: usize,
        loads: &Arc<SingleFlight>,
        work: impl Fn(Vec<LoadGuard>) + Clone + Send + 'static,
    ) -> Self {
        let queue = Arc::new(Queue { state: Mutex::default(), comes: Condvar::new(), threads });
        for number in 0..threads {
            let (queue, loads, work) = (Arc::clone(&queue), Arc::clone(loads), work.clone());
            let named = thread::Builder::new().name(format!("decoder-{number}"));
            named.spawn(move || queue.serve(&loads, work)).expect("the system has room for a few threads");
        }
        Self { queue }
    }

    /// Queues loads.
    pub(crate) fn push(&self, loads: impl IntoIterator<Item = Arc<Load>>, urgency: Urgency) {
        let mut state = self.queue.lock();
        let queue = if urgency == Urgency::Demand { &mut state.demands } else { &mut state.ahead };
        let before = queue.len();
        queue.extend(loads);
        let wake = (queue.len() - before).min(state.idle_threads);
        drop(state);
        for _ in 0..wake {
            self.queue.comes.notify_one();
        }
    }
}

impl Drop for Decoders {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.comes.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn serve(&self, loads: &Arc<SingleFlight>, work: impl Fn(Vec<LoadGuard>)) {
        while let Some(batch) = self.next(loads) {
            // The dropped guards have failed the waiting readers; the thread goes on with other loads.
            if catch_unwind(AssertUnwindSafe(|| work(batch))).is_err() {
                tracing::error!("a decoder thread panicked; the waiting reads failed");
            }
        }
    }

    /// Waits for work; none when the queue is closed.
    fn next(&self, loads: &Arc<SingleFlight>) -> Option<Vec<LoadGuard>> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let mut batch = take(&mut state.demands, DEMANDS_AT_ONCE, self.threads, loads);
            if batch.is_empty() {
                batch = take(&mut state.ahead, AHEAD_AT_ONCE, self.threads, loads);
            }
            if !batch.is_empty() {
                return Some(batch);
            }
            state.idle_threads += 1;
            self.comes.wait(&mut state);
            state.idle_threads -= 1;
        }
    }
}

/// A thread's share of a queue.
fn take(queue: &mut VecDeque<Arc<Load>>, most: usize, threads: usize, loads: &Arc<SingleFlight>) -> Vec<LoadGuard> {
    let share = queue.len().div_ceil(threads).min(most);
    let mut batch = Vec::with_capacity(share);
    while batch.len() < share
        && let Some(load) = queue.pop_front()
    {
        batch.extend(loads.take(&load));
    }
    batch
}
