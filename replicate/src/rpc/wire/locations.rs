//! Locations of records on the wire, 24 bytes each, all zero for none; and extents for new records.

use chunkstore::format::{Codec, Kind, PackId, check_lengths};
use chunkstore::pack::{Class, Extent, RecordLocation};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::IDS_MAX;
use super::packed::chunked;

/// Bytes of a location.
pub const LOCATION_BYTES: usize = 24;
// Offsets. All numbers are little-endian; two bytes are reserved.
const NUMBER: usize = 0;
const TAG: usize = 4;
const OFFSET: usize = 8;
const STORED_BYTES: usize = 12;
const PLAIN_BYTES: usize = 16;
const KIND: usize = 20;
const CODEC: usize = 21;

/// Where a record lies. A hint: the reader checks the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The name of the pack.
    pub pack: PackId,
    /// The location in it; the ordinal is not sent.
    pub location: RecordLocation,
}

/// An extent in a pack that the owner is writing ([`Extent`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedExtent {
    number: u32,
    tag: u32,
    class: u8,
    offset: u32,
    bytes: u32,
}

impl From<Extent> for ReservedExtent {
    fn from(room: Extent) -> Self {
        let Extent { pack: PackId { number, tag }, class, offset, bytes } = room;
        Self { number, tag, class: class as u8, offset, bytes }
    }
}

impl ReservedExtent {
    /// The extent.
    ///
    /// # Errors
    /// If its class is unknown.
    pub fn extent(self) -> Result<Extent, String> {
        let Self { number, tag, class, offset, bytes } = self;
        Ok(Extent { pack: PackId { number, tag }, class: class_of(class)?, offset, bytes })
    }
}

/// The class of packs with this number.
///
/// # Errors
/// If there is none.
pub(crate) fn class_of(number: u8) -> Result<Class, String> {
    Class::from_number(number).ok_or_else(|| format!("unknown class {number} of packs"))
}

/// Locations, in the order of the ids that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locations(pub Vec<Option<Located>>);

impl Located {
    fn encode(&self) -> [u8; LOCATION_BYTES] {
        let mut bytes = [0; LOCATION_BYTES];
        let RecordLocation { offset, stored_bytes, plain_bytes, kind, codec, .. } = self.location;
        let words = [
            (NUMBER, self.pack.number),
            (TAG, self.pack.tag),
            (OFFSET, offset),
            (STORED_BYTES, stored_bytes),
            (PLAIN_BYTES, plain_bytes),
        ];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[KIND] = kind as u8;
        bytes[CODEC] = codec as u8;
        bytes
    }

    /// Decodes a location. Its lengths are checked against a record's limits.
    fn decode(bytes: &[u8; LOCATION_BYTES]) -> Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (stored_bytes, plain_bytes) = (word(STORED_BYTES), word(PLAIN_BYTES));
        check_lengths(plain_bytes, stored_bytes)?;
        let kind = Kind::from_number(bytes[KIND]).ok_or("a location of an unknown kind of record")?;
        let codec = Codec::from_number(bytes[CODEC]).ok_or("a location with an unknown codec")?;
        let pack = PackId { number: word(NUMBER), tag: word(TAG) };
        let offset = word(OFFSET);
        Ok(Self {
            pack,
            location: RecordLocation { pack: pack.number, ordinal: 0, offset, stored_bytes, plain_bytes, kind, codec },
        })
    }
}

impl Serialize for Locations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let encode = |located: &Option<Located>| located.map_or([0; LOCATION_BYTES], |located| located.encode());
        let bytes: Vec<u8> = self.0.iter().flat_map(encode).collect();
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Locations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let decode = |bytes: &[u8; LOCATION_BYTES]| {
            if *bytes == [0; LOCATION_BYTES] {
                Ok(None)
            } else {
                Located::decode(bytes).map(Some).map_err(D::Error::custom)
            }
        };
        let places: Vec<[u8; LOCATION_BYTES]> = chunked(deserializer, IDS_MAX)?;
        places.iter().map(decode).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::{ForStream, Reply};

    fn located() -> Located {
        let (stored_bytes, plain_bytes) = (700, 70_000);
        let (kind, codec) = (Kind::Chunk, Codec::Delta);
        let location = RecordLocation { pack: 3, ordinal: 0, offset: 4096, stored_bytes, plain_bytes, kind, codec };
        Located { pack: PackId { number: 3, tag: 0xdead_beef }, location }
    }

    #[test]
    fn places_survive_and_what_no_record_can_have_is_refused() {
        let places = Locations(vec![None, Some(located()), None]);
        let reply = Reply::Locations(places);
        let bytes = reply.to_bytes();
        assert_eq!(Reply::from_bytes(&bytes).as_ref(), Ok(&reply));
        let first = bytes.len() - 3 * LOCATION_BYTES;
        let second = first + LOCATION_BYTES;
        // Offsets, and a byte that no location has there: too many bytes, an unknown kind or codec, the start of a
        // location.
        for (at, byte) in [(second + STORED_BYTES + 3, 1), (second + PLAIN_BYTES + 3, 1), (second + KIND, 9)]
            .into_iter()
            .chain([(second + CODEC, 9), (first + NUMBER, 1)])
        {
            let mut hostile = bytes.clone();
            hostile[at] = byte;
            assert!(Reply::from_bytes(&hostile).is_err(), "{at}");
        }
        let too_many = Reply::Locations(Locations(vec![None; IDS_MAX + 1]));
        assert!(Reply::from_bytes(&too_many.to_bytes()).is_err());
    }
}
