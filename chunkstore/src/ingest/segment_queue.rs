//! The queue of an ingest's segments, in order. It skips holes, or unchanged segments if the changed ranges of a disk
//! are known.

use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::changes::{ChangeCursor, Changed};
use super::data_ranges::{DataRanges, bytes_of};
use crate::error::{Error, Result};
use crate::format::limits::{IMAGE_BYTES_MAX, SEGMENT_BYTES};
use crate::progress::Progress;
use crate::source::{ChangedRanges, DiskSource, Source};

/// A source cut into segments.
pub(super) struct SegmentQueue<'a> {
    source: Input<'a>,
    progress: &'a Progress,
    stopped: AtomicBool,
}

enum Input<'a> {
    Disk { disk: Box<dyn DiskSource + 'a>, cursor: Mutex<Cursor> },
    Changes { disk: &'a dyn DiskSource, cursor: Mutex<ChangeCursor<'a>> },
    Stream { name: String, state: Mutex<StreamState> },
}

/// Segments taken from the queue.
#[derive(Debug)]
pub(super) struct Ticket {
    /// Number of the ticket.
    pub(super) order: u64,
    /// Their numbers in the image: one, or several if they are all zeros.
    pub(super) segments: Range<u64>,
    /// Their content.
    pub(super) content: Content,
}

/// The content of segments taken from the queue.
#[derive(Debug)]
pub(super) enum Content {
    /// The buffer has all bytes of the one segment.
    Whole,
    /// They are holes, where the parent may have data.
    Zeros,
    /// The one segment differs from the parent's within these ranges only. Nothing has been read.
    Changed(Vec<Range<usize>>),
}

#[derive(Default)]
struct Cursor {
    order: u64,
    next_segment: u64,
    data: DataRanges,
}

struct StreamState {
    reader: Box<dyn Read + Send>,
    segment: u64,
    bytes: u64,
    ended: bool,
}

impl<'a> SegmentQueue<'a> {
    pub(super) fn new(source: Source, progress: &'a Progress) -> Self {
        match source {
            Source::Disk(disk) => Self::of_disk(disk, progress),
            Source::Stream { name, reader } => {
                progress.set_total(0);
                let state = Mutex::new(StreamState { reader, segment: 0, bytes: 0, ended: false });
                Self::of(Input::Stream { name, state }, progress)
            }
        }
    }

    pub(super) fn of_disk(disk: Box<dyn DiskSource + 'a>, progress: &'a Progress) -> Self {
        progress.set_total(disk.size_bytes());
        Self::of(Input::Disk { disk, cursor: Mutex::default() }, progress)
    }

    /// A queue of the segments of a disk that may differ from a parent of `parent_bytes`.
    pub(super) fn of_changes(
        disk: &'a dyn DiskSource,
        changed: &'a dyn ChangedRanges,
        parent_bytes: u64,
        progress: &'a Progress,
    ) -> Self {
        progress.set_total(disk.size_bytes());
        let cursor = Mutex::new(ChangeCursor::new(disk, changed, parent_bytes));
        Self::of(Input::Changes { disk, cursor }, progress)
    }

    fn of(source: Input<'a>, progress: &'a Progress) -> Self {
        Self { source, progress, stopped: AtomicBool::new(false) }
    }

