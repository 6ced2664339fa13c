//! Every limit of the formats, in one place.
//!
//! Decoders check lengths and counts against these before they allocate; encoders never exceed them.

/// Bytes of a segment: the unit of parallel work and of the manifest. Fixed for format 1.
pub const SEGMENT_BYTES: usize = 4 << 20;
/// Aligned block in which zero runs are counted.
pub const ZERO_BLOCK_BYTES: usize = 4096;
/// Largest chunk that any store may be configured for.
pub(crate) const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Smallest value a store may be configured for as its least chunk.
pub(crate) const CHUNK_BYTES_MIN: usize = 1 << 10;
/// Largest plain record: a chunk, a manifest node or a snapshot entry.
pub const PLAIN_BYTES_MAX: usize = CHUNK_BYTES_MAX;
/// A stored payload is never larger than its plain bytes (a record that does not shrink is kept raw).
pub const STORED_BYTES_MAX: usize = PLAIN_BYTES_MAX;
/// Children of an inner manifest node.
pub const FANOUT: usize = 256;
/// Greatest height of a manifest: 256^5 segments (2^62 bytes) are more than the largest image has, 256^4 (2^54) are
/// fewer.
pub(crate) const HEIGHT_MAX: u8 = 5;
/// Most entries of a leaf. Chunks of the least size and zero runs of one block, in turn, stay below.
pub(crate) const LEAF_ENTRIES_MAX: usize = 8192;
/// Largest image: 2^60 bytes (1 EiB).
pub const IMAGE_BYTES_MAX: u64 = 1 << 60;
/// A pack is sealed when it has grown to this.
pub(crate) const PACK_BYTES_TARGET: u64 = 64 << 20;
/// Largest pack that is opened. Offsets in a pack are 32 bits.
pub(crate) const PACK_BYTES_MAX: u64 = 1 << 31;
/// Greatest number of a pack. A file with a greater one in its name is ignored: after it no numbers might be left.
pub(crate) const PACK_NUMBER_MAX: u32 = 1 << 31;
/// Most records in a pack.
pub(crate) const PACK_RECORDS_MAX: u32 = 1 << 22;
/// Largest catalog file.
pub const CATALOG_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most labels of a snapshot.
pub(crate) const LABELS_MAX: usize = 64;
/// Longest label key or value.
pub(crate) const LABEL_BYTES_MAX: usize = 256;
/// Largest encoding of a snapshot's entry; the rest of its catalog file is for the state.
pub const ENTRY_BYTES_MAX: usize = 1 << 19;
/// Largest configuration file.
pub(crate) const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;
