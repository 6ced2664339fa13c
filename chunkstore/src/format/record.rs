//! A record: a chunk, a manifest node or a snapshot's entry as it is stored.
//!
//! Layout (FORMAT.md, "Record"): a header of [`HEADER_BYTES`] and the payload. The header names the content, so a
//! pack whose table is lost can be scanned for its whole records.

use crate::format::codec::Codec;
use crate::format::id::RecordId;
use crate::format::limits::{PLAIN_BYTES_MAX, STORED_BYTES_MAX};

/// Length of a record's header.
pub const HEADER_BYTES: usize = 96;
/// First bytes of every record.
pub(crate) const MAGIC: [u8; 4] = *b"VMR1";

// Offsets in the header. All integers are little-endian.
const KIND: usize = 4;
const CODEC: usize = 5;
/// Optional features a reader may ignore.
const OPTIONAL_FLAGS: usize = 6;
/// Features a reader must know (encryption, some day); none is defined.
const REQUIRED_FLAGS: usize = 7;
const PLAIN_BYTES: usize = 8;
const STORED_BYTES: usize = 12;
const PAYLOAD_CRC: usize = 16;
const HEADER_CRC: usize = 20;
const ID: usize = 24;
const BASE: usize = 56;
const SKETCH: usize = 88;
/// Four reserved bytes follow: zero in format 1, ignored by its readers.
const RESERVED: usize = 92;
const _: () = assert!(RESERVED + 4 == HEADER_BYTES);

/// The kind of content of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A chunk of an image.
    Chunk = 1,
    /// A manifest node.
    Node = 2,
    /// A snapshot's catalog entry.
    Entry = 3,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Chunk, Self::Node, Self::Entry].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// The fields of a record's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What it holds.
    pub kind: Kind,
    /// How the payload is encoded.
    pub codec: Codec,
    /// The content's name.
    pub id: RecordId,
    /// Of a delta: the record it is encoded against.
    pub base: Option<RecordId>,
    /// Length of the content.
    pub plain_bytes: u32,
    /// Length of the payload.
    pub stored_bytes: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// Of a full chunk: a value that chunks of similar content likely share; 0 if unknown. Only a hint.
    pub sketch: u32,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..KIND].copy_from_slice(&MAGIC);
        bytes[KIND] = self.kind as u8;
        bytes[CODEC] = self.codec as u8;
        put_u32(&mut bytes, PLAIN_BYTES, self.plain_bytes);
        put_u32(&mut bytes, STORED_BYTES, self.stored_bytes);
        put_u32(&mut bytes, PAYLOAD_CRC, self.payload_crc);
        bytes[ID..BASE].copy_from_slice(self.id.as_bytes());
        if let Some(base) = self.base {
            bytes[BASE..SKETCH].copy_from_slice(base.as_bytes());
        }
        put_u32(&mut bytes, SKETCH, self.sketch);
        let crc = header_crc(&bytes);
        put_u32(&mut bytes, HEADER_CRC, crc);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let bytes: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or_else(|| format!("only {} bytes of a record's header", bytes.len()))?;
        if bytes[..KIND] != MAGIC {
            return Err("not a record: wrong magic".into());
        }
        if get_u32(bytes, HEADER_CRC) != header_crc(bytes) {
            return Err("the header's checksum does not match".into());
        }
        if bytes[REQUIRED_FLAGS] != 0 {
            return Err(Unreadable::Newer { required: bytes[REQUIRED_FLAGS] });
        }
        let _ = bytes[OPTIONAL_FLAGS];
        let codec = Codec::from_number(bytes[CODEC]).ok_or_else(|| format!("unknown codec {}", bytes[CODEC]))?;
        let header = Self {
            kind: Kind::from_number(bytes[KIND]).ok_or_else(|| format!("unknown kind {}", bytes[KIND]))?,
            codec,
            id: get_id(bytes, ID),
            base: (codec == Codec::Delta).then(|| get_id(bytes, BASE)),
            plain_bytes: get_u32(bytes, PLAIN_BYTES),
            stored_bytes: get_u32(bytes, STORED_BYTES),
            payload_crc: get_u32(bytes, PAYLOAD_CRC),
            sketch: get_u32(bytes, SKETCH),
        };
        check_lengths(header.plain_bytes, header.stored_bytes)?;
        Ok(header)
    }

    /// Bytes that the record takes in a pack, the table's entry not counted.
    pub fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.stored_bytes)
    }

    /// Whether the payload matches the header's checksum.
    pub fn payload_matches(&self, payload: &[u8]) -> bool {
        payload.len() == self.stored_bytes as usize && crc32c::crc32c(payload) == self.payload_crc
    }
}

