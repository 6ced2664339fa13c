//! Clones against a plain vector, and their life: made, opened, discarded, rolled back.

use chunkstore::format::limits::IMAGE_BYTES_MAX;
use chunkstore::maintenance::gc;
use chunkstore::testing::noise;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::test_store::{Point, TestStore};
use super::*;

const SIZE: u64 = 20 * BLOCK_BYTES + 1234;

/// With data, zeros, and an end within a block.
fn image() -> Vec<u8> {
    let mut image = noise(SIZE as usize, 1);
    image[3 * 4096 + 100..9 * 4096 + 50].fill(0);
    image
}

fn content(site: &TestStore, disk: &CloneDisk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size_bytes() as usize];
    site.runtime.block_on(disk.read(&mut bytes, 0)).unwrap();
    bytes
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Discard(u64, u64),
    Resize(u64),
    Sync,
    Reopen,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || prop_oneof![0..SIZE, (0..20u64).prop_map(|block| block * BLOCK_BYTES)];
    let bytes = || prop_oneof![1..300u64, Just(BLOCK_BYTES), Just(2 * BLOCK_BYTES), 1..5 * BLOCK_BYTES];
    prop_oneof![
        8 => (at(), bytes(), 1u8..).prop_map(|(at, bytes, value)| Step::Write(at, bytes as usize, value)),
        3 => (at(), bytes()).prop_map(|(at, bytes)| Step::Discard(at, bytes)),
        2 => (0..2 * SIZE).prop_map(Step::Resize),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::Commit),
    ]
}

/// Where the disk says that there is data, nothing is missing, and ranges do not meet.
fn check_data(site: &TestStore, disk: &CloneDisk, model: &[u8]) {
    let (mut at, mut last) = (0, None);
    while let Some(data) = site.runtime.block_on(disk.next_data(at)).unwrap() {
        assert!(data.start >= at && data.end <= model.len() as u64 && last.is_none_or(|last| last < data.start));
        assert!(model[at as usize..data.start as usize].iter().all(|byte| *byte == 0));
        (at, last) = (data.end, Some(data.end));
    }
    assert!(model[at as usize..].iter().all(|byte| *byte == 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_clone_is_a_vector(steps in prop::collection::vec(step(), 1..40)) {
        let (site, mut model) = (TestStore::with_clone(&image()), image());
        let mut disk = site.open();
        for (second, step) in (0..).zip(steps) {
            match step {
                Step::Write(at, bytes, value) => {
                    site.runtime.block_on(disk.write(&vec![value; bytes], at)).unwrap();
                    let end = at as usize + bytes;
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].fill(value);
                }
                Step::Discard(at, bytes) => {
                    site.runtime.block_on(disk.discard(at..at + bytes)).unwrap();
                    let end = ((at + bytes) as usize).min(model.len());
                    model[(at as usize).min(end)..end].fill(0);
                }
                Step::Resize(bytes) => {
                    site.runtime.block_on(disk.set_size(bytes)).unwrap();
                    model.resize(bytes as usize, 0);
                }
                Step::Sync => site.runtime.block_on(disk.sync()).unwrap(),
                Step::Reopen => {
                    drop(disk);
                    disk = site.open();
                }
                Step::Commit => {
                    let committed = site.commit(&disk, second).unwrap();
                    prop_assert!(site.content(&committed.snapshot) == model, "the snapshot");
                    prop_assert_eq!(site.held(), [committed.snapshot.name().to_string()]);
                }
            }
            prop_assert_eq!(disk.size_bytes(), model.len() as u64);
            prop_assert!(content(&site, &disk) == model);
            check_data(&site, &disk, &model);
        }
    }
}

#[test]
fn a_short_read_or_an_unsynced_size_does_not_survive_and_does_no_harm() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    site.runtime.block_on(disk.write(&[7; 9000], SIZE + 100)).unwrap();
    assert_eq!(disk.size_bytes(), SIZE + 9100);
    // As if it were killed.
    disk.shared.stack().top().give_up();
    drop(disk);
    let disk = site.open();
    assert_eq!(disk.size_bytes(), SIZE);
    site.runtime.block_on(disk.set_size(3 * SIZE)).unwrap();
    let mut expected = image();
    expected.resize(3 * SIZE as usize, 0);
    assert!(content(&site, &disk) == expected);
}

