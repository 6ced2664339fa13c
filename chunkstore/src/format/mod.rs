//! Data formats: ids, chunks and chunking, records and their encoding, the manifest, and every limit.
//!
//! Pure functions and values. Nothing here opens a file. May import nothing but `error`.

pub(crate) mod buffers;
mod chunk;
pub(crate) mod chunker;
pub(crate) mod codec;
mod id;
pub mod limits;
pub mod manifest;
pub(crate) mod record;
mod record_codec;

pub use chunk::Chunk;
pub use chunker::ChunkParams;
pub use codec::Codec;
pub use id::{ChunkId, EntryId, NodeId, PackId, RecordId};
pub use record::{HEADER_BYTES, Header, Kind, Record, check_lengths};
pub use record_codec::RecordCodec;
