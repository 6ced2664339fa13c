//! The chunks near one that is demanded.
//!
//! A round trip at 50 ms is worth 600 kB at 100 Mbit/s, which is some twenty chunks as stored: so a first miss in a
//! segment brings its neighbourhood along, and a second, which says that the reader stays there, the rest of the
//! segment. Files lie in order, so more is brought of what follows. In a local network, that costs next to nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chunkstore::format::ChunkId;
use parking_lot::Mutex;

/// Segments remembered.
const SEGMENTS_MAX: usize = 512;
/// Chunks before and after that a first miss fetches, too.
const BEFORE: usize = 2;
const AFTER: usize = 14;

/// The segments that readers use.
#[derive(Default)]
pub(super) struct Neighbourhood {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The segment of a chunk and its position there; of several, the last one added.
    places: HashMap<ChunkId, (Arc<[ChunkId]>, usize)>,
    /// By a segment's first chunk: its chunks, and its misses so far.
    segments: HashMap<ChunkId, (Arc<[ChunkId]>, u32)>,
    order: VecDeque<ChunkId>,
}

impl Neighbourhood {
    /// Remembers a segment's chunks.
    pub(super) fn add(&self, ids: &[ChunkId]) {
        let Some(first) = ids.first().copied() else { return };
        let mut state = self.state.lock();
        if state.segments.get(&first).is_some_and(|(known, _)| **known == *ids) {
            return;
        }
        state.forget(first);
        let segment: Arc<[ChunkId]> = ids.into();
        for (at, id) in ids.iter().enumerate() {
            state.places.insert(*id, (Arc::clone(&segment), at));
        }
        state.segments.insert(first, (segment, 0));
        state.order.push_back(first);
        if state.order.len() > SEGMENTS_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.forget(oldest);
        }
    }

    /// Notes a miss. Returns the other chunks of the segment to fetch, those that follow first.
    pub(super) fn missed(&self, id: ChunkId) -> Vec<ChunkId> {
        let mut state = self.state.lock();
        let Some((segment, at)) = state.places.get(&id).cloned() else { return Vec::new() };
        let Some((_, misses)) = state.segments.get_mut(&segment[0]) else { return Vec::new() };
        *misses += 1;
        let (from, to) = match misses {
            1 => (at.saturating_sub(BEFORE), (at + 1 + AFTER).min(segment.len())),
            2 => (0, segment.len()),
            _ => return Vec::new(),
        };
        segment[at + 1..to].iter().chain(segment[from..at].iter().rev()).copied().collect()
    }
}

impl State {
    fn forget(&mut self, first: ChunkId) {
        let Some((segment, _)) = self.segments.remove(&first) else { return };
        for id in &*segment {
            if self.places.get(id).is_some_and(|(known, _)| Arc::ptr_eq(known, &segment)) {
                self.places.remove(id);
            }
        }
        self.order.retain(|other| *other != first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(from: u32, count: u32) -> Vec<ChunkId> {
        (from..from + count).map(|n| ChunkId::of(&n.to_le_bytes())).collect()
    }

    #[test]
    fn a_first_miss_brings_neighbours_a_second_the_rest_and_a_third_nothing() {
        let neighbourhood = Neighbourhood::default();
        let segment = ids(0, 64);
        neighbourhood.add(&segment);
        let first = neighbourhood.missed(segment[10]);
        assert_eq!(first, [&segment[11..25], &[segment[9], segment[8]]].concat());
        let second = neighbourhood.missed(segment[40]);
        assert_eq!(second.len(), 63);
        assert_eq!(second[..23], segment[41..]);
        assert!(neighbourhood.missed(segment[0]).is_empty());
        assert!(neighbourhood.missed(ids(100, 1)[0]).is_empty(), "nobody told of it");
        // Told again, it is the same.
        neighbourhood.add(&segment);
        assert!(neighbourhood.missed(segment[1]).is_empty());
        assert_eq!(neighbourhood.missed(ids(0, 1)[0]).len(), 0);
    }

    #[test]
    fn at_the_ends_there_are_fewer_and_the_oldest_segments_are_forgotten() {
        let neighbourhood = Neighbourhood::default();
        let small = ids(0, 3);
        neighbourhood.add(&small);
        assert_eq!(neighbourhood.missed(small[2]), [small[1], small[0]]);
        for n in 1..=SEGMENTS_MAX as u32 {
            neighbourhood.add(&ids(n * 10, 3));
        }
        assert!(neighbourhood.missed(small[1]).is_empty());
        let state = neighbourhood.state.lock();
        assert_eq!((state.segments.len(), state.places.len()), (SEGMENTS_MAX, SEGMENTS_MAX * 3));
    }
}
