//! Commits that are interrupted at every step, run during writes, are repeated, and are requested through the socket.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Clones;
use super::super::clone_disk::CloneDisk;
use super::super::test_store::{Point, TestStore, commit_options, put};
use super::*;
use chunkstore::testing::noise;

const SIZE: usize = 40 * 4096 + 17;

fn image() -> Vec<u8> {
    let mut image = noise(SIZE, 1);
    image[5 * 4096..20 * 4096].fill(0);
    image
}

/// Writes at some places, in the clone and in the model.
fn scribble(site: &TestStore, disk: &CloneDisk, model: &mut [u8], value: u8) {
    for at in (usize::from(value) * 997 % 4096..SIZE - 6000).step_by(4096 * 7 + 1) {
        let bytes = 1 + at % 5000;
        site.runtime.block_on(disk.write(&vec![value; bytes], at as u64)).unwrap();
        model[at..at + bytes].fill(value);
    }
}

fn content(site: &TestStore, disk: &CloneDisk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size_bytes() as usize];
    site.runtime.block_on(disk.read(&mut bytes, 0)).unwrap();
    bytes
}

/// Fails unless soon there are these files of layers, and no others.
fn assert_layers(site: &TestStore, numbers: &[u32]) {
    let expected: Vec<_> =
        numbers.iter().flat_map(|number| [format!("{number}.data"), format!("{number}.map")]).collect();
    for _ in 0..1000 {
        if files(site) == expected {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{:?} instead of {expected:?}", files(site));
}

fn files(site: &TestStore) -> Vec<String> {
    let entries = fs::read_dir(site.clone_dir()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.contains('.') && name != "clone.json");
    names.sort_unstable();
    names
}

#[test]
fn a_commit_takes_the_place_of_what_was_written() {
    let (site, mut model) = (TestStore::with_clone(&image()), image());
    let disk = site.open();
    scribble(&site, &disk, &mut model, 1);
    let first = site.commit(&disk, 1).unwrap();
    assert!(first.written_bytes > 0 && first.base == site.base);
    assert!(site.content(&first.snapshot) == model && content(&site, &disk) == model);
    assert_layers(&site, &[2]);
    assert_eq!(site.held(), [first.snapshot.name().to_string()]);
    assert_eq!(first.snapshot.state.ingest.as_ref().unwrap().parent, Some(site.base.to_string()));
    site.store().catalog().remove(&site.base).unwrap();

    scribble(&site, &disk, &mut model, 2);
    let second = site.commit(&disk, 2).unwrap();
    assert!(site.content(&second.snapshot) == model && second.base == first.snapshot.name());
    drop(disk);
    assert!(content(&site, &site.open()) == model);
}

#[test]
fn with_nothing_written_the_snapshot_is_equal() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    for second in 1..4 {
        let committed = site.commit(&disk, second).unwrap();
        assert_eq!(committed.written_bytes, 0);
        assert_eq!(committed.snapshot.entry().root, site.store().catalog().read(&site.base).unwrap().entry().root);
        assert_eq!(files(&site), ["1.data", "1.map"], "no layer is made for nothing");
    }
}

#[test]
fn a_time_that_is_taken_is_refused_and_harms_nothing() {
    let (site, mut model) = (TestStore::with_clone(&image()), image());
    let disk = site.open();
    let first = site.commit(&disk, 1).unwrap().snapshot.name().to_string();
    site.commit(&disk, 2).unwrap();
    scribble(&site, &disk, &mut model, 1);
    for taken in [1, 2] {
        assert!(matches!(site.commit(&disk, taken), Err(Error::Refused { .. })));
    }
    assert!(content(&site, &disk) == model);
    site.publisher.fail_at(Point::BeforeIngest);
    site.commit(&disk, 3).unwrap_err();
    site.publisher.fail_at(Point::Nowhere);
    assert!(site.held().len() == 1 && site.held() != [first], "its own snapshot stays held");
    let committed = site.commit(&disk, 4).unwrap();
    assert!(site.content(&committed.snapshot) == model);
    assert_eq!(site.held(), [committed.snapshot.name().to_string()]);
}

/// A process that is killed goes without a sync: what it wrote is in the files all the same.
#[test]
fn cut_short_at_every_step_it_loses_nothing_and_can_be_repeated() {
    let points = [
        Point::BeforeIngest,
        Point::AfterIngest,
        Point::BeforeHold,
        Point::AfterHold,
        Point::BeforeRelease,
        Point::AfterRelease,
    ];
    for (point, reopens) in points.into_iter().flat_map(|point| [(point, false), (point, true)]) {
        let (site, mut model) = (TestStore::with_clone(&image()), image());
        let mut disk = site.open();
        scribble(&site, &disk, &mut model, 1);
        site.runtime.block_on(disk.sync()).unwrap();
        site.publisher.fail_at(point);
        let failed = site.commit(&disk, 1);
        // That the old snapshot stays held for longer is no failure.
        assert_eq!(failed.is_ok(), matches!(point, Point::BeforeRelease | Point::AfterRelease), "{point:?}");
        site.publisher.fail_at(Point::Nowhere);
        if reopens {
            site.runtime.block_on(disk.sync()).unwrap();
            drop(disk);
            disk = site.open();
        }
        assert!(content(&site, &disk) == model, "{point:?} {reopens}");
        scribble(&site, &disk, &mut model, 2);
        site.runtime.block_on(disk.set_size(SIZE as u64 / 2)).unwrap();
        site.runtime.block_on(disk.set_size(SIZE as u64)).unwrap();
        model[SIZE / 2..].fill(0);
        assert!(content(&site, &disk) == model, "{point:?} {reopens}");
        let committed = site.commit(&disk, 2).unwrap();
        assert!(site.content(&committed.snapshot) == model, "{point:?} {reopens}");
        assert_eq!(site.held(), [committed.snapshot.name().to_string()], "{point:?} {reopens}");
        let left = site.clones.numbers("c");
        assert_eq!(left.len(), 1, "{point:?} {reopens}");
        assert_layers(&site, &left);
        drop(disk);
        assert!(content(&site, &site.open()) == model);
        site.clones.discard("c").unwrap();
        assert_eq!(site.held(), [""; 0]);
    }
}

#[test]
fn a_record_that_can_not_be_stored_leaves_all_as_it_was() {
    let (site, mut model) = (TestStore::with_clone(&image()), image());
    let disk = site.open();
    scribble(&site, &disk, &mut model, 1);
    // Root may write anywhere, but no user can write a directory.
    let aside = site.clone_dir().join("clone.json.tmp");
    fs::create_dir(&aside).unwrap();
    assert!(site.commit(&disk, 1).is_err());
    assert_eq!(files(&site), ["1.data", "1.map", "clone.json.tmp"]);
    assert!(site.runtime.block_on(disk.set_size(7)).is_err());
    fs::remove_dir(&aside).unwrap();
    scribble(&site, &disk, &mut model, 2);
    assert!(content(&site, &disk) == model);
    let committed = site.commit(&disk, 1).unwrap();
    assert!(site.content(&committed.snapshot) == model);
}

/// Each write makes a whole block of one value: a snapshot taken in between has each block old or new, and all blocks
/// that were written before it began.
#[test]
fn committed_while_it_is_written_it_is_as_at_one_moment() {
    let site = TestStore::with_clone(&image());
    let disk = site.open();
    let ends = AtomicBool::new(false);
    site.runtime.block_on(disk.write(&vec![255; 40 * 4096], 0)).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 0u8;
            while !ends.load(Ordering::SeqCst) {
                round = round % 250 + 1;
                for block in 0..40u64 {
                    site.runtime.block_on(disk.write(&[round; 4096], block * 4096)).unwrap();
                }
                site.runtime.block_on(disk.sync()).unwrap();
            }
            round
        });
        for second in 1..20 {
            let snapshot = site.content(&site.commit(&disk, second).unwrap().snapshot);
            // One writer goes from the first block to the last: so there is one step from new to old, not two.
            let firsts: Vec<u8> = (0..40).map(|block| snapshot[block * 4096]).collect();
            for block in 0..40 {
                let block = &snapshot[block * 4096..(block + 1) * 4096];
                assert!(block.iter().all(|byte| *byte == block[0]), "a block of two writes");
            }
            let steps = firsts.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(steps <= 1, "not of one moment: {firsts:?}");
        }
        ends.store(true, Ordering::SeqCst);
        let last = writer.join().unwrap();
        let mut expected = image();
        expected[..40 * 4096].fill(last);
        assert!(content(&site, &disk) == expected);
    });
}

