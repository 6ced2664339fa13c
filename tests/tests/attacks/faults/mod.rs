//! Faults: whatever call fails, to the storage or of the system, the store is sound and work goes on.

mod storage;
mod system;

use tests::images::Rng;
use tests::torture::Torture;

/// Tries faults in random order: `short` of them, or more in the long form. `fails` tries one, checks everything, and
/// returns whether the work failed; of a hundred faults, so many must at least make it fail.
fn try_faults<F>(
    torture: Torture,
    short: u64,
    failed_percent_min: u64,
    mut faults: Vec<F>,
    mut fails: impl FnMut(&F) -> bool,
) {
    println!("{} faults are possible", faults.len());
    shuffle(&mut faults, &mut torture.rng(0));
    let (mut tried, mut failed) = (0, 0);
    for fault in &faults {
        if !torture.goes_on(tried, short) {
            break;
        }
        failed += u64::from(fails(fault));
        tried += 1;
    }
    assert!(
        failed * 100 > tried * failed_percent_min,
        "only {failed} of {tried} faults were noticed: this test shows nothing"
    );
    println!("{failed} failed and were repeated");
    torture.end(tried, "faults");
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for at in (1..items.len()).rev() {
        items.swap(at, rng.below(at as u64 + 1) as usize);
    }
}
