//! The bytes between two programs: a handshake, then frames in both directions. PROTOCOL.md describes every byte.
//!
//! Nothing here touches a store or decides what is allowed. All input is hostile: a length is checked against its limit
//! before anything is allocated, and bytes left over after a message are an error.

mod failure;
mod frame;
mod io;
mod locations;
mod message;
mod packed;
mod records;

pub use failure::{WireError, shown};
pub use frame::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, Frame, Kind};
pub use io::{FrameReader, FrameWriter, Meter, read_preamble, write_preamble};
pub(crate) use locations::class_of;
pub use locations::{LOCATION_BYTES, Located, Locations, ReservedExtent};
pub use message::{
    Fetch, ForStream, Hello, Job, Names, Purpose, Reply, Request, Resemblance, SessionId, SessionSecret, Welcome,
    claims_from_bytes, claims_to_bytes,
};
pub use packed::{Bits, Ids, Prefixes};
pub(crate) use records::split_session;
pub use records::{RecordBatch, headers_from_bytes, headers_to_bytes, records_of};

/// The newest version of the protocol that this program speaks, and the oldest.
pub const VERSION: std::ops::RangeInclusive<u16> = 1..=2;
/// The first version with [`Request::Family`] and [`Job::Metrics`].
pub(crate) const FAMILY_VERSION: u16 = 2;
/// Longest body of a [`Request::Family`].
pub const FAMILY_BODY_BYTES_MAX: usize = 1 << 20;
/// Most ids in one request.
pub const IDS_MAX: usize = 8192;
/// Bytes of an entry's id that identify a snapshot when two sites compare theirs.
pub const ENTRY_PREFIX_BYTES: usize = 12;