#[test]
fn the_disk_is_shortened_and_grown_while_a_commit_reads_it() {
    let (site, mut model) = (Arc::new(TestStore::with_clone(&image())), image());
    let disk = Arc::new(site.open());
    scribble(&site, &disk, &mut model, 1);
    let (resized, runtime) = (Arc::clone(&disk), site.runtime.handle().clone());
    *site.publisher.during.lock().unwrap() = Some(Box::new(move || {
        runtime.block_on(resized.set_size(10_000)).unwrap();
        runtime.block_on(resized.set_size(SIZE as u64)).unwrap();
        runtime.block_on(resized.write(b"late", 100)).unwrap();
    }));
    let committed = site.commit(&disk, 1).unwrap();
    assert!(site.content(&committed.snapshot) == model, "as it was when the commit began");
    model[10_000..].fill(0);
    model[100..104].copy_from_slice(b"late");
    assert!(content(&site, &disk) == model);
    *site.publisher.during.lock().unwrap() = None;
    assert!(site.content(&site.commit(&disk, 2).unwrap().snapshot) == model);
}

#[test]
fn the_process_that_has_it_open_commits_it() {
    let (site, mut model) = (TestStore::with_clone(&image()), image());
    let ask = |second| {
        let (options, progress) = (commit_options(second), Progress::default());
        site.clones.commit("c", &site.cache(), &site.names(), &options, &progress)
    };
    let disk = site.open();
    scribble(&site, &disk, &mut model, 1);
    let committed = ask(1).unwrap();
    assert!(site.content(&committed.snapshot) == model);
    assert_eq!(committed.base, site.base);
    assert!(matches!(ask(1), Err(Error::Refused { what }) if what.contains("exists already")), "its errors come back");
    assert!(content(&site, &disk) == model);
    drop(disk);
    // Nobody has it open now.
    assert_eq!(ask(2).unwrap().written_bytes, 0);
    let disk = site.open();
    scribble(&site, &disk, &mut model, 2);
    drop(disk);
    assert!(site.content(&ask(4).unwrap().snapshot) == model);
    assert_eq!(files(&site).len(), 4, "who only commits does not spend time to free");
    drop(site.open());
    assert_layers(&site, &site.clones.numbers("c"));
    let deaf = Clones::new(site.dir());
    let _open = deaf.open("c", &site.cache(), &site.names()).unwrap();
    assert!(matches!(ask(3), Err(Error::Busy { .. })), "who can't commit does not listen");
}

