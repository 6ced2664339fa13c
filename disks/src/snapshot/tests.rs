//! Reads against the plain bytes; holes; damage; readahead; panics.

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::chunk_cache::ChunkCacheOptions;
use crate::chunk_cache::fake_source::{Fake, Part, cache, content};

const SEGMENT: u64 = SEGMENT_BYTES as u64;

/// Parts of a segment that keep the rules of a leaf.
fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = (0..3u32, 1..200_000u32, 0..6u64);
    prop::collection::vec(part, 1..12).prop_map(|choices| {
        let mut parts = Vec::new();
        for (kind, bytes, seed) in choices {
            let after_zeros = matches!(parts.last(), Some(Part::Zero(_)));
            if kind == 0 && !after_zeros {
                parts.push(Part::Zero(bytes % 40 + 1));
            } else {
                parts.push(Part::Data(bytes, seed));
            }
        }
        if let Some(Part::Zero(_)) = parts.last() {
            parts.push(Part::Data(1, 9));
        }
        parts
    })
}

fn segments() -> impl Strategy<Value = Vec<(u64, Vec<Part>)>> {
    let number = prop_oneof![0..3u64, 255..258u64, 65_535..65_537u64];
    prop::collection::btree_map(number, parts(), 0..4).prop_map(|segments| segments.into_iter().collect())
}

