//! The work of each night at the three sites, and the check after the last night.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunkstore::catalog::SnapshotTime;
use jiff::{SignedDuration, Timestamp};
use tests::Vmstore;
use tests::images::Rng;

use crate::machine::{Machine, digests};
use crate::{Collected, Soak};

const MACHINES: [&str; 3] = ["web01", "web02", "db01"];
const POLICY: [&str; 6] = ["--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "2"];
/// Nights after which the policy has all that it keeps, so that nothing has a reason to grow any more.
pub(crate) const FULL_AFTER: u64 = 62;
/// Nights from one collection to the next.
const COLLECT_EVERY: u64 = 4;
/// The first night, so long ago that even a soak of days ends before today: stores refuse what is of the future.
const FIRST_NIGHT: &str = "2001-01-01T02:00:00Z";
/// Size that a store may have relative to a fresh copy of the same snapshots: gc rewrites a pack when half of it is
/// garbage.
const FRESH_COPIES_MAX: u64 = 2;
/// Heads and tables of packs, and what is too small to be worth a collection.
const SPARE_BYTES: u64 = 16 << 20;

/// The machines and their nights.
pub(crate) struct Nights {
    machines: Vec<Machine>,
}

/// The time of a snapshot that is taken so many seconds into a night's day.
pub(crate) fn time(night: u64, seconds: u64) -> String {
    let first: Timestamp = FIRST_NIGHT.parse().expect("it is a time");
    let time = first + SignedDuration::from_secs((night * 86_400 + seconds) as i64);
    SnapshotTime::new(time).expect("it is after 1970").to_string()
}

impl Nights {
    pub(crate) fn new(soak: &Soak, rng: &mut Rng) -> Self {
        Self { machines: MACHINES.iter().map(|name| Machine::new(&soak.site, name, rng.number())).collect() }
    }

    /// The next night.
    pub(crate) fn next(&mut self, soak: &Soak) {
        let night = soak.nights.load(Ordering::SeqCst);
        let time = time(night, 0);
        let mut args = vec!["ingest".to_owned(), "--time".to_owned(), time.clone()];
        for machine in &mut self.machines {
            machine.change();
            let name = format!("{}@{time}", machine.name);
            soak.digests().insert(name, Arc::new(digests(&machine.path)));
            args.extend([machine.path.to_str().unwrap(), "--image", &machine.name].map(str::to_owned));
        }
        soak.stores[0].run(args);
        travel(soak);
        if night.is_multiple_of(COLLECT_EVERY) {
            collect(soak);
        }
        soak.nights.fetch_add(1, Ordering::SeqCst);
    }
}

/// Without other work: all sites have the same, bit for bit, are sound, and take no more than they should.
pub(crate) fn end(soak: &Soak) {
    travel(soak);
    collect(soak);
    let snapshots = soak.stores[0].snapshots();
    for store in &soak.stores {
        assert_eq!(store.snapshots(), snapshots, "the sites differ");
        store.collect_all();
        store.run(["verify"]);
    }
    for name in &snapshots {
        assert_restores(soak, &soak.stores[2], name);
    }
    let fresh = soak.site.store("fresh");
    fresh.run(["pull", soak.stores[0].store().to_str().unwrap(), "--all"]);
    let fresh_bytes = fresh.packs_bytes();
    for store in &soak.stores {
        let (bytes, name) = (store.packs_bytes(), store.store().display());
        println!("{name}: {bytes} bytes in packs, a fresh copy has {fresh_bytes}");
        assert!(
            bytes <= FRESH_COPIES_MAX * fresh_bytes + SPARE_BYTES,
            "{name} takes {bytes} bytes, a fresh copy {fresh_bytes}"
        );
    }
}

/// Brings all to the other sites; then each prunes.
fn travel(soak: &Soak) {
    let [first, second, third] = &soak.stores[..] else { unreachable!("there are three sites") };
    let address = second.store().to_str().unwrap();
    first.run(["push", address, "--all"]);
    third.run(["pull", address, "--all"]);
    for store in [first, second, third] {
        store.run(["prune"].iter().chain(&POLICY));
    }
}

fn collect(soak: &Soak) {
    for store in &soak.stores {
        store.run(["gc"]);
    }
    let live_bytes = soak.stores[0].json(["stats"])["unique_bytes"].as_u64().unwrap();
    let (at_s, packs_bytes) = (soak.started.elapsed().as_secs_f64(), soak.stores[0].packs_bytes());
    soak.collected.lock().unwrap().push(Collected { at_s, packs_bytes, live_bytes });
}

fn assert_restores(soak: &Soak, store: &Vmstore, name: &str) {
    let restored = soak.site.path("restored.raw");
    store.run(["restore", name, restored.to_str().unwrap(), "--force", "--no-sync"]);
    assert!(digests(&restored) == **soak.digests().get(name).unwrap(), "{name} restores to other bytes");
}
