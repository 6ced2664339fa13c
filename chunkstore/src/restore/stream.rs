//! A stream as destination: threads decode ahead, one writes in order, zeros included.

use std::io::{self, Write};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::segment::SegmentData;
use crate::catalog::Entry;
use crate::error::{Error, Result};
use crate::format::manifest::{self, ChunkSource, Segment};
use crate::progress::Progress;

/// Most segments in memory, at 4 MiB each.
const SEGMENTS_AHEAD_MAX: usize = 24;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A segment, and the channel for its content.
type Task = (Segment, Sender<Result<SegmentData>>);

/// Writes the whole image; returns how many bytes of it are chunks.
pub(super) fn write(
    source: &dyn ChunkSource,
    entry: &Entry,
    out: &mut (dyn Write + Send),
    threads: usize,
    progress: &Progress,
) -> Result<u64> {
    let ahead = (threads * 2).min(SEGMENTS_AHEAD_MAX);
    let (tasks, todo) = bounded::<Task>(ahead);
    // Its capacity bounds the decoded segments that wait to be written.
    let (promises, promised_segments) = bounded::<Receiver<Result<SegmentData>>>(ahead);
    thread::scope(|scope| {
        let feeder = scope.spawn(move || feed(source, entry, &tasks, &promises));
        for _ in 0..threads.min(ahead) {
            let todo = todo.clone();
            scope.spawn(move || work(source, entry, &todo));
        }
        drop(todo);
        let mut writer = Writer { out, at: 0, data_bytes: 0, progress };
        // Taken by value: when writing fails, the feeder must not wait for room.
        writer.write_segments(promised_segments)?;
        feeder.join().expect("the walk does not panic")?;
        writer.finish(entry.virtual_bytes)
    })
}

fn feed(
    source: &dyn ChunkSource,
    entry: &Entry,
    tasks: &Sender<Task>,
    promises: &Sender<Receiver<Result<SegmentData>>>,
) -> Result<()> {
    manifest::walk(source, entry.root, entry.virtual_bytes, &mut |segment| {
        let (give, take) = bounded(1);
        promises.send(take).map_err(|_| Error::Interrupted)?;
        tasks.send((segment, give)).map_err(|_| Error::Interrupted)
    })
}

fn work(source: &dyn ChunkSource, entry: &Entry, todo: &Receiver<Task>) {
    for (segment, give) in todo {
        // The receiver is gone once writing has failed.
        let _ = give.send(SegmentData::read(source, segment, entry.virtual_bytes));
    }
}

struct Writer<'a> {
    out: &'a mut (dyn Write + Send),
    at: u64,
    data_bytes: u64,
    progress: &'a Progress,
}

impl Writer<'_> {
    #[expect(clippy::needless_pass_by_value, reason = "its end tells the feeder to stop")]
    fn write_segments(&mut self, promised: Receiver<Receiver<Result<SegmentData>>>) -> Result<()> {
        for segment in &promised {
            // Only a panic of its worker leaves no answer.
            let segment = segment.recv().map_err(|_| Error::Interrupted)??;
            self.write_segment(&segment)?;
        }
        Ok(())
    }

    fn write_segment(&mut self, segment: &SegmentData) -> Result<()> {
        for run in segment.runs() {
            self.write_zeros(run.offset)?;
            for slice in &run.slices {
                self.write(slice)?;
            }
        }
        self.data_bytes += segment.data_bytes();
        Ok(())
    }

    fn finish(&mut self, virtual_bytes: u64) -> Result<u64> {
        self.write_zeros(virtual_bytes)?;
        self.out.flush().map_err(|error| failed(&error))?;
        Ok(self.data_bytes)
    }

    fn write_zeros(&mut self, until: u64) -> Result<()> {
        while self.at < until {
            let bytes = (until - self.at).min(ZEROS.len() as u64);
            self.write(&ZEROS[..bytes as usize])?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.progress.check()?;
        self.out.write_all(bytes).map_err(|error| failed(&error))?;
        self.at += bytes.len() as u64;
        self.progress.reach(self.at);
        Ok(())
    }
}

fn failed(error: &io::Error) -> Error {
    let text = match error.kind() {
        io::ErrorKind::BrokenPipe => "whoever read it has ended (broken pipe)".to_owned(),
        _ => error.to_string(),
    };
    Error::io("writing", "the output stream", io::Error::new(error.kind(), text))
}
