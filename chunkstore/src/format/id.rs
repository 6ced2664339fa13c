//! Ids of chunks, manifest nodes, snapshots' entries and packs.
//!
//! Content ids are BLAKE3-256. Chunks use plain BLAKE3; nodes and entries use its key-derivation mode with a
//! context string each (BLAKE3 specification, section 2.3), so that no bytes have the same id as two kinds.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

const NODE_CONTEXT: &str = "vmstore 2026-11 manifest node 1";
const ENTRY_CONTEXT: &str = "vmstore 2026-11 snapshot entry 1";

macro_rules! content_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The id whose bytes these are; says nothing about any content.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The id's 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:02x}{:02x}{:02x}{:02x}…)"), self.0[0], self.0[1], self.0[2], self.0[3])
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(hex: &str) -> Result<Self, Error> {
                decode_hex(hex).map(Self).ok_or_else(|| Error::invalid(format!(concat!("not a ", $what, " id: {:?}"), hex)))
            }
        }
    };
}

content_id!(
    /// Names a chunk: BLAKE3-256 of its plain bytes.
    ChunkId,
    "chunk"
);
content_id!(
    /// Names a manifest node: BLAKE3-256 of its encoding, in key-derivation mode.
    NodeId,
    "node"
);
content_id!(
    /// Names a snapshot's entry: BLAKE3-256 of its encoding, in key-derivation mode.
    EntryId,
    "entry"
);
content_id!(
    /// Names any record: the bytes of a [`ChunkId`], a [`NodeId`] or an [`EntryId`].
    RecordId,
    "record"
);

impl ChunkId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl NodeId {
    /// The id of a node with this encoding.
    pub fn of(encoding: &[u8]) -> Self {
        Self(blake3::derive_key(NODE_CONTEXT, encoding))
    }
}

impl EntryId {
    /// The id of a snapshot's entry with this encoding.
    pub fn of(encoding: &[u8]) -> Self {
        Self(blake3::derive_key(ENTRY_CONTEXT, encoding))
    }
}

impl From<ChunkId> for RecordId {
    fn from(id: ChunkId) -> Self {
        Self(id.0)
    }
}

impl From<NodeId> for RecordId {
    fn from(id: NodeId) -> Self {
        Self(id.0)
    }
}

impl From<EntryId> for RecordId {
    fn from(id: EntryId) -> Self {
        Self(id.0)
    }
}

/// The number of a pack. Numbers grow and are used once; `tag` reveals a number's reuse after a loss.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PackId {
    /// Position in the order of creation.
    pub number: u32,
    /// Random; recorded in the file's name, its header and the index.
    pub tag: u32,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.number, self.tag)
    }
}

impl FromStr for PackId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let parse = || {
            let (number, tag) = name.split_once('-')?;
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let hex = |s: &str| {
                // `from_str_radix` would take a sign.
                (s.len() == 8 && s.bytes().all(is_digit)).then(|| u32::from_str_radix(s, 16).ok()).flatten()
            };
            Some(Self { number: hex(number)?, tag: hex(tag)? })
        };
        parse().ok_or_else(|| Error::invalid(format!("not a pack's name: {name:?}")))
    }
}

fn decode_hex(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_ids() {
        assert_eq!(ChunkId::of(b"").to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_ne!(NodeId::of(b"x").as_bytes(), ChunkId::of(b"x").as_bytes());
        assert_ne!(EntryId::of(b"x").as_bytes(), NodeId::of(b"x").as_bytes());
    }

    #[test]
    fn text_round_trip() {
        let id = ChunkId::of(b"abc");
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<ChunkId>().is_err());
        }
        let pack = PackId { number: 12, tag: 0xdead_beef };
        assert_eq!(pack.to_string(), "0000000c-deadbeef");
        assert_eq!(pack.to_string().parse::<PackId>().unwrap(), pack);
        for bad in ["", "1-2", "0000000c", "0000000c-deadbeeg", "+000000c-deadbeef"] {
            assert!(bad.parse::<PackId>().is_err(), "{bad}");
        }
    }
}
