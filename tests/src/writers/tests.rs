//! The judge of disks after kills: it must notice what is lost.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tempfile::TempDir;

use super::plan::What;
use super::*;
use crate::images;

const MIB: u64 = 1 << 20;

/// A disk in a plain file, written for a moment, and how far the writers came.
fn written() -> (TempDir, PathBuf, Written, Vec<Ended>) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let [base, disk] = ["base", "disk"].map(|name| dir.path().join(name));
    images::make(&base, 4 * MIB, 1);
    fs::copy(&base, &disk).unwrap();
    let mut written = Written::new(&base, 2, 7);
    let writers = written.start(&disk);
    crate::eventually("a sync of each", || writers.synced().0.iter().all(|synced| *synced > 0));
    (dir, disk, written, writers.stop())
}

#[test]
fn written_sectors_are_right_in_every_round() {
    let (_dir, disk, mut written, ended) = written();
    assert!(written.judge(&disk, &ended) > 0);
    let writers = written.start(&disk);
    thread::sleep(std::time::Duration::from_millis(50));
    let ended = writers.stop();
    written.judge(&disk, &ended);
}

#[test]
fn a_lost_write_that_was_synced_is_found() {
    let (_dir, disk, mut written, ended) = written();
    let plan = written.plan(&written.lanes[0]);
    let steps: Vec<_> = plan.take_while(|step| step.number <= ended[0].synced).collect();
    let later = |range: &Range<u64>, from: u64| {
        let begun = written.plan(&written.lanes[0]).take_while(|step| step.number <= ended[0].begun);
        begun.filter(|step| step.number > from).any(|step| match step.what {
            What::Write(other) | What::Discard(other) => other.start < range.end && range.start < other.end,
            What::Sync => false,
        })
    };
    // One that nothing overwrote, so that only it may be there.
    let kept = |step: &Step| matches!(&step.what, What::Write(range) if !later(range, step.number));
    let step = steps.iter().rev().find(|step| kept(step)).unwrap();
    let What::Write(range) = &step.what else { unreachable!("it was chosen for being one") };
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&[1], range.end - 1).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| written.judge(&disk, &ended))).is_err());
}

#[test]
fn unsynced_writes_may_be_there_or_not() {
    let mut sectors = Sectors::new(Arc::new(vec![7; 4096]), 0..4096);
    let write = |number: u64| Step { number, tag: number, what: What::Write(0..512) };
    let content = |tag: u64| {
        let mut bytes = vec![7; 4096];
        fill(&mut bytes[..512], tag, 0);
        bytes
    };
    sectors.apply(&write(1));
    sectors.synced();
    sectors.apply(&write(2));
    sectors.apply(&write(3));
    let allows = |sectors: &Sectors, bytes: &[u8]| {
        let mut sectors = sectors.clone();
        catch_unwind(AssertUnwindSafe(|| sectors.settle(bytes))).is_ok()
    };
    for tag in [1, 2, 3] {
        assert!(allows(&sectors, &content(tag)), "{tag}");
    }
    assert!(!allows(&sectors, &content(4)));
    assert!(!allows(&sectors, &[7; 4096]), "what the sync covered was lost");
    sectors.settle(&content(2));
    assert!(!allows(&sectors, &content(3)), "what was found stays");
}
