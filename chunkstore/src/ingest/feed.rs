//! Gives segments to the threads of an ingest, in order, skipping those that are holes.

use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::limits::{IMAGE_BYTES_MAX, SEGMENT_BYTES};
use crate::progress::Progress;
use crate::source::{DiskSource, Source};

/// A source cut into segments.
pub(super) struct Feed<'a> {
    source: Input,
    progress: &'a Progress,
    stopped: AtomicBool,
}

enum Input {
    Disk { disk: Box<dyn DiskSource>, cursor: Mutex<Cursor> },
    Stream { name: String, state: Mutex<StreamState> },
}

/// A segment given out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    /// Counts the segments given out.
    pub(super) order: u64,
    /// The segment's number in the image.
    pub(super) segment: u64,
}

#[derive(Default)]
struct Cursor {
    order: u64,
    next_segment: u64,
    /// The range of data that was found last; what lies before it and after `next_segment` is a hole.
    data: Option<Range<u64>>,
}

struct StreamState {
    reader: Box<dyn Read + Send>,
    segment: u64,
    bytes: u64,
    ended: bool,
}

impl<'a> Feed<'a> {
    pub(super) fn new(source: Source, progress: &'a Progress) -> Self {
        let source = match source {
            Source::Disk(disk) => {
                progress.set_total(disk.size_bytes());
                Input::Disk { disk, cursor: Mutex::default() }
            }
            Source::Stream { name, reader } => {
                progress.set_total(0);
                Input::Stream { name, state: Mutex::new(StreamState { reader, segment: 0, bytes: 0, ended: false }) }
            }
        };
        Self { source, progress, stopped: AtomicBool::new(false) }
    }

    /// Makes every further call fail, after an error elsewhere.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Reads the next segment that may hold data; `None` at the end.
    pub(super) fn next(&self, buffer: &mut Vec<u8>) -> Result<Option<Ticket>> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match &self.source {
            Input::Disk { disk, cursor } => self.next_of_disk(&**disk, cursor, buffer),
            Input::Stream { name, state } => self.next_of_stream(name, state, buffer),
        }
    }

    fn next_of_disk(
        &self,
        disk: &dyn DiskSource,
        cursor: &Mutex<Cursor>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Ticket>> {
        let (ticket, ranges) = {
            let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(ranges) = cursor.take_segment(disk)? else {
                self.progress.reach(disk.size_bytes());
                return Ok(None);
            };
            (Ticket { order: cursor.order - 1, segment: cursor.next_segment - 1 }, ranges)
        };
        let start = ticket.segment * SEGMENT_BYTES as u64;
        let len = (disk.size_bytes() - start).min(SEGMENT_BYTES as u64) as usize;
        buffer.resize(len, 0);
        let mut filled = 0;
        for range in ranges {
            let (from, to) = ((range.start - start) as usize, (range.end - start) as usize);
            buffer[filled..from].fill(0);
            disk.read_exact_at(&mut buffer[from..to], range.start)?;
            filled = to;
        }
        buffer[filled..].fill(0);
        self.progress.reach(start + len as u64);
        Ok(Some(ticket))
    }

    fn next_of_stream(&self, name: &str, state: &Mutex<StreamState>, buffer: &mut Vec<u8>) -> Result<Option<Ticket>> {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
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
        Ok(Some(Ticket { order: state.segment - 1, segment: state.segment - 1 }))
    }

    /// The image's size, once all was read; fails if a disk changed its size meanwhile.
    pub(super) fn finish(&self) -> Result<u64> {
        match &self.source {
            Input::Disk { disk, .. } => disk.finish().map(|()| disk.size_bytes()),
            Input::Stream { state, .. } => Ok(state.lock().unwrap_or_else(PoisonError::into_inner).bytes),
        }
    }
}

impl Cursor {
    /// Moves past the next segment that has data and returns the ranges of data in it, in order.
    fn take_segment(&mut self, disk: &dyn DiskSource) -> Result<Option<Vec<Range<u64>>>> {
        let from = self.next_segment * SEGMENT_BYTES as u64;
        let Some(first) = self.data_from(disk, from)? else { return Ok(None) };
        let segment = first.start.max(from) / SEGMENT_BYTES as u64;
        let end = (segment + 1) * SEGMENT_BYTES as u64;
        let mut ranges = Vec::new();
        let mut next = Some(first);
        while let Some(range) = next.filter(|range| range.start < end) {
            let part = range.start.max(from)..range.end.min(end);
            let part_end = part.end;
            ranges.push(part);
            if range.end >= end {
                break;
            }
            next = self.data_from(disk, part_end)?;
        }
        self.order += 1;
        self.next_segment = segment + 1;
        Ok(Some(ranges))
    }

    /// The first range of data that ends after `offset`.
    fn data_from(&mut self, disk: &dyn DiskSource, offset: u64) -> Result<Option<Range<u64>>> {
        if self.data.as_ref().is_none_or(|data| data.end <= offset) {
            self.data = if offset < disk.size_bytes() { disk.next_data(offset)? } else { None };
        }
        Ok(self.data.clone())
    }
}
