//! A frame: a header of twelve bytes and a payload of bounded length.

use bytes::Bytes;
use chunkstore::format::HEADER_BYTES;
use chunkstore::format::limits::{PLAIN_BYTES_MAX, STORED_BYTES_MAX};
use chunkstore::pack::EXTENT_RECORDS_MAX;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 12;
/// Longest payload: the largest record fits, and so do many small ones.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX > STORED_BYTES_MAX + 4096 && FRAME_PAYLOAD_BYTES_MAX > PLAIN_BYTES_MAX);
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX > EXTENT_RECORDS_MAX * HEADER_BYTES + 4096);

/// The kind of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A [`super::Request`].
    Request = 1,
    /// The last frame of an answer: a [`super::Reply`].
    Reply = 2,
    /// Records: a request to put them, or part of an answer.
    Records = 3,
    /// The last frame of a failed request's answer: a [`super::WireError`].
    Error = 4,
    /// Progress of a long request: two numbers, done and total.
    Progress = 5,
    /// Part of an answer: a [`super::Reply`] that more frames follow.
    Part = 6,
    /// Nothing: a keep-alive.
    Ping = 7,
    /// Full records that deltas in the same answer are encoded against.
    Bases = 8,
}

impl Kind {
    const ALL: [Self; 8] =
        [Self::Request, Self::Reply, Self::Records, Self::Error, Self::Progress, Self::Part, Self::Ping, Self::Bases];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// The header on the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    payload_bytes: U32,
    kind: u8,
    /// No flag is defined; a frame with one is refused.
    flags: u8,
    reserved: U16,
    request: U32,
}

const _: () = assert!(size_of::<RawHeader>() == FRAME_HEADER_BYTES);

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The kind of the payload.
    pub kind: Kind,
    /// The number of its request; chosen by the client, 0 for none.
    pub request: u32,
    /// The payload.
    pub payload: Bytes,
}

impl Frame {
    /// A frame.
    pub fn new(kind: Kind, request: u32, payload: impl Into<Bytes>) -> Self {
        Self { kind, request, payload: payload.into() }
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> u64 {
        (FRAME_HEADER_BYTES + self.payload.len()) as u64
    }

    /// The header's bytes.
    pub(super) fn header(&self) -> [u8; FRAME_HEADER_BYTES] {
        assert!(self.payload.len() <= FRAME_PAYLOAD_BYTES_MAX, "payloads are bounded by whoever makes them");
        let header = RawHeader {
            payload_bytes: U32::new(self.payload.len() as u32),
            kind: self.kind as u8,
            flags: 0,
            reserved: U16::new(0),
            request: U32::new(self.request),
        };
        zerocopy::transmute!(header)
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) request: u32,
    pub(super) payload_bytes: usize,
}

impl Head {
    /// Reads a header.
    ///
    /// # Errors
    /// A description of the problem.
    pub(super) fn decode(bytes: [u8; FRAME_HEADER_BYTES]) -> Result<Self, String> {
        let raw: RawHeader = zerocopy::transmute!(bytes);
        let payload_bytes = raw.payload_bytes.get() as usize;
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
            return Err(format!("a frame of {payload_bytes} bytes is over the limit"));
        }
        if raw.flags != 0 || raw.reserved.get() != 0 {
            return Err("a frame has flags that this version does not know".into());
        }
        let kind = Kind::from_number(raw.kind).ok_or_else(|| format!("a frame of unknown kind {}", raw.kind))?;
        Ok(Self { kind, request: raw.request.get(), payload_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_lies_are_refused() {
        for kind in Kind::ALL {
            let frame = Frame::new(kind, 0xdead_beef, vec![7; 300]);
            let head = Head::decode(frame.header()).unwrap();
            assert_eq!(head, Head { kind, request: 0xdead_beef, payload_bytes: 300 });
        }
        let good = Frame::new(Kind::Ping, 1, Vec::new()).header();
        for (at, value) in [(2, 0x21), (3, 1), (4, 0), (4, 9), (4, 255), (5, 1), (6, 1), (7, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Head::decode(bad).is_err(), "byte {at} = {value}");
        }
    }

    #[test]
    fn the_documented_example() {
        // PROTOCOL.md, "Frame".
        let frame = Frame::new(Kind::Request, 5, vec![0xaa, 0xbb]);
        assert_eq!(frame.header(), [2, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
    }
}
