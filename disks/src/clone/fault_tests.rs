//! Faults at every call that a clone makes of its files, in turn: the right error, nothing lost that was synced, no
//! success that lies, and all goes on when the fault is gone.

use std::fs;
use std::sync::Arc;

use chunkstore::Result;
use chunkstore::testing::noise;

use super::BLOCK_BYTES;
use super::clone_disk::CloneDisk;
use super::files::HostFiles;
use super::power_cut::{Disk, Possible};
use super::power_cut_tests::{content, names_in, scratch, try_content};
use super::recording::Recording;
use super::test_store::{TestStore, init, runtime};
use super::{Clones, metadata::CloneMetadata};
use crate::errno::{Of, errno};

const SIZE: usize = 8 * BLOCK_BYTES as usize + 700;

/// What is done to a clone.
#[derive(Clone, Copy, Debug)]
enum Act {
    Create,
    Write(u64, usize, u8),
    Discard(u64, u64),
    Resize(u64),
    Sync,
    Reopen,
    Commit,
    Rollback,
    Drop,
}

/// Each kind of call in each kind of state: blocks new and changed, a disk grown and shortened, a second layer.
const ACTS: [Act; 24] = [
    Act::Create,
    Act::Write(0, 4096, 1),
    Act::Write(5000, 300, 2),
    Act::Sync,
    Act::Write(100, 300, 3),
    Act::Discard(3 * 4096 + 9, 9000),
    Act::Sync,
    Act::Write(SIZE as u64 - 50, 6000, 4),
    Act::Sync,
    Act::Resize(3000),
    Act::Resize(50_000),
    Act::Write(40_000, 100, 5),
    Act::Commit,
    Act::Write(2 * 4096, 5000, 6),
    Act::Sync,
    Act::Reopen,
    Act::Commit,
    Act::Write(100, 100, 7),
    Act::Sync,
    Act::Rollback,
    Act::Write(100, 100, 8),
    Act::Resize(60_000),
    Act::Sync,
    Act::Drop,
];

/// A clone under faults.
struct Trial<'a> {
    site: &'a TestStore,
    recording: &'a Recording,
    disk: Option<CloneDisk>,
    now: Vec<u8>,
    possible: Possible,
    first: &'a [u8],
    base: Vec<u8>,
    seconds: &'a mut i64,
    place: String,
}