#[test]
fn discarding_a_huge_hole_costs_nothing() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    site.runtime.block_on(disk.set_size(8 << 40)).unwrap();
    site.runtime.block_on(disk.discard(0..8 << 40)).unwrap();
    site.runtime.block_on(disk.sync()).unwrap();
    assert_eq!(site.runtime.block_on(disk.next_data(0)).unwrap(), None);
    assert!(site.clones.info("c").unwrap().written_bytes < 1 << 20);
    let map = fs::metadata(site.clone_dir().join("1.map")).unwrap();
    assert!(map.len() <= 512, "only what was data is told: {}", map.len());
}

#[test]
fn names_that_can_not_be() {
    let site = TestStore::with_clone(&image());
    for bad in ["", ".", "..", ".c.new", "a/b", "a b", "a:b", &"x".repeat(129)] {
        assert!(matches!(site.create(bad), Err(Error::Invalid { .. })), "{bad}");
        assert!(matches!(site.try_open(bad), Err(Error::NotFound { .. })), "{bad}");
        assert!(matches!(site.clones.discard(bad), Err(Error::NotFound { .. })), "{bad}");
    }
    assert!(matches!(site.create("c"), Err(Error::Refused { .. })));
    let missing = "web01@20261121T020000Z".parse().unwrap();
    assert!(matches!(site.clones.create("d", &missing, Timestamp::UNIX_EPOCH), Err(Error::NotFound { .. })));
    assert_eq!(site.clones.list().unwrap(), ["c"]);
}

#[test]
fn opened_twice_is_busy_and_an_open_one_stays() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    assert!(
        matches!(site.try_open("c"), Err(Error::Busy { what, holder }) if what == "clone c" && holder.contains("process"))
    );
    assert!(matches!(site.clones.discard("c"), Err(Error::Busy { .. })));
    assert!(matches!(site.clones.rollback("c"), Err(Error::Busy { .. })));
    assert_eq!(site.clones.info("c").unwrap().open_by, Some(std::process::id()));
    drop(disk);
    assert_eq!(site.clones.info("c").unwrap().open_by, None);
    site.open();
}

#[test]
fn a_clone_holds_its_snapshot_until_it_is_discarded() {
    let site = TestStore::with_clone(&image());
    assert!(matches!(site.store().catalog().remove(&site.base), Err(Error::Refused { .. })));
    gc::collect(site.store(), false, 1, &Progress::default()).unwrap();
    assert!(content(&site, &site.open()) == image());
    site.clones.discard("c").unwrap();
    assert!(matches!(site.clones.discard("c"), Err(Error::NotFound { .. })));
    assert_eq!(site.clones.list().unwrap(), [""; 0]);
    site.store().catalog().remove(&site.base).unwrap();
}

#[test]
fn rolled_back_it_is_the_snapshot_again() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    site.runtime.block_on(disk.write(&[9; 5000], 777)).unwrap();
    site.runtime.block_on(disk.set_size(SIZE / 2)).unwrap();
    drop(disk);
    site.clones.rollback("c").unwrap();
    let disk = site.open();
    assert!(content(&site, &disk) == image());
    assert_eq!(fs::read_dir(site.clone_dir()).unwrap().count(), 5, "clone.json, lock, socket, data, map");
}

