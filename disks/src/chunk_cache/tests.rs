//! One load for all readers, whatever happens to them; demands first; retries; the far source.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use chunkstore::format::manifest::Node;
use chunkstore::format::{Chunk, ChunkId, NodeId};

use super::fake_source::{Fake, cache, content};
use super::*;
use crate::upstream::Fetching;

async fn chunk(cache: &ChunkCache, id: ChunkId) -> Result<Arc<Cached>> {
    cache.get(Key::Chunk(id), &mut cache.new_retry()).await
}

/// Waits, without a bound but the test's own, until something has come to be.
async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn options() -> ChunkCacheOptions {
    ChunkCacheOptions { threads: 2, ..ChunkCacheOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_readers_cause_one_load() {
    for is_at_hand in [false, true] {
        let source = Fake::new();
        source.if_ready(is_at_hand);
        let id = source.put_chunk(content(70_000, 1));
        let cache = cache(&source, options());
        source.shut(true);
        let readers: Vec<_> = (0..50)
            .map(|_| {
                let cache = Arc::clone(&cache);
                // Those that would load themselves would otherwise hold all threads of the runtime.
                std::thread::spawn(move || {
                    let work = chunk(&cache, id);
                    cache.runtime().block_on(work).map(|cached| cached.bytes().len())
                })
            })
            .collect();
        until(|| cache.statistics().cache_misses == 50).await;
        source.shut(false);
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), 70_000);
        }
        assert_eq!(source.asked(), [id]);
        chunk(&cache, id).await.unwrap();
        assert_eq!((source.asked().len(), cache.statistics().cache_hits), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_is_ready_at_once_and_what_is_not_holds_no_thread() {
    let source = Fake::new();
    let (here, missing) = (source.put_chunk(content(5000, 1)), source.put_chunk(content(5000, 2)));
    let cache = cache(&source, options());
    chunk(&cache, here).await.unwrap();
    source.shut(true);
    let mut context = Context::from_waker(Waker::noop());
    assert!(pin!(chunk(&cache, missing)).poll(&mut context).is_pending());
    assert!(pin!(chunk(&cache, here)).poll(&mut context).is_ready());
    source.shut(false);
    // The first reader was dropped; the next one finds the load that it began.
    chunk(&cache, missing).await.unwrap();
    assert_eq!(source.asked(), [here, missing]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_read_leaves_nobody_waiting() {
    for is_at_hand in [false, true] {
        let source = Fake::new();
        source.if_ready(is_at_hand);
        let ids: Vec<_> = (0..3).map(|seed| source.put_chunk(content(5000, seed))).collect();
        let keys: Vec<_> = ids.iter().map(|id| Key::Chunk(*id)).collect();
        let cache = cache(&source, options());
        drop(cache.demand(&keys));
        for id in &ids {
            chunk(&cache, *id).await.unwrap();
        }
        let asked = source.asked();
        assert!(asked.len() == 3 && ids.iter().all(|id| asked.contains(id)), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_once_and_not_kept() {
    for is_at_hand in [false, true] {
        let source = Fake::new();
        source.if_ready(is_at_hand);
        let id = source.put_chunk(content(5000, 1));
        let cache = cache(&source, options());
        source.damage(id, true);
        assert!(matches!(chunk(&cache, id).await, Err(Error::Damaged { .. })));
        source.damage(id, false);
        assert_eq!(chunk(&cache, id).await.unwrap().bytes().len(), 5000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_a_loader_fails_all_who_wait() {
    let source = Fake::new();
    let id = source.put_chunk(content(70_000, 1));
    let cache = cache(&source, options());
    source.shut(true);
    let reader = || {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move { chunk(&cache, id).await })
    };
    let readers: Vec<_> = (0..20).map(|_| reader()).collect();
    until(|| cache.statistics().cache_misses == 20).await;
    source.panic(true);
    source.shut(false);
    for reader in readers {
        let ended = tokio::time::timeout(Duration::from_mins(1), reader).await.expect("nobody waits for ever");
        assert!(ended.unwrap().is_err());
    }
    source.panic(false);
    chunk(&cache, id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_source_is_an_error_and_costs_no_thread() {
    let source = Fake::new();
    let id = source.put_chunk(content(5000, 1));
    let cache = cache(&source, options());
    source.panic(true);
    for _ in 0..4 {
        assert!(matches!(chunk(&cache, id).await, Err(Error::Interrupted)));
    }
    source.panic(false);
    chunk(&cache, id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn demands_go_before_readahead_and_overtake_it() {
    let source = Fake::new();
    let ids: Vec<_> = (0..40).map(|seed| source.put_chunk(content(5000, seed))).collect();
    let cache = cache(&source, ChunkCacheOptions { threads: 1, ..options() });
    source.shut(true);
    cache.prefetch([Key::Chunk(ids[0])]);
    until(|| source.asked().len() == 1).await;
    cache.prefetch(ids[1..39].iter().map(|id| Key::Chunk(*id)));
    // One that was queued ahead, and one that was not.
    for id in &ids[38..] {
        assert!(pin!(chunk(&cache, *id)).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    source.shut(false);
    until(|| source.asked().len() == 40).await;
    assert_eq!(source.asked()[1..3], [ids[38], ids[39]]);
    until(|| cache.statistics().local_bytes == 40 * 5000).await;
    let statistics = cache.statistics();
    assert_eq!((statistics.readahead_bytes, statistics.readahead_used_bytes), (39 * 5000, 5000));
    chunk(&cache, ids[5]).await.unwrap();
    chunk(&cache, ids[5]).await.unwrap();
    assert_eq!(cache.statistics().readahead_used_bytes, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_away_is_waited_for() {
    for is_at_hand in [false, true] {
        let source = Fake::new();
        source.if_ready(is_at_hand);
        let (here, missing) = (source.put_chunk(content(5000, 1)), source.put_chunk(content(5000, 2)));
        let patient = cache(&source, options());
        source.fail_calls(3);
        chunk(&patient, missing).await.unwrap();
        // A reader without time left gets the reason; content in memory can still be read.
        let impatient = cache(&source, ChunkCacheOptions { timeout: Duration::from_secs(2), ..options() });
        chunk(&impatient, here).await.unwrap();
        source.fail_calls(u64::MAX);
        let (failed, read) = tokio::join!(chunk(&impatient, missing), chunk(&impatient, here));
        assert!(matches!(failed, Err(Error::Unreachable { .. })) && read.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn patience_tries_often_at_first_and_ends_in_time() {
    let began = tokio::time::Instant::now();
    let mut retry = Retry::new(&Handle::current(), TIMEOUT);
    let mut tries = Vec::new();
    while retry.pause().await {
        tries.push(began.elapsed());
    }
    assert!(tries[0] < Duration::from_millis(100) && tries[3] < Duration::from_secs(1), "{tries:?}");
    assert!((60..80).contains(&tries.len()), "{tries:?}");
    assert!(tries.last().unwrap() <= &TIMEOUT && began.elapsed() + Duration::from_secs(2) >= TIMEOUT, "{tries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_answer_fails_the_read_in_the_end() {
    let source = Fake::new();
    let id = source.put_chunk(content(5000, 1));
    let cache = cache(&source, ChunkCacheOptions { timeout: Duration::from_millis(20), ..options() });
    source.shut(true);
    assert!(matches!(chunk(&cache, id).await, Err(Error::Unreachable { .. })));
    source.shut(false);
    until(|| cache.statistics().local_bytes == 5000).await;
    chunk(&cache, id).await.unwrap();
    assert_eq!(source.asked(), [id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn decoders_end_with_their_pool() {
    let source = Fake::new();
    let id = source.put_chunk(content(5000, 1));
    let cache = cache(&source, options());
    chunk(&cache, id).await.unwrap();
    drop(cache);
    // Every thread holds the source through its cache only while it works.
    until(|| Arc::strong_count(&source) == 1).await;
}

/// Has what it was given; asked for anything else it never answers.
struct FarFake {
    has: Arc<Fake>,
    absent: Option<ChunkId>,
    fetched: AtomicUsize,
}

impl FarSource for FarFake {
    fn is_absent(&self, id: ChunkId) -> bool {
        self.absent == Some(id)
    }

    fn fetch(&self, id: ChunkId, urgency: Urgency) -> Fetching<Chunk> {
        assert_eq!(urgency, Urgency::Demand);
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let chunk = self.has.chunk(id);
        Box::pin(async move { if chunk.is_ok() { chunk } else { std::future::pending().await } })
    }

    fn fetch_node(&self, id: NodeId, _: Urgency) -> Fetching<Node> {
        let node = self.has.node(id);
        Box::pin(async move { node })
    }

    fn neighbours(&self, _: &[ChunkId]) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_lacks_comes_from_afar_and_holds_no_decoder() {
    for is_at_hand in [false, true] {
        let (source, far) = (Fake::new(), Fake::new());
        source.if_ready(is_at_hand);
        let (near, away) = (source.put_chunk(content(5000, 1)), far.put_chunk(content(5000, 2)));
        let known_absent = far.put_chunk(content(5000, 3));
        let nowhere = ChunkId::of(b"nowhere");
        let far = Arc::new(FarFake { has: far, absent: Some(known_absent), fetched: AtomicUsize::new(0) });
        let cache = cache(&source, ChunkCacheOptions { threads: 1, far: Some(far.clone()), ..options() });
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = pin!(chunk(&cache, nowhere));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        for id in [near, away, known_absent, away] {
            assert_eq!(chunk(&cache, id).await.unwrap().bytes().len(), 5000);
        }
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let asked = source.asked();
        assert!(asked.len() == 3 && [nowhere, near, away].iter().all(|id| asked.contains(id)), "{asked:?}");
        assert_eq!(far.fetched.load(Ordering::Relaxed), 3);
        let statistics = cache.statistics();
        assert_eq!((statistics.local_bytes, statistics.upstream_bytes), (5000, 10_000));
    }
}
