//! Which session is to put which record, so that several sessions do not do the same work.
//!
//! A claim ends when its record is put, when its session ends, or when the session has made no progress for [`LAPSE`];
//! then the next session that asks gets it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::format::RecordId;
use crate::truth_lock::{TruthGuard, TruthMutex};

/// A session that puts nothing for this long loses its claims.
const LAPSE: Duration = Duration::from_secs(10);

/// Most claims that are remembered, over all sessions (about 100 MB). Beyond, every claim succeeds.
const REMEMBERED_MAX: usize = 1 << 20;
/// How often lapsed claims are removed when the limit is reached.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// A clock; only differences matter.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// A clock that calls `now`.
    pub fn new(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Instant::now)
    }
}

/// The result of claiming a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The session has it now.
    Now,
    /// The session had it already.
    Before,
    /// Another session has it.
    Elsewhere,
}

/// The claims of all sessions of a store.
pub(super) struct Claims {
    clock: Clock,
    table: TruthMutex<Table>,
}

#[derive(Default)]
struct Table {
    claims: HashMap<RecordId, Claimed>,
    /// When each session last put something.
    progress: HashMap<u64, Instant>,
    /// When lapsed claims were last removed.
    forgotten: Option<Instant>,
}

struct Claimed {
    session: u64,
    since: Instant,
}

impl Table {
    fn is_valid(&self, claimed: &Claimed, now: Instant) -> bool {
        let progress = self.progress.get(&claimed.session).copied().unwrap_or(claimed.since);
        now.saturating_duration_since(progress.max(claimed.since)) < LAPSE
    }

    /// Whether another claim can be remembered. Claims without progress must not fill the memory.
    fn has_room(&mut self, now: Instant) -> bool {
        let is_full = self.claims.len() >= REMEMBERED_MAX;
        if is_full && self.forgotten.is_none_or(|last| now.saturating_duration_since(last) >= FORGET_EVERY) {
            self.forgotten = Some(now);
            let mut claims = std::mem::take(&mut self.claims);
            claims.retain(|_, claimed| self.is_valid(claimed, now));
            self.claims = claims;
        }
        self.claims.len() < REMEMBERED_MAX
    }
}

impl Claims {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, table: TruthMutex::new("the claims", Table::default()) }
    }

    fn lock(&self) -> TruthGuard<'_, Table> {
        self.table.lock()
    }

    /// Gives a session the claim on a record, unless another session has it.
    pub(super) fn take(&self, session: u64, id: RecordId) -> Taken {
        let now = (self.clock.0)();
        let mut table = self.lock();
        match table.claims.get(&id) {
            Some(claimed) if !table.is_valid(claimed, now) => {}
            Some(claimed) if claimed.session == session => return Taken::Before,
            Some(_) => return Taken::Elsewhere,
            None => {}
        }
        if !table.claims.contains_key(&id) && !table.has_room(now) {
            return Taken::Now;
        }
        table.claims.insert(id, Claimed { session, since: now });
        Taken::Now
    }

    /// Gives a session that has the record the claim on it, even if another session has it.
    pub(super) fn seize(&self, session: u64, id: RecordId) {
        let since = (self.clock.0)();
        self.lock().claims.insert(id, Claimed { session, since });
    }

    /// Which of these records a session has claimed, at any time.
    pub(super) fn are_of(&self, session: u64, ids: &[RecordId]) -> Vec<bool> {
        let table = self.lock();
        ids.iter().map(|id| table.claims.get(id).is_some_and(|claimed| claimed.session == session)).collect()
    }

    /// Releases claims on records that a session need not put.
    pub(super) fn give_back(&self, session: u64, ids: &[RecordId]) {
        let mut table = self.lock();
        for id in ids {
            if table.claims.get(id).is_some_and(|claimed| claimed.session == session) {
                table.claims.remove(id);
            }
        }
    }

    /// Ends the claims on records that a session put.
    pub(super) fn done(&self, session: u64, ids: &[RecordId]) {
        let now = (self.clock.0)();
        let mut table = self.lock();
        for id in ids {
            table.claims.remove(id);
        }
        table.progress.insert(session, now);
    }

    /// Releases all claims of a session.
    pub(super) fn release(&self, session: u64) {
        let mut table = self.lock();
        table.claims.retain(|_, claimed| claimed.session != session);
        table.progress.remove(&session);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::format::ChunkId;

    #[test]
    fn a_claim_lapses_without_progress_and_goes_to_the_next() {
        let seconds = Arc::new(AtomicU64::new(0));
        let (start, passed) = (Instant::now(), Arc::clone(&seconds));
        let clock = Clock::new(move || start + Duration::from_secs(passed.load(Ordering::Relaxed)));
        let claims = Claims::new(clock);
        let id = |byte: u8| RecordId::from(ChunkId::of(&[byte]));
        // Seconds, the session that asks, its answer; session 1 puts another record at 5.
        let steps = [
            (0, 1, Taken::Now),
            (0, 1, Taken::Before),
            (0, 2, Taken::Elsewhere),
            (12, 3, Taken::Elsewhere),
            (15, 3, Taken::Now),
            (15, 2, Taken::Elsewhere),
            (15, 1, Taken::Elsewhere),
            (26, 2, Taken::Now),
        ];
        for (at, session, expected) in steps {
            if at > 5 && seconds.swap(5, Ordering::Relaxed) == 0 {
                claims.done(1, &[id(9)]);
            }
            seconds.store(at, Ordering::Relaxed);
            assert_eq!(claims.take(session, id(1)), expected, "session {session} at {at} s");
        }
        claims.release(2);
        assert_eq!(claims.take(3, id(1)), Taken::Now);
        claims.seize(1, id(1));
        assert_eq!(claims.are_of(1, &[id(1), id(2)]), [true, false]);
        claims.done(1, &[id(1)]);
        assert_eq!(claims.take(3, id(1)), Taken::Now);
    }

    #[test]
    fn what_is_taken_on_and_never_put_does_not_fill_the_memory() {
        let seconds = Arc::new(AtomicU64::new(0));
        let (start, passed) = (Instant::now(), Arc::clone(&seconds));
        let clock = Clock::new(move || start + Duration::from_secs(passed.load(Ordering::Relaxed)));
        let claims = Claims::new(clock);
        let id = |number: u64| RecordId::from(ChunkId::of(&number.to_le_bytes()));
        let all = REMEMBERED_MAX as u64;
        (0..all + 1000).for_each(|number| assert_eq!(claims.take(1, id(number)), Taken::Now));
        assert_eq!(claims.lock().claims.len(), REMEMBERED_MAX);
        assert_eq!(claims.take(2, id(0)), Taken::Elsewhere);
        assert_eq!([claims.take(2, id(all)), claims.take(3, id(all))], [Taken::Now, Taken::Now]);
        seconds.store(11, Ordering::Relaxed);
        assert_eq!([claims.take(2, id(all)), claims.take(3, id(all))], [Taken::Now, Taken::Elsewhere]);
        assert_eq!(claims.lock().claims.len(), 1);
    }
}
