//! Fetched records that can't be read from the local store yet, because it has not sealed them or has no room.
//!
//! They were verified on arrival and stay compressed as they travelled, but are never deltas. The oldest are dropped
//! when there are too many, and are fetched again when they are read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chunkstore::format::{Record, RecordId};
use parking_lot::{Mutex, MutexGuard};

/// Most bytes kept.
const BYTES_MAX: usize = 40 << 20;

/// The records, by their ids.
#[derive(Default)]
pub(super) struct UnsealedCache {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: HashMap<RecordId, Arc<Record>>,
    /// The oldest first. May still list records that are gone.
    order: VecDeque<RecordId>,
    bytes: usize,
}

impl UnsealedCache {
    pub(super) fn get(&self, id: RecordId) -> Option<Arc<Record>> {
        self.lock().records.get(&id).cloned()
    }

    pub(super) fn has(&self, id: RecordId) -> bool {
        self.lock().records.contains_key(&id)
    }

    pub(super) fn add(&self, record: Arc<Record>) {
        let mut state = self.lock();
        let (id, bytes) = (record.header.id, record.bytes());
        if state.records.insert(id, record).is_some() {
            return;
        }
        state.bytes += bytes;
        state.order.push_back(id);
        while state.bytes > BYTES_MAX {
            let Some(oldest) = state.order.pop_front() else { break };
            state.remove(oldest);
        }
    }

    /// Drops records that can be read from the local store now.
    pub(super) fn remove(&self, ids: impl IntoIterator<Item = RecordId>) {
        let mut state = self.lock();
        for id in ids {
            state.remove(id);
        }
        if state.order.len() > 2 * state.records.len() + 1024 {
            let State { records, order, .. } = &mut *state;
            order.retain(|id| records.contains_key(id));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn remove(&mut self, id: RecordId) {
        if let Some(record) = self.records.remove(&id) {
            self.bytes -= record.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use chunkstore::format::{ChunkId, Codec, Kind};

    use super::*;

    fn record(n: u32, bytes: usize) -> Arc<Record> {
        let id = ChunkId::of(&n.to_le_bytes()).into();
        Arc::new(Record::new(Kind::Chunk, id, bytes, Codec::Raw, vec![0; bytes], None))
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let unsealed_cache = UnsealedCache::default();
        let records: Vec<_> = (0..100).map(|n| record(n, 1 << 20)).collect();
        records.iter().for_each(|record| unsealed_cache.add(Arc::clone(record)));
        // Once more is no more.
        unsealed_cache.add(Arc::clone(&records[99]));
        let held = records.iter().filter(|record| unsealed_cache.has(record.header.id)).count();
        assert_eq!(held, BYTES_MAX / records[0].bytes());
        assert!(unsealed_cache.has(records[99].header.id) && !unsealed_cache.has(records[0].header.id));
        unsealed_cache.remove(records.iter().map(|record| record.header.id));
        let (bytes, records) = {
            let state = unsealed_cache.lock();
            (state.bytes, state.records.len())
        };
        assert_eq!((bytes, records), (0, 0));
        unsealed_cache.add(record(7, 5));
        assert_eq!(unsealed_cache.get(record(7, 5).header.id).expect("it is there").payload.len(), 5);
    }
}
