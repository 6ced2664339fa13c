//! Threads that write to a disk and know what it must hold after its server was killed.
//!
//! Each thread has a part of the disk of its own, and follows a plan of writes of many sizes, discards and syncs that
//! comes from a seed. A written sector says which write put it there. Everything that a completed sync covered must be
//! there; of what came later, a sector may have any, or none.

mod plan;
mod state;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::fs::{FallocateFlags, fallocate};

use self::plan::{Plan, Step, fill};
use self::state::Sectors;

/// The unit of what is written, discarded and judged.
pub const SECTOR_BYTES: u64 = 512;
/// Where direct reads and writes must begin, in memory.
const ALIGNMENT: usize = 4096;

/// A disk that is written to, round after round.
#[derive(Clone, Debug)]
pub struct Written {
    lanes: Vec<Lane>,
    seed: u64,
    round: u32,
}

/// One thread's part.
#[derive(Clone, Debug)]
struct Lane {
    number: u32,
    range: Range<u64>,
    sectors: Sectors,
}

/// Threads at work.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<(Arc<AtomicU64>, JoinHandle<Ended>)>,
}

/// How far a thread came.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The last step that was begun.
    begun: u64,
    /// The last sync that returned.
    synced: u64,
    /// Why it ended, unless it was stopped.
    error: Option<String>,
}

/// The last sync that had returned in each thread at one time.
#[derive(Clone, Debug)]
pub struct Synced(Vec<u64>);

impl Written {
    /// A disk that has what is in `base`, to be written by so many threads.
    pub fn new(base: &Path, threads: u32, seed: u64) -> Self {
        let base = Arc::new(std::fs::read(base).unwrap());
        let lane_bytes = base.len() as u64 / u64::from(threads);
        assert!(lane_bytes.is_multiple_of(ALIGNMENT as u64), "lanes that share a page disturb each other");
        let lane = |number: u32| {
            let start = u64::from(number) * lane_bytes;
            let range = start..start + lane_bytes;
            Lane { number, sectors: Sectors::new(Arc::clone(&base), range.clone()), range }
        };
        Self { lanes: (0..threads).map(lane).collect(), seed, round: 0 }
    }

    /// Begins a round. Every other thread writes past the page cache.
    pub fn start(&mut self, disk: &Path) -> Writers {
        self.round += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let start = |lane: &Lane| {
            let (plan, stop, disk) = (self.plan(lane), Arc::clone(&stop), disk.to_owned());
            let direct = lane.number % 2 == 1;
            let synced = Arc::new(AtomicU64::new(0));
            let told = Arc::clone(&synced);
            (told, thread::spawn(move || write(disk, direct, plan, &stop, &synced)))
        };
        let threads = self.lanes.iter().map(start).collect();
        Writers { stop, threads }
    }

    fn plan(&self, lane: &Lane) -> Plan {
        Plan::new(self.seed, self.round, lane.number, lane.range.clone())
    }

    /// Fails unless a copy of the disk, made in the round when so much was synced or later, has what it must have.
    pub fn judge_copy(&self, copy: &Path, synced: &Synced, ended: &[Ended]) {
        let until = |(ended, synced): (&Ended, &u64)| Ended { synced: *synced, ..ended.clone() };
        let ended: Vec<_> = ended.iter().zip(&synced.0).map(until).collect();
        self.clone().judge(copy, &ended);
    }

    /// Fails unless the disk is as it was judged last: no write has happened since.
    pub fn judge_unwritten(&mut self, disk: &Path) {
        let ended = vec![Ended { begun: 0, synced: 0, error: None }; self.lanes.len()];
        self.judge(disk, &ended);
    }