impl Trial<'_> {
    fn run(&mut self, fault: i32) {
        for act in ACTS {
            let place = format!("{}, {act:?}", self.place);
            if let Err(error) = self.act(act) {
                assert!(self.recording.heal(), "{place}: {error}, without a fault");
                let code = errno(Of::Data, &error).raw_os_error();
                assert!(code == fault || code == libc::EIO, "{place}: errno {code}: {error}");
                self.again(act, code != fault, &place);
            }
        }
        assert_eq!(self.site.held(), [""; 0], "{}", self.place);
        assert_eq!(names_in(&self.site.dir().join("clones")).len(), 1, "{}: only the lock is left", self.place);
    }

    /// Does it again when the fault is gone; if need be, after opening the clone anew, as it must be if it `is_broken`.
    fn again(&mut self, act: Act, is_broken: bool, place: &str) {
        if self.disk.is_some() {
            match self.act(act) {
                Ok(()) => return assert!(!is_broken, "{place}: what is durable was unknown, and now it is well"),
                Err(_) => self.disk = None,
            }
            self.reopen();
        }
        // It may have been done.
        if matches!(act, Act::Drop) && self.site.clones.list().unwrap().is_empty() {
            self.site.create("d").unwrap();
            self.site.clones.discard("d").unwrap();
            return;
        }
        if matches!(act, Act::Create) && self.site.clones.list().unwrap() == ["c"] {
            self.reopen();
            return;
        }
        if !matches!(act, Act::Create | Act::Rollback | Act::Drop) && self.disk.is_none() {
            self.reopen();
        }
        self.act(act).unwrap_or_else(|error| panic!("{place}, when the fault is gone: {error}"));
    }

    /// What is seen then was possible, and can be made permanent.
    fn reopen(&mut self) {
        self.disk = Some(self.site.open());
        let found = content(self.site, self.disk());
        assert_eq!(self.possible.unlike(&found), None, "{}", self.place);
        self.now = found;
        let own = CloneMetadata::read(&self.site.clone_dir()).unwrap().snapshot;
        self.base = self.site.content(&self.site.store().catalog().read(&own).unwrap());
        self.act(Act::Sync).unwrap();
    }

    fn disk(&self) -> &CloneDisk {
        self.disk.as_ref().unwrap()
    }

    fn changing(&mut self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut changed = self.now.clone();
        change(&mut changed);
        self.possible.add(&changed);
        changed
    }

    fn act(&mut self, act: Act) -> Result<()> {
        match act {
            Act::Create => {
                self.now = self.first.to_vec();
                self.base.clone_from(&self.now);
                self.possible = Possible::only(&self.now);
                self.site.create("c")?;
                self.assert_permanent("created");
                self.disk = Some(self.site.try_open("c")?);
            }
            Act::Write(at, bytes, value) => {
                let end = at as usize + bytes;
                let changed = self.changing(|now| {
                    now.resize(now.len().max(end), 0);
                    now[at as usize..end].fill(value);
                });
                self.site.runtime.block_on(self.disk().write(&vec![value; bytes], at))?;
                self.now = changed;
            }
            Act::Discard(at, bytes) => {
                let changed = self.changing(|now| now[at as usize..(at + bytes) as usize].fill(0));
                self.site.runtime.block_on(self.disk().discard(at..at + bytes))?;
                self.now = changed;
            }
            Act::Resize(bytes) => {
                let grows = bytes as usize >= self.now.len();
                let changed = self.changing(|now| now.resize(bytes as usize, 0));
                self.site.runtime.block_on(self.disk().set_size(bytes))?;
                self.now = changed;
                if grows {
                    self.assert_permanent("grown");
                } else {
                    self.possible.shorten(bytes as usize);
                }
            }
            Act::Sync => {
                self.site.runtime.block_on(self.disk().sync())?;
                self.assert_permanent("synced");
            }
            Act::Reopen => {
                self.disk = None;
                self.disk = Some(self.site.try_open("c")?);
                assert!(try_content(self.site, self.disk())? == self.now, "{}: reopened", self.place);
            }
            Act::Commit => {
                *self.seconds += 1;
                let committed = self.site.commit(self.disk(), *self.seconds)?;
                assert!(self.site.content(&committed.snapshot) == self.now, "{}: the snapshot", self.place);
                self.base.clone_from(&self.now);
                self.assert_permanent("committed");
            }
            Act::Rollback => {
                self.disk = None;
                let base = self.base.clone();
                self.possible.add(&base);
                self.site.clones.rollback("c")?;
                self.now = base;
                self.assert_permanent("rolled back");
                self.disk = Some(self.site.try_open("c")?);
            }
            Act::Drop => {
                self.disk = None;
                self.site.clones.discard("c")?;
            }
        }
        Ok(())
    }

    /// Fails if a power cut would leave something else.
    fn assert_permanent(&mut self, what: &str) {
        self.possible = Possible::only(&self.now);
        let left = self.recording.with_disk(Disk::cut_all).take_below("clones/c");
        let other = scratch();
        fs::create_dir(other.path().join("clones")).unwrap();
        left.write_to(other.path());
        let clones = Clones { files: Arc::new(HostFiles), ..Clones::new(other.path()) };
        let disk = clones.open("c", &self.site.cache(), &self.site.names());
        let disk = disk.unwrap_or_else(|error| panic!("{}, {what}: {error}", self.place));
        assert!(content(self.site, &disk) == self.now, "{}: {what}, and yet a power cut loses it", self.place);
    }
}

#[test]
fn whatever_call_fails_the_error_is_told_and_nothing_is_lost() {
    let runtime = runtime();
    let mut tried = 0;
    for (fault, lasts) in [
        (libc::EIO, false),
        (libc::EMFILE, false),
        (libc::ENOSPC, false),
        (libc::ENOSPC, true),
        (libc::EDQUOT, false),
        (libc::EDQUOT, true),
    ] {
        let dir = scratch();
        let first = noise(SIZE, 5);
        init(dir.path(), &first);
        let recording = Recording::of(dir.path());
        let files = Arc::new(recording.clone());
        let site = TestStore::open_store(dir, Arc::clone(&runtime), None, files).unwrap();
        let mut seconds = 0;
        for call in 1.. {
            let at = recording.calls() + call;
            if lasts {
                recording.run_out_at(at, fault);
            } else {
                recording.fail_at(at, fault);
            }
            let mut trial = Trial {
                site: &site,
                recording: &recording,
                disk: None,
                now: first.clone(),
                possible: Possible::only(&first),
                first: &first,
                base: first.clone(),
                seconds: &mut seconds,
                place: format!("errno {fault} at call {call}, lasts: {lasts}"),
            };
            trial.run(fault);
            if !recording.heal() && recording.calls() < at {
                break;
            }
            tried += 1;
        }
    }
    println!("faults of clones: {tried} tried, 0 failed");
}