/// Somebody has released, removed and replaced the clone's snapshot all the same.
#[test]
fn it_is_not_committed_onto_another_snapshot_of_the_same_name() {
    let (site, mut model) = (TestStore::with_clone(&image()), image());
    let disk = site.open();
    scribble(&site, &disk, &mut model, 1);
    site.publisher.release(&site.base, "clone:c").unwrap();
    site.commit(&disk, 1).unwrap();
    assert!(content(&site, &disk) == model);

    let base = site.clones.info("c").unwrap().snapshot;
    scribble(&site, &disk, &mut model, 2);
    site.publisher.release(&base, "clone:c").unwrap();
    site.store().catalog().remove(&base).unwrap();
    assert!(matches!(site.commit(&disk, 2), Err(Error::NotFound { .. })));
    put(site.store(), &base, &noise(SIZE, 7));
    assert!(matches!(site.commit(&disk, 2), Err(Error::Refused { what }) if what.contains("another snapshot")));
    assert!(content(&site, &disk) == model, "it can be read as long as it is open");
}

#[test]
fn one_commit_at_a_time() {
    let site = Arc::new(TestStore::with_clone(&image()));
    let disk = Arc::new(site.open());
    let (other, publisher) = (Arc::clone(&disk), Arc::clone(&site.publisher));
    *site.publisher.during.lock().unwrap() = Some(Box::new(move || {
        let second = other.commit(&*publisher, &commit_options(2), &Progress::default());
        assert!(matches!(second, Err(Error::Busy { .. })));
    }));
    site.commit(&disk, 1).unwrap();
}