    /// Makes every further call fail, after an error elsewhere.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Takes the next segment that may hold data, and reads it if it must be read whole; `None` at the end.
    pub(super) fn next(&self, buffer: &mut Vec<u8>) -> Result<Option<Ticket>> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match &self.source {
            Input::Disk { disk, cursor } => self.next_of_disk(&**disk, cursor, buffer),
            Input::Changes { disk, cursor } => self.next_of_changes(*disk, cursor, buffer),
            Input::Stream { name, state } => self.next_of_stream(name, state, buffer),
        }
    }

    fn next_of_disk(
        &self,
        disk: &dyn DiskSource,
        cursor: &Mutex<Cursor>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Ticket>> {
        let (order, segment, data) = {
            let mut cursor = cursor.lock();
            let Some((segment, data)) = cursor.take_segment(disk)? else {
                self.progress.reach(disk.size_bytes());
                return Ok(None);
            };
            (cursor.order - 1, segment, data)
        };
        let own = bytes_of(disk, segment);
        read_data(disk, &own, data, buffer)?;
        self.progress.reach(own.end);
        Ok(Some(Ticket { order, segments: segment..segment + 1, content: Content::Whole }))
    }

    fn next_of_changes(
        &self,
        disk: &dyn DiskSource,
        cursor: &Mutex<ChangeCursor<'_>>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Ticket>> {
        let Some((order, segments, changed)) = cursor.lock().take()? else {
            self.progress.reach(disk.size_bytes());
            return Ok(None);
        };
        let content = match changed {
            Changed::Ranges(ranges) => Content::Changed(ranges),
            Changed::ToZeros => Content::Zeros,
            Changed::Whole(data) => {
                read_data(disk, &bytes_of(disk, segments.start), data, buffer)?;
                Content::Whole
            }
        };
        self.progress.reach(disk.size_bytes().min(segments.end * SEGMENT_BYTES as u64));
        Ok(Some(Ticket { order, segments, content }))
    }

    fn next_of_stream(&self, name: &str, state: &Mutex<StreamState>, buffer: &mut Vec<u8>) -> Result<Option<Ticket>> {
        let mut state = state.lock();
        if state.ended {
            return Ok(None);
        }
        buffer.clear();
        let read = (&mut state.reader).take(SEGMENT_BYTES as u64).read_to_end(buffer);
        read.map_err(|error| Error::io("reading", name, error))?;
        state.bytes += buffer.len() as u64;
        state.ended = buffer.len() < SEGMENT_BYTES;
        if state.bytes > IMAGE_BYTES_MAX {
            return Err(Error::refused(format!("{name} is longer than any image may be")));
        }
        if buffer.is_empty() {
            return Ok(None);
        }
        self.progress.reach(state.bytes);
        state.segment += 1;
        let segment = state.segment - 1;
        Ok(Some(Ticket { order: segment, segments: segment..segment + 1, content: Content::Whole }))
    }

    /// The image's size, after all segments were taken. Fails if a disk changed its size meanwhile.
    pub(super) fn finish(&self) -> Result<u64> {
        match &self.source {
            Input::Disk { disk, .. } => disk.finish().map(|()| disk.size_bytes()),
            Input::Changes { disk, .. } => disk.finish().map(|()| disk.size_bytes()),
            Input::Stream { state, .. } => Ok(state.lock().bytes),
        }
    }
}

/// Reads bytes of which only these ranges hold data.
fn read_data(disk: &dyn DiskSource, own: &Range<u64>, data: Vec<Range<u64>>, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize((own.end - own.start) as usize, 0);
    let mut filled = 0;
    for range in data {
        let (from, to) = ((range.start - own.start) as usize, (range.end - own.start) as usize);
        buffer[filled..from].fill(0);
        disk.read_exact_at(&mut buffer[from..to], range.start)?;
        filled = to;
    }
    buffer[filled..].fill(0);
    Ok(())
}

impl Cursor {
    /// Moves past the next segment that has data and returns it with the ranges of data in it, in order.
    fn take_segment(&mut self, disk: &dyn DiskSource) -> Result<Option<(u64, Vec<Range<u64>>)>> {
        let from = self.next_segment * SEGMENT_BYTES as u64;
        let Some(first) = self.data.from(disk, from)? else { return Ok(None) };
        let segment = first.start.max(from) / SEGMENT_BYTES as u64;
        let data = self.data.within(disk, bytes_of(disk, segment))?;
        self.order += 1;
        self.next_segment = segment + 1;
        Ok(Some((segment, data)))
    }
}
