//! Push and pull between two stores: the receiver gets what was sent, and no more bytes are sent than necessary.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use chunkstore::Error;
use common::{Cut, Site, local, night, noise, pull_all, push_all, run, small_params, try_transfer};
use replicate::transfer::{Direction, Ends, TransferOptions, TransferReport, Wanted, transfer, transfer_on};

/// Three nights of an image: pages change, the image grows, pages change again.
fn nights() -> Vec<Vec<u8>> {
    let first = noise(6 << 20, 1);
    let mut second = first.clone();
    second[1_000_000..1_004_096].copy_from_slice(&noise(4096, 2));
    second.extend(noise(100_000, 3));
    let mut third = second.clone();
    third[1_000_000..1_001_000].copy_from_slice(&noise(1000, 4));
    third[5_000_000..5_004_096].copy_from_slice(&noise(4096, 5));
    vec![first, second, third]
}

fn with_nights(seed: u8) -> Site {
    let site = Site::new(seed);
    for (day, image) in nights().iter().enumerate() {
        site.ingest(night("web01", day as u32), image);
    }
    site
}

fn assert_has_nights(site: &Site) {
    for (day, image) in nights().iter().enumerate() {
        assert!(site.read_back(&night("web01", day as u32)) == *image, "night {day} differs");
    }
    site.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_or_pulled_arrives_and_does_not_travel_again() {
    for options in [push_all(), pull_all()] {
        let (from, to) = (with_nights(1), Site::new(2));
        let (near, far) = if options.direction == Direction::Push { (&from, &to) } else { (&to, &from) };
        let report = run(near, far, &options).await;
        assert_eq!(report.snapshots_sent.len(), 3);
        assert_has_nights(&to);
        assert_eq!(to.snapshots(), from.snapshots());
        for name in from.snapshots() {
            let [a, b] = [&from, &to].map(|site| site.store.catalog().read(&name).unwrap());
            assert_eq!(a.entry_encoding(), b.entry_encoding(), "the entry is the same to the byte");
        }
        assert!(report.deltas_sent > 0 && report.deltas_sent < report.chunks_sent, "{report:?}");
        // Noise does not compress: the first night is sent once, the others as their changes.
        let plain = nights()[0].len() as u64;
        assert!(report.record_bytes > plain && report.record_bytes < plain + 250_000, "{report:?}");

        let again = run(near, far, &options).await;
        let moved = again.wire_bytes_sent + again.wire_bytes_received - again.handshake_bytes;
        assert_eq!((again.snapshots_present, again.snapshots_sent.len()), (3, 0));
        assert!(again.round_trips <= 1 && moved <= 200, "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_travels_and_changes_nothing() {
    let (from, to) = (with_nights(1), Site::new(2));
    let told = run(&from, &to, &TransferOptions { dry_run: true, ..push_all() }).await;
    assert!(to.snapshots().is_empty() && told.snapshots_sent.len() == 3);
    let told_of_pull = run(&to, &from, &TransferOptions { dry_run: true, ..pull_all() }).await;
    let done = run(&from, &to, &push_all()).await;
    assert!(done.deltas_sent > 0);
    for told in [told, told_of_pull] {
        let figures = |report: &TransferReport| {
            (report.chunks_considered, report.chunks_sent, report.deltas_sent, report.record_bytes, report.saved_bytes)
        };
        assert_eq!(figures(&told), figures(&done));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_night_arrives_whole_and_the_next_as_a_delta() {
    let (from, to) = (with_nights(1), Site::new(2));
    let only =
        |selector: &str| TransferOptions { wanted: Wanted::Snapshots(vec![selector.parse().unwrap()]), ..push_all() };
    // Deltas whose bases the receiver lacks become whole records.
    let report = run(&from, &to, &only("web01@20260102")).await;
    assert_eq!(report.deltas_sent, 0);
    // The base at the sender is the first night's; the receiver has the second's in its place.
    let report = run(&from, &to, &only("web01@20260103")).await;
    assert!(report.deltas_sent > 0 && report.record_bytes < 60_000, "{report:?}");
    assert!(to.read_back(&night("web01", 2)) == nights()[2]);
    to.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_do_not_travel() {
    let (from, to) = (Site::new(1), Site::new(2));
    let mut image = nights()[0].clone();
    to.ingest(night("template", 0), &image);
    image[2_000_000..2_000_100].copy_from_slice(&noise(100, 9));
    from.ingest(night("web01", 0), &image);
    let report = run(&from, &to, &push_all()).await;
    assert!(report.record_bytes < 100_000, "{report:?}");
    assert!(to.read_back(&night("web01", 0)) == image);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_zeros_of_all_sizes_and_ones_that_shrink_travel() {
    let (from, to) = (Site::new(1), Site::new(2));
    let data = noise(200_000, 7);
    let mut tall = vec![0; 9 << 20];
    tall[5 << 20..(5 << 20) + 200_000].copy_from_slice(&data);
    let images = [vec![0; 5 << 20], tall, data[..100_001].to_vec(), Vec::new()];
    for (day, image) in images.iter().enumerate() {
        from.ingest(night("odd", day as u32), image);
    }
    run(&from, &to, &push_all()).await;
    for (day, image) in images.iter().enumerate() {
        assert!(to.read_back(&night("odd", day as u32)) == *image, "{day}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_at_any_byte_is_resumed() {
    let from = with_nights(1);
    let (to, mut sent_in_all, mut cuts) = (Site::new(2), 0, 0);
    let mut report = TransferReport::default();
    let mut bytes = 100;
    loop {
        let far = Cut::after(to.stream(local()), bytes);
        let hello = replicate::rpc::wire::Hello::default();
        let client =
            replicate::rpc::client::Client::start(Box::new(far), &hello, &replicate::rpc::client::Link::default())
                .await;
        let done = match client {
            Ok(client) => {
                let meter = client.clone();
                let ends = Ends { near: from.client().await, catalog: from.store.catalog().clone(), far: vec![client] };
                let done = transfer_on(&ends, &push_all(), &Arc::default(), &mut report).await;
                sent_in_all += meter.meter().sent_bytes();
                done
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, Error::Unreachable { .. }), "{error}"),
        }
        cuts += 1;
        bytes = (bytes * 3 / 2).min(700_000);
    }
    assert!(cuts > 10, "{cuts}");
    assert_has_nights(&to);
    let once = run(&from, &Site::new(3), &push_all()).await;
    assert_eq!((report.wire_bytes_sent, report.snapshots_present), (sent_in_all, 0), "all attempts are told of");
    assert_eq!(report.snapshots_sent, once.snapshots_sent);
    assert!(report.record_bytes >= once.record_bytes && report.saved_bytes <= once.saved_bytes);
    // Records from a cut connection were kept, except those in flight.
    assert!(sent_in_all < 3 * once.wire_bytes_sent, "{sent_in_all} bytes instead of {}", once.wire_bytes_sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_share_the_work() {
    let (from, to) = (with_nights(1), Site::new(2));
    let far = vec![to.client().await, to.client().await, to.client().await];
    let ends = Ends { near: from.client().await, catalog: from.store.catalog().clone(), far: far.clone() };
    transfer(&ends, &push_all(), &Arc::default()).await.unwrap();
    assert_has_nights(&to);
    assert!(far.iter().all(|client| client.meter().record_bytes() > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_senders_of_the_same_send_each_chunk_once() {
    let to = Site::new(9);
    let senders: Vec<Site> = (1..=4).map(Site::new).collect();
    let mut image = nights()[0].clone();
    for (number, sender) in senders.iter().enumerate() {
        image[100_000..100_100].copy_from_slice(&noise(100, number as u64));
        sender.ingest(night(&format!("vm{number}"), 0), &image);
    }
    let options = push_all();
    let push = |number: usize| run(&senders[number], &to, &options);
    let (a, b, c, d) = tokio::join!(push(0), push(1), push(2), push(3));
    let sent: u64 = [a, b, c, d].iter().map(|report| report.record_bytes).sum();
    let union = image.len() as u64;
    assert!(sent < union + union / 20, "{sent} bytes of records for {union} of content");
    assert_eq!(to.snapshots().len(), 4);
    to.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_cut_otherwise_are_refused() {
    let from = with_nights(1);
    let params = chunkstore::format::ChunkParams { avg_bytes: 16 << 10, ..small_params() };
    let to = Site::with_params(2, params);
    let refused = try_transfer(&from, to.client().await, &push_all()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }) && refused.to_string().contains("init --like"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_at_the_sender_stops_that_snapshot_only() {
    let (from, to) = (Site::new(1), Site::new(2));
    from.ingest(night("a", 0), &noise(300_000, 1));
    from.ingest(night("b", 0), &noise(300_000, 2));
    // A byte of the first one's data is flipped, in the first pack that is large enough for it.
    let packs = std::fs::read_dir(from.path().join("packs")).unwrap().map(|entry| entry.unwrap().path());
    let mut packs: Vec<_> = packs.filter(|path| path.metadata().unwrap().len() > 200_000).collect();
    packs.sort();
    let mut pack = std::fs::read(&packs[0]).unwrap();
    pack[5000] ^= 1;
    std::fs::write(&packs[0], pack).unwrap();
    let report = try_transfer(&from, to.client().await, &push_all()).await.unwrap();
    assert_eq!(report.snapshots_failed.len(), 1, "{report:?}");
    assert_eq!(to.snapshots(), [night("b", 0)]);
    to.assert_sound();
}