/// Why a header can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is whole, but a newer program wrote it.
    #[error("made by a newer vmstore: required features {required:#x}")]
    Newer {
        /// Required features that this program does not know.
        required: u8,
    },
    /// It is no header.
    #[error("{0}")]
    Damaged(String),
}

impl From<String> for Unreadable {
    fn from(detail: String) -> Self {
        Self::Damaged(detail)
    }
}

impl From<&str> for Unreadable {
    fn from(detail: &str) -> Self {
        Self::Damaged(detail.to_owned())
    }
}

impl From<Unreadable> for String {
    fn from(unreadable: Unreadable) -> Self {
        unreadable.to_string()
    }
}

/// A record ready to be written.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Record {
    /// Puts a header before an encoded payload.
    pub fn new(
        kind: Kind,
        id: RecordId,
        plain_bytes: usize,
        codec: Codec,
        payload: Vec<u8>,
        base: Option<RecordId>,
    ) -> Self {
        assert!(plain_bytes <= PLAIN_BYTES_MAX && payload.len() <= STORED_BYTES_MAX, "records are bounded by callers");
        let header = Header {
            kind,
            codec,
            id,
            base: base.filter(|_| codec == Codec::Delta),
            plain_bytes: plain_bytes as u32,
            stored_bytes: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload),
            sketch: 0,
        };
        Self { header, payload }
    }

    /// The record with a sketch.
    #[must_use]
    pub fn with_sketch(mut self, sketch: u32) -> Self {
        self.header.sketch = sketch;
        self
    }

    /// Bytes it takes in a pack, the table's entry not counted.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Appends the record's bytes.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.header.encode());
        bytes.extend_from_slice(&self.payload);
    }
}

/// Checks a record's two lengths against the limits.
pub fn check_lengths(plain_bytes: u32, stored_bytes: u32) -> Result<(), String> {
    if plain_bytes as usize > PLAIN_BYTES_MAX || stored_bytes as usize > STORED_BYTES_MAX {
        return Err(format!("lengths {plain_bytes} plain, {stored_bytes} stored are over the limits"));
    }
    Ok(())
}

fn header_crc(bytes: &[u8; HEADER_BYTES]) -> u32 {
    let before = crc32c::crc32c(&bytes[..HEADER_CRC]);
    crc32c::crc32c_append(before, &bytes[ID..])
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

pub(crate) fn get_id(bytes: &[u8], at: usize) -> RecordId {
    RecordId::from_bytes(bytes[at..at + 32].try_into().expect("32 bytes were sliced"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::ChunkId;

    fn sample() -> Record {
        let id = ChunkId::of(b"plain").into();
        Record::new(Kind::Chunk, id, 5, Codec::Raw, b"plain".to_vec(), None)
    }

    #[test]
    fn round_trip() {
        let base = Some(ChunkId::of(b"base").into());
        let delta = Record::new(Kind::Node, ChunkId::of(b"x").into(), 9, Codec::Delta, vec![1, 2], base);
        for record in [sample(), delta] {
            assert_eq!(Header::decode(&record.header.encode()).unwrap(), record.header);
            assert!(record.header.payload_matches(&record.payload));
        }
    }

    #[test]
    fn every_flipped_bit_and_truncation_is_noticed() {
        let bytes = sample().header.encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..HEADER_BYTES {
            assert!(Header::decode(&bytes[..len]).is_err());
        }
    }
}
