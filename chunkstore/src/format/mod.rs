//! What bytes mean: ids, chunks and where they are cut, records and their encoding, the manifest, and every limit.
//!
//! Pure functions and values. Nothing here opens a file. May import nothing but `error`.

pub(crate) mod buffers;
pub mod chunk;
pub mod chunker;
pub mod codec;
pub mod id;
pub mod limits;
pub mod manifest;
pub mod record;
