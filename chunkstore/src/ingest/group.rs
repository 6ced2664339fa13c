//! Segments that are cut and not stored yet. Those of which little changed are stored together, in few requests.

use std::borrow::Cow;
use std::ops::Range;

use super::tree::NewNode;
use crate::chunker::Cut;
use crate::manifest::Leaf;

/// Most segments that are stored together.
const SEGMENTS_MAX: usize = 32;
/// Bytes of chunks that are enough to be stored.
const BYTES_ENOUGH: usize = 2 << 20;

/// A segment that is cut, or several that are zeros.
pub(super) struct CutSegment<'a> {
    pub(super) order: u64,
    pub(super) segments: Range<u64>,
    /// The parent's leaf in its place.
    pub(super) parent: Option<Leaf>,
    /// `None` if it is all zeros.
    pub(super) leaf: Option<NewNode>,
    /// Those that are not known to be in the store.
    pub(super) chunks: Vec<NewChunk<'a>>,
}

/// A chunk that may be new.
pub(super) struct NewChunk<'a> {
    pub(super) cut: Cut,
    pub(super) plain: Cow<'a, [u8]>,
}

impl<'a> NewChunk<'a> {
    /// A chunk of a segment.
    pub(super) fn new(cut: &Cut, segment: &'a [u8]) -> Self {
        Self { cut: cut.clone(), plain: Cow::Borrowed(&segment[cut.range.clone()]) }
    }
}

/// What a thread stores next.
#[derive(Default)]
pub(super) struct Group<'a> {
    pub(super) segments: Vec<CutSegment<'a>>,
    bytes: usize,
}

impl<'a> Group<'a> {
    pub(super) fn push(&mut self, segment: CutSegment<'a>) {
        self.bytes += segment.chunks.iter().map(|chunk| chunk.plain.len()).sum::<usize>();
        self.segments.push(segment);
    }

    pub(super) fn is_full(&self) -> bool {
        self.segments.len() >= SEGMENTS_MAX || self.bytes >= BYTES_ENOUGH
    }
}

impl CutSegment<'_> {
    /// With copies of the chunks, so that the segment's buffer is free for the next.
    pub(super) fn into_owned(self) -> CutSegment<'static> {
        let owned = |chunk: NewChunk<'_>| NewChunk { cut: chunk.cut, plain: Cow::Owned(chunk.plain.into_owned()) };
        let chunks = self.chunks.into_iter().map(owned).collect();
        CutSegment { order: self.order, segments: self.segments, parent: self.parent, leaf: self.leaf, chunks }
    }
}
