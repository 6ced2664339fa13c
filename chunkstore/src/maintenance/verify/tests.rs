//! Every kind of damage to every kind of file: it is detected and named, never returns wrong bytes, never panics,
//! deletes no pack, and heals with the next backup.

mod damage;
mod hostile;

use std::path::Path;
use std::sync::LazyLock;

use super::*;
use crate::store::Store;
use crate::testing::{night, noise, open_options, put, read_back};

/// Opens a store, which damage may prevent.
fn try_open(dir: &Path) -> Result<Arc<Store>> {
    Ok(Arc::new(Store::open(dir, &open_options())?))
}

fn check(store: &Arc<Store>) -> Result<VerifyReport> {
    verify(store, &[], 2, &Progress::default())
}

/// The whole report as one text.
fn text(report: &VerifyReport) -> String {
    let damage = report.damage.iter().map(|range| format!("{} {}", range.snapshot, range.id));
    report.problems.iter().cloned().chain(damage).collect::<Vec<_>>().join("\n")
}

/// Two nights of an image: noise, repeated blocks, zeros, an odd end; the second night has changed and new blocks.
static NIGHTS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let mut first = vec![0; (4 << 20) + 200_777];
    first[..1 << 20].copy_from_slice(&noise(1 << 20, 1));
    first[256 << 10..384 << 10].fill(0);
    first.copy_within(0..128 << 10, 3 << 20);
    first[4 << 20..].copy_from_slice(&noise(200_777, 2));
    let mut second = first.clone();
    for block in (0..1 << 20).step_by(100 << 10).chain([(4 << 20) + 5000]) {
        second[block..block + 512].copy_from_slice(&noise(512, block as u64));
    }
    second[2 << 20..(2 << 20) + (64 << 10)].copy_from_slice(&noise(64 << 10, 99));
    [first, second]
});

/// Ingests both nights, from this day on.
fn put_nights(store: &Arc<Store>, day: u32) -> [Snapshot; 2] {
    let [first, second] = &*NIGHTS;
    [put(store, night("vm", day), first), put(store, night("vm", day + 1), second)]
}

/// Reads snapshots back: each is right or an error. Returns how many are right.
fn restored(store: &Arc<Store>, snapshots: &[Snapshot]) -> usize {
    let mut right = 0;
    for (snapshot, image) in snapshots.iter().zip(NIGHTS.iter().cycle()) {
        if let Ok(found) = read_back(&**store, snapshot.entry()) {
            assert!(found == *image, "wrong bytes of {}", snapshot.name());
            right += 1;
        }
    }
    right
}
