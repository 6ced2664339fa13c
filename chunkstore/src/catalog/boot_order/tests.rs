//! Boot orders: what their files look like, what is refused, and how they come and go with snapshots.

use super::*;
use crate::maintenance::gc;
use crate::progress::Progress;
use crate::testing::{init, night, noise, open, put};

fn order() -> BootOrder {
    BootOrder::new([0..4096, 4096..8192, 1 << 30..(1 << 30) + 512, 64..65])
}

#[test]
fn survives_a_round_trip_and_notices_every_flip_and_cut() {
    assert_eq!(order().ranges(), [0..8192, 1 << 30..(1 << 30) + 512, 64..65], "neighbours are put together");
    let bytes = order().encode();
    assert_eq!(BootOrder::decode(&bytes).unwrap(), order());
    assert_eq!(BootOrder::decode(&BootOrder::default().encode()).unwrap(), BootOrder::default());
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(BootOrder::decode(&flipped).is_err(), "byte {at}");
        assert!(BootOrder::decode(&bytes[..at]).is_err(), "only {at} bytes");
    }
}

#[test]
fn limits_hold_in_both_directions() {
    let many = BootOrder::new((0..RANGES_MAX as u64 + 9).map(|n| n * 10..n * 10 + 1));
    assert_eq!(many.ranges().len(), RANGES_MAX);
    assert!((many.encode().len() as u64) < FILE_BYTES_MAX);
    let of = |lines: &str| {
        let body = format!("{HEAD}{lines}");
        BootOrder::decode(format!("{body}{}", trailer(&body)).as_bytes())
    };
    assert!(of("1 2\n").is_ok());
    let too_many = "1 2\n".repeat(RANGES_MAX + 1);
    for lines in ["1 0\n", "-1 2\n", "1\n", "18446744073709551615 1\n", "0 99999999999999999999\n", too_many.as_str()] {
        assert!(of(lines).is_err(), "{}", &lines[..lines.len().min(40)]);
    }
}

#[test]
fn nights_lend_theirs_and_it_goes_with_its_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let nights: Vec<_> = (1..=3).map(|day| put(&store, night("web01", day), &noise(50_000, day.into()))).collect();
    let other = put(&store, night("db01", 1), &noise(50_000, 9));
    let nearest = |snapshot: &Snapshot| nearest(&**store.storage(), store.catalog(), snapshot).unwrap();
    assert_eq!(nearest(&nights[2]), None);
    let newer = BootOrder::new([1..2]);
    write(&**store.storage(), store.catalog(), &nights[0].name(), &order()).unwrap();
    write(&**store.storage(), store.catalog(), &nights[1].name(), &newer).unwrap();
    assert_eq!(nearest(&nights[2]), Some(newer.clone()), "the newest of the image");
    assert_eq!(nearest(&nights[0]), Some(order()), "its own");
    assert_eq!(nearest(&other), None);
    assert!(matches!(
        write(&**store.storage(), store.catalog(), &night("web01", 9), &newer),
        Err(Error::NotFound { .. })
    ));
    store.catalog().remove(&nights[1].name()).unwrap();
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    assert_eq!(store.storage().list(DIR).unwrap().files, [format!("{}.order", nights[0].entry_id())]);
    // A damaged one is none.
    std::fs::write(dir.path().join(path(nights[0].entry_id())), "x").unwrap();
    assert_eq!(nearest(&nights[2]), None);
}
