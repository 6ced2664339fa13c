//! How the records of one store are encoded and decoded: at which level today, with which keys some day.
//!
//! A store makes its [`RecordCodec`] from its configuration; a client gets one with its connection. Everything that
//! turns content into a record or back goes through it, so it is the one place for encryption: a payload would be
//! encrypted in [`RecordCodec::encode`] after it is compressed, decrypted in [`RecordCodec::decode_into`] before it is
//! decompressed, and the header would name the key under the required flags (FORMAT.md, "Record"). Nothing of that
//! exists yet.
//!
//! Compression contexts belong to threads and not to codecs: a codec is a few bytes to clone, and no two records of one
//! thread cost two contexts.

use std::cell::RefCell;

use crate::format::codec::{Codec, Decoder, Encoder};
use crate::format::id::RecordId;
use crate::format::record::{Header, Kind, Record};

/// Level of [`RecordCodec::fast`].
const FAST_LEVEL: i32 = 1;

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new(FAST_LEVEL));
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new());
}

/// Encodes and decodes the records of one store.
#[derive(Clone, Debug)]
pub struct RecordCodec {
    zstd_level: i32,
}

impl RecordCodec {
    /// A codec that compresses records without a base at this level.
    pub const fn new(zstd_level: i32) -> Self {
        Self { zstd_level }
    }

    /// The same at the fastest level, for what is small or short-lived.
    #[must_use]
    pub fn fast(&self) -> Self {
        Self { zstd_level: FAST_LEVEL }
    }

    /// Encodes content into a record, as a delta if a base is given and that is clearly smaller.
    /// A base is given by its id and its plain bytes.
    pub fn encode(&self, kind: Kind, id: RecordId, plain: &[u8], base: Option<(RecordId, &[u8])>) -> Record {
        let (codec, payload) = self.payload(plain, base.map(|(_, bytes)| bytes));
        Record::new(kind, id, plain.len(), codec, payload, base.map(|(id, _)| id))
    }

    /// Encodes content into a payload without a header: raw, compressed, or against a base if that is clearly smaller.
    pub fn payload(&self, plain: &[u8], base: Option<&[u8]>) -> (Codec, Vec<u8>) {
        ENCODER.with_borrow_mut(|encoder| {
            encoder.set_level(self.zstd_level);
            match base {
                Some(base) => encoder.against(plain, base),
                None => encoder.plain(plain),
            }
        })
    }

    /// The content of a full record as a delta, if that is clearly smaller.
    pub fn delta(&self, full: &Record, plain: &[u8], base: (RecordId, &[u8])) -> Option<Record> {
        let payload = ENCODER.with_borrow_mut(|encoder| encoder.smaller_than(plain, base.1, full.payload.len()))?;
        let Header { kind, id, .. } = full.header;
        Some(Record::new(kind, id, plain.len(), Codec::Delta, payload, Some(base.0)))
    }

    /// The content of a record, *not* verified against its id.
    ///
    /// # Errors
    /// What is wrong, in words, if the payload is not what the header says; `base` must be given for a delta.
    pub fn decode(&self, header: &Header, payload: &[u8], base: Option<&[u8]>) -> Result<Vec<u8>, String> {
        let plain_bytes = header.plain_bytes as usize;
        DECODER.with_borrow_mut(|decoder| decoder.decode(header.codec, payload, plain_bytes, base))
    }

    /// [`RecordCodec::decode`] without a copy or an allocation: the result is in `buffer`, or is the raw payload
    /// itself.
    ///
    /// # Errors
    /// As [`RecordCodec::decode`].
    pub fn decode_into<'a>(
        &self,
        header: &Header,
        payload: &'a [u8],
        base: Option<&[u8]>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], String> {
        let plain_bytes = header.plain_bytes as usize;
        DECODER.with_borrow_mut(|decoder| decoder.decode_into(header.codec, payload, plain_bytes, base, buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::ChunkId;
    use crate::testing::noise;

    #[test]
    fn records_of_all_codecs_round_trip() {
        let (base, codec) = (noise(64 << 10, 1), RecordCodec::new(3));
        let mut near = base.clone();
        near[5000..9000].fill(7);
        let base_id: RecordId = ChunkId::of(&base).into();
        let zeros = vec![0; 70_000];
        let cases: [(&[u8], Option<(RecordId, &[u8])>, Codec); 4] = [
            (&base, None, Codec::Raw),
            (&zeros, None, Codec::Zstd),
            (&near, Some((base_id, &base)), Codec::Delta),
            (&zeros, Some((base_id, &base)), Codec::Delta),
        ];
        for (plain, with, expected) in cases {
            let id = ChunkId::of(plain).into();
            let record = codec.encode(Kind::Chunk, id, plain, with);
            assert_eq!((record.header.codec, record.header.base), (expected, with.map(|(id, _)| id)));
            let base = with.map(|(_, bytes)| bytes);
            assert_eq!(codec.decode(&record.header, &record.payload, base).as_deref(), Ok(plain));
            let mut buffer = Vec::new();
            assert_eq!(codec.fast().decode_into(&record.header, &record.payload, base, &mut buffer), Ok(plain));
        }
        let full = codec.encode(Kind::Chunk, ChunkId::of(&near).into(), &near, None);
        let delta = codec.delta(&full, &near, (base_id, &base)).unwrap();
        assert_eq!((delta.header.id, delta.header.base), (full.header.id, Some(base_id)));
        assert!(codec.delta(&full, &near, (base_id, &noise(64 << 10, 2))).is_none(), "an unrelated base saves nothing");
    }
}
