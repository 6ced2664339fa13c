//! Lists that are encoded as one byte string: ids, prefixes of ids, bits.

use chunkstore::format::RecordId;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ENTRY_PREFIX_BYTES, IDS_MAX};

/// Ids of records, 32 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids(pub Vec<RecordId>);

/// The first bytes of entries' ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes(pub Vec<[u8; ENTRY_PREFIX_BYTES]>);

/// Bits, the first one in the least significant bit of the first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(Vec<u8>);

impl FromIterator<bool> for Bits {
    fn from_iter<I: IntoIterator<Item = bool>>(bits: I) -> Self {
        let mut bytes = Vec::new();
        for (at, bit) in bits.into_iter().enumerate() {
            if at % 8 == 0 {
                bytes.push(0);
            }
            bytes[at / 8] |= u8::from(bit) << (at % 8);
        }
        Self(bytes)
    }
}

impl Bits {
    /// Whether the bit is set; bits that were not sent are not.
    pub fn has(&self, at: usize) -> bool {
        self.0.get(at / 8).is_some_and(|byte| byte & 1 << (at % 8) != 0)
    }
}

/// A list of byte strings of one length, as one byte string.
pub(super) fn chunked<'de, D, const N: usize>(deserializer: D, most: usize) -> Result<Vec<[u8; N]>, D::Error>
where
    D: Deserializer<'de>,
{
    let bytes = as_bytes::deserialize(deserializer)?;
    let (items, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() || items.len() > most {
        return Err(D::Error::custom("a list of ids has an impossible length"));
    }
    Ok(items.to_vec())
}

impl Serialize for Ids {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|id| *id.as_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ids = chunked::<D, 32>(deserializer, IDS_MAX)?;
        Ok(Self(ids.into_iter().map(RecordId::from_bytes).collect()))
    }
}

impl Serialize for Prefixes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_flattened())
    }
}

impl<'de> Deserialize<'de> for Prefixes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        chunked(deserializer, usize::MAX).map(Self)
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        as_bytes::deserialize(deserializer).map(Self)
    }
}

/// Bytes as one byte string; without this, serde takes them one by one.
pub(super) mod as_bytes {
    use std::fmt;

    use serde::de::Visitor;
    use serde::{Deserializer, Serializer};

    #[expect(clippy::ptr_arg, reason = "serde's signature")]
    pub(in crate::rpc::wire) fn serialize<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(in crate::rpc::wire) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive() {
        let bits: Vec<bool> = (0..19).map(|n| n % 3 == 0).collect();
        let packed: Bits = bits.iter().copied().collect();
        assert!((0..19).all(|at| packed.has(at) == bits[at]) && !packed.has(500));
    }
}
