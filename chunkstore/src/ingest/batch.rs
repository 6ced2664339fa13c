//! Batches of segments that are cut and not stored yet, so that a few requests serve many segments.

use std::borrow::Cow;
use std::ops::Range;

use crate::format::NodeId;
use crate::format::chunker::Cut;
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::{Leaf, Node};

/// Most segments that are stored together.
const SEGMENTS_MAX: usize = 64;
/// A batch is full beyond two segments' bytes of chunks, so none exceeds three segments.
const BYTES_ENOUGH: usize = 2 * SEGMENT_BYTES;
/// Up to this many bytes, a segment's new chunks are copied, which frees its buffer for the next segment.
const COPIED_BYTES_MAX: usize = 1 << 20;

/// A node, and the parent's node in its place.
pub(super) struct NewNode {
    pub(super) id: NodeId,
    pub(super) encoding: Vec<u8>,
    pub(super) parent: Option<NodeId>,
}

impl NewNode {
    pub(super) fn new(node: &Node, parent: Option<NodeId>) -> Self {
        let encoding = node.encode();
        Self { id: NodeId::of(&encoding), encoding, parent }
    }
}

/// A segment that is cut, or several that are zeros.
pub(super) struct CutSegment {
    pub(super) order: u64,
    pub(super) segments: Range<u64>,
    /// The parent's leaf in its place.
    pub(super) parent: Option<Leaf>,
    /// `None` if it is all zeros.
    pub(super) leaf: Option<NewNode>,
    /// The chunks that are not known to be in the store.
    pub(super) new: Vec<Cut>,
}

impl CutSegment {
    fn new_bytes(&self) -> usize {
        self.new.iter().map(|cut| cut.range.len()).sum()
    }

    /// Whether its new chunks are too large to be copied.
    pub(super) fn is_large(&self) -> bool {
        self.new_bytes() > COPIED_BYTES_MAX
    }
}

/// A chunk that may be new.
pub(super) struct NewChunk<'a> {
    pub(super) cut: Cut,
    pub(super) plain: Cow<'a, [u8]>,
}

/// The segments that a thread stores next, each with the bytes of its new chunks.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub(super) segments: Vec<(CutSegment, Vec<NewChunk<'a>>)>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    /// Adds a segment that borrows its bytes.
    pub(super) fn push(&mut self, segment: CutSegment, bytes: &'a [u8]) {
        self.push_with(segment, |cut| Cow::Borrowed(&bytes[cut.range.clone()]));
    }

    /// Adds a segment with copies of its chunks.
    pub(super) fn push_copied(&mut self, segment: CutSegment, bytes: &[u8]) {
        self.push_with(segment, |cut| Cow::Owned(bytes[cut.range.clone()].to_vec()));
    }

    fn push_with(&mut self, mut segment: CutSegment, plain: impl Fn(&Cut) -> Cow<'a, [u8]>) {
        self.bytes += segment.new_bytes();
        let new = std::mem::take(&mut segment.new).into_iter();
        let chunks = new.map(|cut| NewChunk { plain: plain(&cut), cut }).collect();
        self.segments.push((segment, chunks));
    }

    pub(super) fn is_full(&self) -> bool {
        self.segments.len() >= SEGMENTS_MAX || self.bytes > BYTES_ENOUGH
    }
}
