//! Sharing the work among threads: one walks the manifest, the others fetch and write segments.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::segment::SegmentData;
use crate::catalog::Entry;
use crate::error::{Error, Result};
use crate::format::manifest::{self, ChunkSource, Segment};
use crate::parallel;
use crate::progress::Progress;

/// Most zeros in one task: after each, a request to stop is noticed.
const ZERO_TASK_BYTES: u64 = 1 << 30;

/// Most threads: each holds a segment twice, and no disk takes more at a time.
const THREADS_MAX: usize = 12;

/// A destination that several threads write to, at any offset.
pub(super) trait Target: Sync {
    /// Writes a segment's chunks, and its zeros where they are not there already.
    fn write(&self, segment: &SegmentData) -> Result<()>;

    /// Whether zeros must be made; if not, [`Target::zero`] is not called.
    fn needs_zeros(&self) -> bool;

    /// Makes a range zero that no segment covers.
    fn zero(&self, range: Range<u64>) -> Result<()>;
}

/// A piece of work.
enum Task {
    Segment(Segment),
    /// What lies between segments.
    Zeros(Range<u64>),
}

/// Writes an image; returns how many bytes of it are chunks.
pub(super) fn write_all(
    source: &dyn ChunkSource,
    entry: &Entry,
    target: &dyn Target,
    threads: usize,
    progress: &Progress,
) -> Result<u64> {
    progress.set_total(entry.virtual_bytes);
    // Twice the threads that compute, because half of them wait for the disk.
    let threads = (threads * 2).clamp(1, THREADS_MAX);
    let work = Work { source, entry, target, progress, data_bytes: AtomicU64::new(0), failed: AtomicBool::new(false) };
    let (tasks, todo) = bounded(threads * 4);
    let (fed, worked) = thread::scope(|scope| {
        let feeder = scope.spawn(|| work.feed(tasks));
        let worked = parallel::run(threads, || work.work(&todo));
        (feeder.join().expect("the walk does not panic"), worked)
    });
    // In this order: when a worker fails, the walk only reports that it was interrupted.
    worked?;
    fed?;
    progress.reach(entry.virtual_bytes);
    Ok(work.data_bytes.into_inner())
}

struct Work<'a> {
    source: &'a dyn ChunkSource,
    entry: &'a Entry,
    target: &'a dyn Target,
    progress: &'a Progress,
    data_bytes: AtomicU64,
    failed: AtomicBool,
}

impl Work<'_> {
    /// Walks the manifest and queues every segment, and the ranges of zeros between them.
    #[expect(clippy::needless_pass_by_value, reason = "the workers end when the sender is gone")]
    fn feed(&self, tasks: Sender<Task>) -> Result<()> {
        let size = self.entry.virtual_bytes;
        let mut end = 0;
        manifest::walk(self.source, self.entry.root, size, &mut |segment| {
            let start = segment.offset().min(size);
            self.feed_zeros(end..start, &tasks)?;
            end = segment.end().min(size);
            self.give(Task::Segment(segment), &tasks)
        })?;
        self.feed_zeros(end..size, &tasks)
    }

    fn feed_zeros(&self, range: Range<u64>, tasks: &Sender<Task>) -> Result<()> {
        if !self.target.needs_zeros() {
            return Ok(());
        }
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + ZERO_TASK_BYTES);
            self.give(Task::Zeros(start..end), tasks)?;
            start = end;
        }
        Ok(())
    }

    fn give(&self, task: Task, tasks: &Sender<Task>) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        tasks.send(task).map_err(|_| Error::Interrupted)
    }

    /// Does tasks until there are no more. After a failure of any thread it only drains the queue, so that the walk
    /// does not block.
    fn work(&self, todo: &Receiver<Task>) -> Result<()> {
        let mut result = Ok(());
        for task in todo {
            if !self.failed.load(Ordering::Relaxed) {
                result = self.do_task(task);
                self.failed.fetch_or(result.is_err(), Ordering::Relaxed);
            }
        }
        result
    }

    fn do_task(&self, task: Task) -> Result<()> {
        self.progress.check()?;
        let end = match task {
            Task::Segment(segment) => {
                let data = SegmentData::read(self.source, segment, self.entry.virtual_bytes)?;
                self.target.write(&data)?;
                self.data_bytes.fetch_add(data.data_bytes(), Ordering::Relaxed);
                data.range().end
            }
            Task::Zeros(range) => {
                self.target.zero(range.clone())?;
                range.end
            }
        };
        self.progress.reach(end);
        Ok(())
    }
}