#[test]
fn what_was_begun_is_finished_by_the_next_command() {
    let points = [Point::BeforeHold, Point::AfterHold];
    for point in points {
        let site = TestStore::new(&image());
        site.publisher.fail_at(point);
        site.create("c").unwrap_err();
        assert_eq!(site.clones.list().unwrap(), [""; 0], "{point:?}");
        site.publisher.fail_at(Point::Nowhere);
        site.create("d").unwrap();
        assert_eq!(site.held(), [""; 0], "{point:?}");
        site.create("c").unwrap();
        assert_eq!(site.held().len(), 1);
    }
    for point in [Point::BeforeRelease, Point::AfterRelease] {
        let site = TestStore::with_clone(&image());
        site.publisher.fail_at(point);
        site.clones.discard("c").unwrap_err();
        assert_eq!(site.clones.list().unwrap(), [""; 0], "{point:?}");
        site.publisher.fail_at(Point::Nowhere);
        site.clones.discard("c").unwrap();
        assert_eq!(site.held(), [""; 0], "{point:?}");
    }
}

#[test]
fn damage_is_named() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    site.runtime.block_on(disk.write(&[9; 5000], 0)).unwrap();
    site.runtime.block_on(disk.sync()).unwrap();
    drop(disk);
    let map = site.clone_dir().join("1.map");
    let whole = fs::read(&map).unwrap();
    fs::write(&map, [&[0x7f], &whole[1..]].concat()).unwrap();
    assert!(matches!(site.try_open("c"), Err(Error::Damaged { what, .. }) if what.contains("1.map")));
    fs::remove_file(&map).unwrap();
    assert!(matches!(site.try_open("c"), Err(Error::Damaged { what, .. }) if what.contains("1.map")));
    fs::write(&map, whole).unwrap();
    site.open();
    let metadata = site.clone_dir().join("clone.json");
    let text = fs::read_to_string(&metadata).unwrap();
    let with = |field: &str, value: Value| {
        let mut metadata: Value = serde_json::from_str(&text).unwrap();
        metadata[field] = value;
        metadata.to_string()
    };
    let too_long = IMAGE_BYTES_MAX + 1;
    for bad in [
        with("version", json!(0)),
        with("name", json!("another")),
        with("layers", json!([])),
        with("layers", json!([{ "number": 2, "bytes_max": 4096 }, { "number": 1 }])),
        with("layers", json!([{ "number": u32::MAX }])),
        with("layers", json!([{ "number": 0, "bytes_max": too_long }, { "number": 1 }])),
        with("size_bytes", json!(too_long)),
        with("base_bytes_max", json!(too_long)),
        with("releases", json!(["no snapshot's name"])),
        with("later", json!("x".repeat(1 << 20))),
        text.replace("\"layers\"", "\"l\""),
        String::new(),
    ] {
        fs::write(&metadata, bad).unwrap();
        assert!(matches!(site.try_open("c"), Err(Error::Damaged { what, .. }) if what.contains("clone.json")));
    }
    fs::write(&metadata, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert!(matches!(site.try_open("c"), Err(Error::Refused { what }) if what.contains("newer")));
    // It can be discarded still, and its snapshot is found.
    site.clones.discard("c").unwrap();
    assert_eq!(site.held(), [""; 0]);
}

#[test]
fn a_clone_that_names_no_snapshot_to_release_is_discarded_and_stops_nobody() {
    let site = TestStore::with_clone(&image());
    let metadata = site.clone_dir().join("clone.json");
    let text = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, text.replace("\"created\"", "\"releases\": [\"web01\"], \"created\"")).unwrap();
    site.clones.discard("c").unwrap();
    assert_eq!(site.held(), [""; 0]);
    site.create("c").unwrap();
}

#[test]
fn a_copy_of_a_clone_does_not_release_what_the_clone_holds() {
    let site = TestStore::with_clone(&image());
    let copy = site.clone_dir().with_file_name("copy");
    fs::create_dir(&copy).unwrap();
    for file in ["clone.json", "1.data", "1.map"] {
        fs::copy(site.clone_dir().join(file), copy.join(file)).unwrap();
    }
    assert!(matches!(site.try_open("copy"), Err(Error::Damaged { detail, .. }) if detail.contains("clone c")));
    site.clones.rollback("copy").unwrap_err();
    site.clones.discard("copy").unwrap();
    assert_eq!(site.held().len(), 1);
    site.open();
}
