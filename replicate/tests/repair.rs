//! Repair through an owner: what a damaged store lacks comes by id from stores that have it, each asked in turn, and a
//! report may be as long as the damage is.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use chunkstore::Progress;
use chunkstore::catalog::Snapshot;
use chunkstore::format::RecordId;
use chunkstore::format::manifest::{self, ChunkSource, Node};
use chunkstore::maintenance::repair::RepairReport;
use chunkstore::maintenance::verify::VerifyReport;
use chunkstore::pack::{self, Class};
use common::{Site, night, noise};
use replicate::repair::{Far, Fetched, fetch};
use replicate::rpc::client::Client;
use replicate::rpc::wire::Job;

const REPAIR: Job = Job::Repair { dry_run: false, threads: 2 };

fn first_night() -> Vec<u8> {
    noise(6 << 20, 1)
}

/// Its changed chunks are deltas.
fn second_night() -> Vec<u8> {
    let mut image = first_night();
    (0..image.len()).step_by(100_000).for_each(|at| image[at..at + 64].copy_from_slice(&noise(64, at as u64)));
    image
}

/// A store with both nights.
fn site(seed: u8) -> Site {
    let site = Site::new(seed);
    site.ingest(night("web01", 0), &first_night());
    site.ingest(night("web01", 1), &second_night());
    site
}

/// Fills everything between the header and the table of packs of these classes with zeros.
fn lose(site: &Site, classes: &[Class]) {
    for row in site.store.packs().rows().iter().filter(|row| classes.contains(&row.class)) {
        let file = fs::File::options().write(true).open(site.path().join(pack::path(row.id))).unwrap();
        file.write_all_at(&vec![0; row.bytes as usize - 64], 64).unwrap();
    }
}

fn chunks_of(site: &Site, snapshot: &Snapshot) -> Vec<RecordId> {
    let (entry, mut ids) = (snapshot.entry(), Vec::new());
    manifest::walk(&*site.store, entry.root, entry.virtual_bytes, &mut |segment| {
        let Node::Leaf(leaf) = site.store.node(segment.leaf)? else { panic!("a leaf is a leaf") };
        ids.extend(leaf.chunks().map(|(_, id, _)| RecordId::from(id)));
        Ok(())
    })
    .unwrap();
    ids
}

async fn repair(client: &Client) -> RepairReport {
    serde_json::from_slice(&client.run(REPAIR, &Progress::default()).await.unwrap()).unwrap()
}

async fn fetched(near: &Site, far: &[&Site]) -> Fetched {
    let client = near.client().await;
    let hurt: Vec<Snapshot> = near.snapshots().iter().map(|name| near.store.catalog().read(name).unwrap()).collect();
    let mut remotes = Vec::new();
    for (nth, site) in far.iter().enumerate() {
        remotes.push(Far { name: format!("site {nth}"), client: site.client().await });
    }
    let fetching = move || fetch(&client, &remotes, &hurt, &[], &Progress::default());
    tokio::task::spawn_blocking(fetching).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_lost_record_is_fetched_from_a_store_that_has_it() {
    let all = Class::ALL;
    for classes in [&all[..1], &all[1..2], &all[2..3], &all[3..], &all[..2], &all[2..], &all[..]] {
        let (near, far) = (site(1), site(2));
        lose(&near, classes);
        let client = near.client().await;
        let report = repair(&client).await;
        assert!(!report.verify.damage.is_empty(), "{classes:?}: {report:?}");
        let came = fetched(&near, &[&far]).await;
        assert!(came.records > 0, "{classes:?}");
        let report = repair(&client).await;
        assert!(report.is_sound(), "{classes:?}: {report:?}");
        assert!(near.read_back(&night("web01", 0)) == first_night(), "{classes:?}");
        assert!(near.read_back(&night("web01", 1)) == second_night(), "{classes:?}");
        near.collect();
        near.assert_sound();
        assert_eq!(fetched(&near, &[&far]).await, Fetched::default(), "nothing is lacking any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_stores_are_asked_in_turn_and_none_is_believed() {
    let near = site(1);
    let (first, second) = (Site::new(2), Site::new(3));
    // One has only the first night, the other only the second, with damage that is not known.
    let snapshot = first.ingest(night("web01", 0), &first_night());
    second.ingest(night("db", 1), &second_night());
    let places = second.store.locate(&chunks_of(&first, &snapshot)).unwrap();
    let harmed = places.into_iter().flatten().next().unwrap();
    let pack = second.store.packs().row(harmed.pack).unwrap().id;
    let file = fs::File::options().write(true).open(second.path().join(pack::path(pack))).unwrap();
    file.write_all_at(&[7; 4], u64::from(harmed.offset) + 100).unwrap();
    lose(&near, &Class::ALL);
    let client = near.client().await;
    repair(&client).await;
    let came = fetched(&near, &[&second, &first]).await;
    let report = repair(&client).await;
    assert!(report.is_sound() && came.records > 0, "{report:?}");
    assert!(near.read_back(&night("web01", 1)) == second_night());

    // Neither has all of it.
    let near = site(1);
    lose(&near, &Class::ALL);
    let client = near.client().await;
    repair(&client).await;
    fetched(&near, &[&second]).await;
    let report = repair(&client).await;
    assert!(!report.is_sound() && report.verify.problems.is_empty(), "{report:?}");
    assert!(report.verify.damage.iter().any(|range| range.snapshot == night("web01", 0).to_string()), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_snapshot_gets_only_what_was_damaged() {
    let (near, far) = (Site::new(1), site(2));
    let there = far.store.catalog().read(&night("web01", 0)).unwrap();
    let partial = near.client().await.publish_partial(there.entry_encoding().to_vec()).await.unwrap();
    assert!(partial.state.partial);
    assert_eq!(fetched(&near, &[&far]).await, Fetched::default());
    // Asked to complete it, it does.
    let client = near.client().await;
    let remotes = [Far { name: "far".into(), client: far.client().await }];
    let completing = move || fetch(&client, &remotes, &[], &[partial], &Progress::default());
    let came = tokio::task::spawn_blocking(completing).await.unwrap().unwrap();
    assert_eq!(came.completed, [night("web01", 0).to_string()]);
    assert!(near.read_back(&night("web01", 0)) == first_night());
    near.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_may_be_longer_than_a_frame() {
    let site = Arc::new(Site::new(1));
    let strangers = 12_000;
    for nth in 0..strangers {
        fs::write(site.path().join(format!("packs/{nth:0200}")), "").unwrap();
    }
    let client = site.client().await;
    let job = Job::Verify { snapshots: Vec::new(), threads: 1 };
    let report = client.run(job, &Progress::default()).await.unwrap();
    assert!(report.len() > replicate::rpc::wire::FRAME_PAYLOAD_BYTES_MAX, "{}", report.len());
    let report: VerifyReport = serde_json::from_slice(&report).unwrap();
    assert_eq!(report.problems.len(), strangers);
}
