//! Input from a connection: the preamble, frames, messages, records.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chunkstore::Error;
use chunkstore::format::limits::STORED_BYTES_MAX;
use replicate::rpc::wire::{
    FRAME_PAYLOAD_BYTES_MAX, ForStream, Frame, FrameReader, FrameWriter, Hello, IDS_MAX, Meter, RecordBatch, Reply,
    Request, ReservedExtent, Welcome, WireError, claims_from_bytes, claims_to_bytes, headers_from_bytes,
    headers_to_bytes, read_preamble, records_of,
};
use tokio::runtime::{Builder, Runtime};

use super::{Verdict, as_given_and_resealed, reseal};

/// All bytes are there, so nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// As a server allows a client's first message.
const FIRST_BYTES_MAX: usize = 4096;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
}

/// The beginning of a connection, and frames to its end.
pub fn frames(bytes: &[u8]) -> Verdict {
    RUNTIME.with(|runtime| runtime.block_on(read_connection(bytes)))
}

async fn read_connection(mut bytes: &[u8]) -> Verdict {
    let meter = Arc::new(Meter::default());
    if read_preamble(&mut bytes, &meter).await.is_err() {
        return Verdict::Refused;
    }
    let first = FrameReader::new(bytes, Arc::default()).read_short(FIRST_BYTES_MAX).await;
    assert!(first.is_err() || first.is_ok_and(|frame| frame.payload.len() <= FIRST_BYTES_MAX));
    let mut reader = FrameReader::new(bytes, meter);
    let mut frames = Vec::new();
    loop {
        match reader.read(PATIENCE).await {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break,
            Err(_) => return Verdict::Refused,
        }
    }
    assert_eq!(written(&frames).await, bytes);
    Verdict::Accepted
}

/// There is one way to write frames.
async fn written(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::new(&mut bytes, Arc::default());
    for frame in frames {
        assert!(frame.payload.len() <= FRAME_PAYLOAD_BYTES_MAX);
        writer.write(frame).await.expect("memory can always be written");
    }
    bytes
}

/// Every message. Bytes may be several, of different types.
pub fn messages(bytes: &[u8]) -> Verdict {
    request(bytes)
        .or(reply(bytes))
        .or(survives::<Hello>(bytes))
        .or(survives::<Welcome>(bytes))
        .or(error(bytes))
        .or(survives::<(u64, u64)>(bytes))
}

fn survives<T: ForStream + PartialEq + Debug>(bytes: &[u8]) -> Verdict {
    let decoded = T::from_bytes(bytes);
    if let Ok(message) = &decoded {
        assert_eq!(T::from_bytes(&message.to_bytes()).as_ref(), Ok(message));
    }
    Verdict::of(&decoded)
}

fn request(bytes: &[u8]) -> Verdict {
    if let Ok(Request::Claim { ids, .. } | Request::Full { ids } | Request::Get { ids, .. } | Request::Locate { ids }) =
        Request::from_bytes(bytes)
    {
        assert!(ids.0.len() <= IDS_MAX);
    }
    if let Ok(Request::AppendWritten { extent, headers, .. }) = Request::from_bytes(bytes) {
        assert!(extent.extent().is_err() || extent.extent().is_ok_and(|read| ReservedExtent::from(read) == extent));
        if let Ok(headers) = headers_from_bytes(&headers) {
            assert_eq!(headers_from_bytes(&headers_to_bytes(&headers)).as_ref(), Ok(&headers));
        }
    }
    survives::<Request>(bytes)
}

fn reply(bytes: &[u8]) -> Verdict {
    if let Ok(Reply::Claims(numbers)) = Reply::from_bytes(bytes)
        && let Ok(claims) = claims_from_bytes(&numbers)
    {
        assert_eq!(claims_to_bytes(&claims), numbers);
    }
    if let Ok(Reply::Locations(locations) | Reply::BaseIds { locations, .. }) = Reply::from_bytes(bytes) {
        assert!(locations.0.len() <= IDS_MAX);
        assert!(locations.0.iter().flatten().all(|located| located.location.stored_bytes as usize <= STORED_BYTES_MAX));
    }
    survives::<Reply>(bytes)
}

/// Text from another machine that goes to a terminal.
fn error(bytes: &[u8]) -> Verdict {
    if let Ok(error) = WireError::from_bytes(bytes) {
        let shown = Error::from(error).to_string();
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
    survives::<WireError>(bytes)
}

/// The payload of a frame of records.
pub fn wire_records(bytes: &[u8]) -> Verdict {
    as_given_and_resealed(
        bytes,
        |bytes| Some(reseal::records(bytes)),
        |bytes| {
            let decoded = records_of(bytes);
            if let Ok(records) = &decoded {
                let mut batch = RecordBatch::new();
                for record in records {
                    batch.push(record);
                }
                let again: Bytes = batch.into_payload();
                let again = records_of(&again).expect("it was just written");
                assert_eq!(again.len(), records.len());
                assert!(again.iter().zip(records).all(|(a, b)| a.header == b.header && a.payload == b.payload));
            }
            Verdict::of(&decoded)
        },
    )
}
