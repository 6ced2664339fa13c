//! Chunks that are known to be missing here, so that the local owner is not asked for them repeatedly.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chunkstore::format::ChunkId;
use parking_lot::{Mutex, MutexGuard};

/// Most chunks remembered, by the first half of their ids.
const REMEMBERED_MAX: usize = 256 << 10;
/// Lifetime of an entry. Chunks that arrive by other ways, such as a pull, are seen after it.
const BELIEVED: Duration = Duration::from_secs(30);

/// A bounded set that is cleared from time to time.
pub(super) struct NegativeCache {
    state: Mutex<State>,
}

struct State {
    ids: HashSet<[u8; 16]>,
    since: Instant,
}

impl NegativeCache {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { ids: HashSet::new(), since: Instant::now() }) }
    }

    pub(super) fn has(&self, id: ChunkId) -> bool {
        let state = self.lock();
        state.since.elapsed() < BELIEVED && state.ids.contains(&half(id))
    }

    pub(super) fn add(&self, id: ChunkId) {
        let mut state = self.lock();
        if state.ids.len() >= REMEMBERED_MAX || state.since.elapsed() >= BELIEVED {
            state.ids.clear();
            state.since = Instant::now();
        }
        state.ids.insert(half(id));
    }

    pub(super) fn remove(&self, id: ChunkId) {
        self.lock().ids.remove(&half(id));
    }

    pub(super) fn clear(&self) {
        self.lock().ids.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn half(id: ChunkId) -> [u8; 16] {
    *id.as_bytes().first_chunk().expect("an id is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_until_it_is_removed_and_there_is_a_bound() {
        let negative_cache = NegativeCache::new();
        let id = |n: u32| ChunkId::of(&n.to_le_bytes());
        negative_cache.add(id(1));
        negative_cache.add(id(2));
        negative_cache.remove(id(2));
        assert!(negative_cache.has(id(1)) && !negative_cache.has(id(2)));
        negative_cache.clear();
        assert!(!negative_cache.has(id(1)));
        for n in 0..REMEMBERED_MAX as u32 + 10 {
            negative_cache.add(id(n));
        }
        assert!(negative_cache.has(id(REMEMBERED_MAX as u32 + 9)) && negative_cache.lock().ids.len() <= REMEMBERED_MAX);
    }
}
