//! Who has taken on to put which record, so that of several sessions one does the work.
//!
//! A claim ends when its record is put, when its session ends, or when the session has made no progress for
//! [`LAPSE`]; then whoever asks next gets it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::format::RecordId;
use crate::truth_lock::{TruthGuard, TruthMutex};

/// A session that puts nothing for so long loses what it has taken on.
const LAPSE: Duration = Duration::from_secs(10);

/// Claims that are remembered, of all sessions (some 100 MB). Whoever takes on more is told yes, and so may others be.
const REMEMBERED_MAX: usize = 1 << 20;
/// So often it is looked for claims that have lapsed, when there are so many.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// Tells the time; only differences matter.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Instant::now)
    }
}

/// Whether a record that the store lacks was given to who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the asker's now.
    Now,
    /// It was the asker's already.
    Before,
    /// It is another session's.
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
    /// When sessions last put something.
    progress: HashMap<u64, Instant>,
    /// When claims that had lapsed were last forgotten.
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

    /// Whether another claim can be remembered. What a session takes on and never puts must not fill the memory.
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

    /// Gives a record to a session, unless another has taken it on.
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

    /// Gives a record to a session that has it at hand, whoever has taken it on.
    pub(super) fn seize(&self, session: u64, id: RecordId) {
        let since = (self.clock.0)();
        self.lock().claims.insert(id, Claimed { session, since });
    }

    /// Which records a session has taken on, be it long ago.
    pub(super) fn are_of(&self, session: u64, ids: &[RecordId]) -> Vec<bool> {
        let table = self.lock();
        ids.iter().map(|id| table.claims.get(id).is_some_and(|claimed| claimed.session == session)).collect()
    }

    /// Gives records back that a session need not put.
    pub(super) fn give_back(&self, session: u64, ids: &[RecordId]) {
        let mut table = self.lock();
        for id in ids {
            if table.claims.get(id).is_some_and(|claimed| claimed.session == session) {
                table.claims.remove(id);
            }
        }
    }

    /// Notes that a session put records: they are nobody's task any more.
    pub(super) fn done(&self, session: u64, ids: &[RecordId]) {
        let now = (self.clock.0)();
        let mut table = self.lock();
        for id in ids {
            table.claims.remove(id);
        }
        table.progress.insert(session, now);
    }

    /// Frees what a session has taken on and not put.
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
        // Seconds, the session that asks, what it is told; session 1 puts another record at 5.
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