/// The end of the last segment, or less, but not less than what the last one has.
fn size_of_image(segments: &[(u64, Vec<Part>)], cut: bool) -> u64 {
    let Some((last, parts)) = segments.last() else { return 3 * SEGMENT };
    let length = |part: &Part| match part {
        Part::Zero(blocks) => u64::from(*blocks) * 4096,
        Part::Data(bytes, _) => u64::from(*bytes),
    };
    last * SEGMENT + if cut { parts.iter().map(length).sum() } else { SEGMENT }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn reads_and_holes_are_those_of_the_image(
        segments in segments(),
        cut in any::<bool>(),
        is_at_hand in any::<bool>(),
        cache_bytes_max in prop_oneof![Just(0u64), Just(1 << 20), Just(64 << 20)],
        reads in prop::collection::vec((any::<prop::sample::Index>(), -300_000..300_000i64, 0..300_000usize), 1..20),
    ) {
        let runtime = Runtime::new().unwrap();
        let _entered = runtime.enter();
        let source = Fake::new();
        source.if_ready(is_at_hand);
        let size_bytes = size_of_image(&segments, cut);
        let (snapshot, truth) = source.snapshot(&segments, size_bytes);
        let cache = cache(&source, ChunkCacheOptions { cache_bytes_max, ..ChunkCacheOptions::default() });
        let disk = SnapshotDisk::new(&cache, &snapshot);
        prop_assert_eq!(disk.size_bytes(), size_bytes);
        for (place, aside, len) in reads {
            // Near where something is; the rest is zeros.
            let near = truth.data.get(place.index(truth.data.len().max(1))).map_or(0, |range| range.start);
            let offset = near.saturating_add_signed(aside).min(size_bytes);
            let len = len.min((size_bytes - offset) as usize);
            let mut buf = vec![0xaa; len];
            runtime.block_on(disk.read(&mut buf, offset)).unwrap();
            prop_assert!(buf == truth.read(offset, len), "{} at {}", len, offset);

            let next = runtime.block_on(disk.next_data(offset)).unwrap();
            prop_assert_eq!(next.as_ref().map(|range| range.start), truth.next_data(offset));
            if let Some(range) = next {
                prop_assert!(range.start < range.end && range.end <= size_bytes);
                prop_assert_eq!(truth.next_data(range.end - 1), Some(range.end - 1));
            }
            prop_assert!(cache.statistics().cache_bytes <= cache_bytes_max);
        }
        prop_assert_eq!(runtime.block_on(disk.data_bytes()).unwrap(), truth.data_bytes());
        prop_assert_eq!(disk.data_bytes_if_known(), Some(truth.data_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_fails_only_the_reads_that_meet_it() {
    let source = Fake::new();
    let parts = vec![Part::Data(50_000, 1), Part::Data(50_000, 2), Part::Zero(10), Part::Data(50_000, 3)];
    let (snapshot, truth) = source.snapshot(&[(0, parts)], SEGMENT);
    let cache = cache(&source, ChunkCacheOptions::default());
    let disk = SnapshotDisk::new(&cache, &snapshot);
    let bad = ChunkId::of(&content(50_000, 2));
    source.damage(bad, true);
    for (offset, len, is_met) in [
        (0, 50_000, false),
        (0, 50_001, true),
        (49_999, 1, false),
        (50_000, 1, true),
        (99_999, 1, true),
        (100_000, 200_000, false),
        (0, SEGMENT_BYTES, true),
    ] {
        let mut buf = vec![1; len];
        let read = disk.read(&mut buf, offset).await;
        match read {
            Err(Error::Damaged { what, detail }) if is_met => {
                assert!(what.contains(&format!("web01@20261120T020000Z at {offset} to")), "{what}");
                assert!(detail.contains(&bad.to_string()), "{detail}");
            }
            read => assert!(read.is_ok() && !is_met && buf == truth.read(offset, len), "{offset}"),
        }
    }
    assert_eq!(cache.statistics().failed_reads, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lies_about_a_length_is_damage() {
    let source = Fake::new();
    let id = source.put_chunk(content(5000, 1));
    let leaf = Leaf::new(vec![chunkstore::format::manifest::Entry::Chunk { id, bytes: 6000 }]).unwrap();
    let root = source.put_node(&chunkstore::format::manifest::Node::Leaf(leaf));
    // Where an inner node belongs, a leaf.
    let sizes = [(SEGMENT, "the manifest says"), (2 * SEGMENT, "has height 0 where 1 belongs")];
    for (size_bytes, expected) in sizes {
        let snapshot = crate::chunk_cache::fake_source::snapshot(Some(root), size_bytes);
        let disk = SnapshotDisk::new(&cache(&source, ChunkCacheOptions::default()), &snapshot);
        let error = disk.read(&mut [0; 100], 5500).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { detail, .. } if detail.contains(expected)), "{error}");
    }
}

/// Sixteen segments without holes.
fn dense(source: &Fake) -> Snapshot {
    let segment = |number: u64| (number, (0..64).map(|part| Part::Data(65_536, number * 64 + part)).collect());
    source.snapshot(&(0..16).map(segment).collect::<Vec<_>>(), 16 * SEGMENT).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_finds_its_chunks_loaded_and_no_chunk_is_loaded_twice() {
    let source = Fake::new();
    let snapshot = dense(&source);
    let cache = cache(&source, ChunkCacheOptions::default());
    let disk = SnapshotDisk::new(&cache, &snapshot);
    let mut buf = vec![0; 128 << 10];
    for offset in (0..16 * SEGMENT).step_by(buf.len()) {
        disk.read(&mut buf, offset).await.unwrap();
    }
    let statistics = cache.statistics();
    assert_eq!(source.asked().len(), 16 * 64);
    assert!(statistics.readahead_bytes > 8 * SEGMENT, "{statistics:?}");
    assert_eq!(statistics.readahead_used_bytes, statistics.readahead_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn readahead_is_bounded_and_random_readers_get_none() {
    let source = Fake::new();
    let snapshot = dense(&source);
    let cache = cache(&source, ChunkCacheOptions { cache_bytes_max: 64 << 20, ..ChunkCacheOptions::default() });
    let disk = SnapshotDisk::new(&cache, &snapshot);
    let mut buf = vec![0; 4096];
    for number in 0..200u64 {
        disk.read(&mut buf, number * 7919 % (16 << 10) * 4096).await.unwrap();
    }
    assert_eq!(cache.statistics().readahead_bytes, 0);

    // The window is a part of the cache: 2 MiB.
    let (mut read_bytes, mut buf) = (0, vec![0; 1 << 20]);
    for offset in (0..4 * SEGMENT).step_by(buf.len()) {
        disk.read(&mut buf, offset).await.unwrap();
        read_bytes += buf.len() as u64;
        assert!(cache.statistics().readahead_bytes <= read_bytes + (2 << 20) + (256 << 10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_cost_nothing_and_equal_subtrees_are_counted_once() {
    let source = Fake::new();
    let size_bytes = 8u64 << 40;
    let data = |number: u64| (number, vec![Part::Data(1000, number)]);
    let first: Vec<_> = (0..600).map(data).chain([data(1_999_999)]).collect();
    let (snapshot, truth) = source.snapshot(&first, size_bytes);
    let cache = cache(&source, ChunkCacheOptions::default());
    let disk = SnapshotDisk::new(&cache, &snapshot);
    let far = disk.next_data(600 * SEGMENT).await.unwrap();
    assert_eq!(far, Some(1_999_999 * SEGMENT..1_999_999 * SEGMENT + 1000));
    assert_eq!(disk.next_data(far.unwrap().end).await.unwrap(), None);
    assert!(source.asked_nodes() <= 10, "{}", source.asked_nodes());
    assert_eq!(disk.data_bytes_if_known(), None);
    assert_eq!(disk.data_bytes().await.unwrap(), truth.data_bytes());

    let (mut second, before) = (first.clone(), source.asked_nodes());
    second[300].1 = vec![Part::Data(2000, 1)];
    let (snapshot, truth) = source.snapshot(&second, size_bytes);
    let disk = SnapshotDisk::new(&cache, &snapshot);
    assert_eq!(disk.data_bytes().await.unwrap(), truth.data_bytes());
    let nodes = source.asked_nodes() - before;
    assert!(nodes <= 256 + 3, "{nodes}: one changed segment costs its neighbours below one node");
    assert!(source.asked().is_empty(), "no chunk was read");
    assert_eq!(disk.data_bytes().await.unwrap(), truth.data_bytes());
    assert_eq!(source.asked_nodes() - before, nodes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_under_a_snapshots_lock_fails_that_snapshot_alone_until_it_is_opened_again() {
    let source = Fake::new();
    let (first, truth) = source.snapshot(&[(0, vec![Part::Data(70_000, 1)])], SEGMENT);
    let (second, _) = source.snapshot(&[(0, vec![Part::Data(70_000, 2)])], SEGMENT);
    let cache = cache(&source, ChunkCacheOptions::default());
    let (disk, other) = (SnapshotDisk::new(&cache, &first), SnapshotDisk::new(&cache, &second));
    let inner = Arc::clone(&disk.inner);
    let panicked = std::thread::spawn(move || {
        let _held = inner.streams();
        panic!("while a stream is noted");
    });
    assert!(panicked.join().is_err());
    let mut buf = vec![0; 4096];
    for _ in 0..2 {
        let error = disk.read(&mut buf, 0).await.expect_err("it may be half changed");
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("web01@"), "{error}");
    }
    assert!(disk.next_data(0).await.is_err());
    other.read(&mut buf, 0).await.unwrap();
    SnapshotDisk::new(&cache, &first).read(&mut buf, 0).await.unwrap();
    assert_eq!(buf, truth.read(0, 4096));
}
