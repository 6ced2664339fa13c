//! Records on the wire: header and payload, one after another, as in packs. They never pass through serde.

use bytes::{BufMut, Bytes, BytesMut};
use chunkstore::format::{HEADER_BYTES, Header, Record};

use super::SessionId;

/// Bytes after which a batch is sent.
const BATCH_BYTES: usize = 512 << 10;
/// A request to put records begins with the session.
const SESSION_BYTES: usize = size_of::<u32>();

/// Records that will be one frame.
#[derive(Debug, Default)]
pub struct RecordBatch {
    bytes: BytesMut,
    records: usize,
}

impl RecordBatch {
    /// An empty batch of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch of a request to put records into a session.
    pub(crate) fn for_session(session: SessionId) -> Self {
        let mut bytes = BytesMut::with_capacity(BATCH_BYTES);
        bytes.put_u32_le(session.0);
        Self { bytes, records: 0 }
    }

    /// Adds a record. Any record fits into a batch that is not full.
    pub fn push(&mut self, record: &Record) {
        self.bytes.put_slice(&record.header.encode());
        self.bytes.put_slice(&record.payload);
        self.records += 1;
    }

    /// Whether it should be sent now.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The frame's payload.
    pub fn into_payload(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// Splits the payload of a request to put records.
///
/// # Errors
/// If it is too short.
pub(crate) fn split_session(payload: &Bytes) -> Result<(SessionId, Bytes), String> {
    let (session, _) = payload.split_first_chunk::<SESSION_BYTES>().ok_or("a request to put records is cut short")?;
    Ok((SessionId(u32::from_le_bytes(*session)), payload.slice(SESSION_BYTES..)))
}

/// The records of a payload. Each matches the checksums of its header; nothing else is verified.
///
/// # Errors
/// The problem of the first invalid one.
pub fn records_of(payload: &[u8]) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    let mut rest = payload;
    while !rest.is_empty() {
        let header = Header::decode(rest)?;
        let end = HEADER_BYTES + header.stored_bytes as usize;
        let payload = rest.get(HEADER_BYTES..end).ok_or("a record is cut short")?;
        if !header.payload_matches(payload) {
            return Err(format!("record {}: the payload's checksum does not match", header.id));
        }
        records.push(Record { header, payload: payload.to_vec() });
        rest = &rest[end..];
    }
    Ok(records)
}

/// The headers of records, one after another.
pub fn headers_to_bytes(headers: &[Header]) -> Vec<u8> {
    headers.iter().flat_map(Header::encode).collect()
}

/// Reads headers that lie one after another.
///
/// # Errors
/// The problem of the first invalid one.
pub fn headers_from_bytes(bytes: &[u8]) -> Result<Vec<Header>, String> {
    bytes.chunks(HEADER_BYTES).map(|header| Header::decode(header).map_err(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use chunkstore::format::{ChunkId, Codec, Kind};

    use super::*;

    fn record(bytes: &[u8]) -> Record {
        Record::new(Kind::Chunk, ChunkId::of(bytes).into(), bytes.len(), Codec::Raw, bytes.to_vec(), None)
    }

    #[test]
    fn records_survive_and_every_cut_and_flip_is_noticed() {
        let records = [record(b"one"), record(b""), record(b"three")];
        let mut batch = RecordBatch::for_session(SessionId(9));
        for record in &records {
            batch.push(record);
        }
        let (session, payload) = split_session(&batch.into_payload()).unwrap();
        assert_eq!(session, SessionId(9));
        let read = records_of(&payload).unwrap();
        assert_eq!(read.len(), 3);
        assert!(read.iter().zip(&records).all(|(a, b)| a.header == b.header && a.payload == b.payload));
        let ends = [HEADER_BYTES + 3, 2 * HEADER_BYTES + 3, payload.len()];
        for len in (1..payload.len()).filter(|len| !ends.contains(len)) {
            assert!(records_of(&payload[..len]).is_err(), "cut at {len}");
        }
        let headers = records.map(|record| record.header);
        let bytes = headers_to_bytes(&headers);
        assert_eq!(headers_from_bytes(&bytes).unwrap(), headers);
        for len in (1..bytes.len()).filter(|len| len % HEADER_BYTES != 0) {
            assert!(headers_from_bytes(&bytes[..len]).is_err(), "headers cut at {len}");
        }
        // Bytes 6 of the headers are flags that may be ignored, and the last four are reserved; all are in the
        // checksum.
        for bit in 0..payload.len() * 8 {
            let mut flipped = payload.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(records_of(&flipped).is_err(), "bit {bit}");
        }
    }
}
