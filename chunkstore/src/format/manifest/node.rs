//! One node: encoding, decoding, and the rules that make the encoding canonical.

use crate::error::{Error, Result};
use crate::format::id::{ChunkId, NodeId};
use crate::format::limits::{CHUNK_BYTES_MAX, FANOUT, HEIGHT_MAX, LEAF_ENTRIES_MAX, SEGMENT_BYTES, ZERO_BLOCK_BYTES};

const TAG_LEAF: u8 = 1;
const TAG_INNER: u8 = 2;
const ZERO_RUN_BIT: u32 = 1 << 31;
const INNER_HEADER_BYTES: usize = 2 + FANOUT / 8;

/// A verified manifest node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// One segment's list.
    Leaf(Leaf),
    /// 256 slots.
    Inner(Inner),
}

/// One line of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A run of zeros, a multiple of 4 KiB long.
    Zero {
        /// Its length.
        bytes: u32,
    },
    /// A chunk.
    Chunk {
        /// Its name.
        id: ChunkId,
        /// Its plain length.
        bytes: u32,
    },
}

impl Entry {
    /// Length in the image.
    pub fn bytes(&self) -> u32 {
        match *self {
            Self::Zero { bytes } | Self::Chunk { bytes, .. } => bytes,
        }
    }
}

/// The chunks of one segment, in order, without gaps; zeros at its end are implicit.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leaf {
    entries: Vec<Entry>,
    /// Where each entry begins in the segment.
    starts: Vec<u32>,
}

impl Leaf {
    /// A leaf of these entries, which must be canonical: at least one chunk, no two zero runs in a row, none at the
    /// end, at most 8192 entries and 4 MiB in all.
    ///
    /// # Errors
    /// The rule that they break, in words.
    pub fn new(entries: Vec<Entry>) -> Result<Self, String> {
        if entries.len() > LEAF_ENTRIES_MAX {
            return Err(format!("{} entries are too many for a leaf", entries.len()));
        }
        let mut starts = Vec::with_capacity(entries.len());
        let mut end = 0;
        let mut after_zeros = false;
        for entry in &entries {
            let bytes = entry.bytes() as usize;
            let zeros = matches!(entry, Entry::Zero { .. });
            if bytes == 0 || (zeros && (after_zeros || !bytes.is_multiple_of(ZERO_BLOCK_BYTES))) {
                return Err("an entry has an impossible length".into());
            }
            if !zeros && bytes > CHUNK_BYTES_MAX {
                return Err(format!("a chunk of {bytes} bytes is over the limit"));
            }
            starts.push(end as u32);
            end += bytes;
            if end > SEGMENT_BYTES {
                return Err("the entries are longer than a segment".into());
            }
            after_zeros = zeros;
        }
        if entries.is_empty() || after_zeros {
            return Err("a leaf does not end with a chunk".into());
        }
        Ok(Self { entries, starts })
    }

    /// The entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Entries with the offsets in the segment where they begin.
    pub fn placed(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.starts.iter().map(|start| *start as usize).zip(&self.entries)
    }