    /// Fails unless the disk has what it must have after the round; what it has is the beginning of the next.
    /// Returns how many syncs had returned.
    pub fn judge(&mut self, disk: &Path, ended: &[Ended]) -> usize {
        let file = File::open(disk).unwrap();
        let plans: Vec<_> = self.lanes.iter().map(|lane| self.plan(lane)).collect();
        let mut syncs = 0;
        for ((lane, plan), ended) in self.lanes.iter_mut().zip(plans).zip(ended) {
            for step in plan.take_while(|step| step.number <= ended.begun) {
                let is_sync = lane.sectors.apply(&step);
                if is_sync && step.number <= ended.synced {
                    lane.sectors.synced();
                    syncs += 1;
                }
            }
            let mut bytes = vec![0; (lane.range.end - lane.range.start) as usize];
            file.read_exact_at(&mut bytes, lane.range.start).unwrap();
            lane.sectors.settle(&bytes);
        }
        syncs
    }
}

impl Writers {
    /// The syncs that have returned by now.
    pub fn synced(&self) -> Synced {
        Synced(self.threads.iter().map(|(synced, _)| synced.load(Ordering::SeqCst)).collect())
    }

    /// Waits until an error has ended all of them, as the end of who serves the disk does.
    pub fn end_by_error(self) -> Vec<Ended> {
        let ended = self.join();
        assert!(ended.iter().all(|ended| ended.error.is_some()), "{ended:?}");
        ended
    }

    /// Tells them to end, and waits until they have; none may have failed.
    pub fn stop(self) -> Vec<Ended> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.join();
        assert!(ended.iter().all(|ended| ended.error.is_none()), "{ended:?}");
        ended
    }

    fn join(self) -> Vec<Ended> {
        self.threads.into_iter().map(|(_, thread)| thread.join().unwrap()).collect()
    }
}

/// A thread's work. The disk's server may be killed before it is open.
fn write(disk: PathBuf, direct: bool, plan: Plan, stop: &AtomicBool, synced: &AtomicU64) -> Ended {
    match Writer::open(disk, direct) {
        Ok(writer) => writer.follow(plan, stop, synced),
        Err(error) => Ended { begun: 0, synced: 0, error: Some(format!("opening: {error}")) },
    }
}

/// A thread's file.
struct Writer {
    file: File,
    disk: PathBuf,
    /// Written from where [`ALIGNMENT`] begins in it.
    buffer: Vec<u8>,
}

impl Writer {
    fn open(disk: PathBuf, direct: bool) -> io::Result<Self> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = File::options().read(true).write(true).custom_flags(flags).open(&disk)?;
        Ok(Self { file, disk, buffer: vec![0; plan::WRITE_BYTES_MAX as usize + ALIGNMENT] })
    }

    fn follow(mut self, plan: Plan, stop: &AtomicBool, synced: &AtomicU64) -> Ended {
        let mut ended = Ended { begun: 0, synced: 0, error: None };
        for step in plan {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            ended.begun = step.number;
            if let Err(error) = self.take(&step) {
                ended.error = Some(format!("{}: {error}", self.disk.display()));
                break;
            }
            if matches!(step.what, plan::What::Sync) {
                ended.synced = step.number;
                synced.store(step.number, Ordering::SeqCst);
            }
        }
        ended
    }

    fn take(&mut self, step: &Step) -> io::Result<()> {
        match &step.what {
            plan::What::Sync if step.number.is_multiple_of(2) => self.file.sync_data(),
            plan::What::Sync => self.file.sync_all(),
            plan::What::Discard(range) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&self.file, flags, range.start, range.end - range.start)?)
            }
            plan::What::Write(range) => {
                let start = self.buffer.as_ptr().align_offset(ALIGNMENT);
                let bytes = &mut self.buffer[start..][..(range.end - range.start) as usize];
                for (sector, offset) in bytes.chunks_exact_mut(SECTOR_BYTES as usize).zip(range.clone().step_by(512)) {
                    fill(sector, step.tag, offset);
                }
                self.file.write_all_at(bytes, range.start)
            }
        }
    }
}

#[cfg(test)]
mod tests;