    /// The chunks with their offsets in the segment.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, ChunkId, u32)> {
        self.placed().filter_map(|(at, entry)| match *entry {
            Entry::Chunk { id, bytes } => Some((at, id, bytes)),
            Entry::Zero { .. } => None,
        })
    }

    /// The entry that begins exactly at `offset`, with its position in the list.
    pub fn entry_at(&self, offset: usize) -> Option<(usize, &Entry)> {
        let index = self.starts.binary_search(&(offset as u32)).ok()?;
        Some((index, &self.entries[index]))
    }

    /// Bytes up to the end of the last chunk.
    pub fn bytes(&self) -> usize {
        self.entries.last().map_or(0, |last| (self.starts[self.entries.len() - 1] + last.bytes()) as usize)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TAG_LEAF, 0];
        bytes.extend_from_slice(&(self.entries.len() as u16).to_le_bytes());
        for entry in &self.entries {
            let word = match *entry {
                Entry::Zero { bytes } => bytes | ZERO_RUN_BIT,
                Entry::Chunk { bytes, .. } => bytes,
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for (_, id, _) in self.chunks() {
            bytes.extend_from_slice(id.as_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let count = bytes.get(2..4).map(|count| usize::from(u16::from_le_bytes([count[0], count[1]])));
        let count = count.filter(|_| bytes[1] == 0).ok_or("a leaf's head is wrong")?;
        let words = bytes.get(4..4 + count * 4).ok_or("a leaf is cut short")?;
        let mut ids = bytes[4 + count * 4..].chunks_exact(32);
        if !ids.remainder().is_empty() {
            return Err("a leaf's length is wrong".into());
        }
        let mut entries = Vec::with_capacity(count);
        for word in words.chunks_exact(4) {
            let word = u32::from_le_bytes(word.try_into().expect("chunks of four"));
            let bytes = word & !ZERO_RUN_BIT;
            entries.push(if word & ZERO_RUN_BIT == 0 {
                let id = ids.next().ok_or("a leaf lacks ids")?;
                Entry::Chunk { id: ChunkId::from_bytes(id.try_into().expect("chunks of 32")), bytes }
            } else {
                Entry::Zero { bytes }
            });
        }
        if ids.next().is_some() {
            return Err("a leaf has too many ids".into());
        }
        Self::new(entries)
    }
}

/// An inner node: up to 256 children, each one level lower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    height: u8,
    /// Slot numbers, ascending, with their children.
    children: Vec<(u8, NodeId)>,
}

impl Inner {
    /// An inner node of height 1 (over leaves) or more, with at least one child; slots ascending.
    ///
    /// # Errors
    /// The broken rule, in words.
    pub fn new(height: u8, children: Vec<(u8, NodeId)>) -> Result<Self, String> {
        if height == 0 || height > HEIGHT_MAX {
            return Err(format!("an inner node of height {height}"));
        }
        if children.is_empty() || !children.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("an inner node's slots are empty or out of order".into());
        }
        Ok(Self { height, children })
    }

    /// Levels above the leaves.
    pub fn height(&self) -> u8 {
        self.height
    }

    /// Children in the order of their slots.
    pub fn children(&self) -> &[(u8, NodeId)] {
        &self.children
    }

    /// The child in a slot; `None` if all below it is zero.
    pub fn child(&self, slot: u8) -> Option<NodeId> {
        let index = self.children.binary_search_by_key(&slot, |child| child.0).ok()?;
        Some(self.children[index].1)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; INNER_HEADER_BYTES];
        bytes[0] = TAG_INNER;
        bytes[1] = self.height;
        for (slot, id) in &self.children {
            bytes[2 + usize::from(slot / 8)] |= 1 << (slot % 8);
            bytes.extend_from_slice(id.as_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let bitmap = bytes.get(2..INNER_HEADER_BYTES).ok_or("an inner node is cut short")?;
        let slots = (0..=255u8).filter(|slot| bitmap[usize::from(slot / 8)] & 1 << (slot % 8) != 0);
        let ids = bytes[INNER_HEADER_BYTES..].chunks_exact(32);
        let count: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
        if !ids.remainder().is_empty() || ids.len() != count as usize {
            return Err("an inner node's length is wrong".into());
        }
        let ids = ids.map(|id| NodeId::from_bytes(id.try_into().expect("chunks of 32")));
        Self::new(bytes[1], slots.zip(ids).collect())
    }
}

impl Node {
    /// The node's encoding, which is the same for equal nodes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(leaf) => leaf.encode(),
            Self::Inner(inner) => inner.encode(),
        }
    }

    /// Levels above the leaves; 0 for a leaf.
    pub fn height(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner(inner) => inner.height,
        }
    }

    /// Reads the encoding of the node `id`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not, or is not canonical.
    pub fn verify(id: NodeId, bytes: &[u8]) -> Result<Self> {
        let damaged = |detail: String| Error::damaged(format!("manifest node {id}"), detail);
        if NodeId::of(bytes) != id {
            return Err(damaged("its bytes do not match its id".into()));
        }
        Self::decode(bytes).map_err(damaged)
    }

    /// Reads an encoding.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.first() {
            Some(&TAG_LEAF) => Leaf::decode(bytes).map(Self::Leaf),
            Some(&TAG_INNER) => Inner::decode(bytes).map(Self::Inner),
            Some(tag) => Err(format!("unknown node tag {tag}")),
            None => Err("an empty node".into()),
        }
    }
}
