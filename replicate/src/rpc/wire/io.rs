//! Reads and writes frames, with time limits, and counts bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chunkstore::metrics::{Counter, Description, Metrics, Unit};
use chunkstore::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::VERSION;
use super::frame::{FRAME_HEADER_BYTES, Frame, Head, Kind};

const MAGIC: [u8; 8] = *b"VMSTORE\0";
const PREAMBLE_BYTES: usize = 12;
/// Within a frame, this many bytes must be transferred in [`STEP_TIME_MAX`].
const STEP_BYTES: usize = 64 << 10;
/// A peer that transfers less than [`STEP_BYTES`] in this time blocks a connection and its buffers.
const STEP_TIME_MAX: Duration = Duration::from_mins(1);

/// Counts the bytes of connections, before encryption.
#[derive(Debug, Default)]
pub struct Meter {
    sent: Counter,
    received: Counter,
    records: Counter,
}

const SENT: Description =
    Description::new("sent_bytes_total", Unit::Bytes, "Bytes sent to clients, before encryption.");
const RECEIVED: Description =
    Description::new("received_bytes_total", Unit::Bytes, "Bytes received from clients, before encryption.");
const RECORDS: Description =
    Description::new("record_bytes_total", Unit::Bytes, "Bytes of records among those sent and received.");

impl Meter {
    /// A meter whose counters are those of a registry.
    pub(crate) fn registered(metrics: &Metrics) -> Self {
        Self { sent: metrics.counter(SENT), received: metrics.counter(RECEIVED), records: metrics.counter(RECORDS) }
    }

    /// All bytes sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.get()
    }

    /// All bytes received.
    pub fn received_bytes(&self) -> u64 {
        self.received.get()
    }

    /// Bytes of records, in both directions.
    pub fn record_bytes(&self) -> u64 {
        self.records.get()
    }

    fn count(&self, direction: &Counter, frame: &Frame) {
        direction.add(frame.wire_bytes());
        if matches!(frame.kind, Kind::Records | Kind::Bases) {
            self.records.add(frame.payload.len() as u64);
        }
    }
}

/// The error for a failed connection: the request may be retried.
fn lost(error: &io::Error) -> Error {
    // A client learns only at its first read that a server refuses its certificate.
    if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>) {
        return crate::rpc::tls::connection_error("the other side", error);
    }
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            "the other side closed the connection".to_owned()
        }
        _ => format!("the connection failed: {error}"),
    };
    Error::Unreachable { what }
}

fn too_slow() -> Error {
    Error::Unreachable { what: format!("nothing moved for {} s", STEP_TIME_MAX.as_secs()) }
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::Unreachable { what: format!("the other side breaks the protocol: {what}") }
}

/// Sends the preamble: the magic bytes, and the versions that this side speaks.
pub async fn write_preamble(stream: &mut (impl AsyncWrite + Unpin), meter: &Meter) -> Result<()> {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.start().to_le_bytes());
    bytes[10..].copy_from_slice(&VERSION.end().to_le_bytes());
    stream.write_all(&bytes).await.map_err(|error| lost(&error))?;
    meter.sent.add(PREAMBLE_BYTES as u64);
    stream.flush().await.map_err(|error| lost(&error))
}

/// Reads the other side's preamble and returns the newest version that both speak.
///
/// # Errors
/// [`Error::Refused`] if there is none; [`Error::Unreachable`] if it is not a vmstore.
pub async fn read_preamble(stream: &mut (impl AsyncRead + Unpin), meter: &Meter) -> Result<u16> {
    let mut bytes = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut bytes).await.map_err(|error| lost(&error))?;
    meter.received.add(PREAMBLE_BYTES as u64);
    if bytes[..8] != MAGIC {
        return Err(Error::Unreachable { what: "the other side is not a vmstore".into() });
    }
    let (oldest, newest) = (u16::from_le_bytes([bytes[8], bytes[9]]), u16::from_le_bytes([bytes[10], bytes[11]]));
    let version = newest.min(*VERSION.end());
    if version < oldest.max(*VERSION.start()) {
        return Err(Error::refused(format!(
            "the other side speaks versions {oldest} to {newest} of the protocol, this program {} to {}",
            VERSION.start(),
            VERSION.end()
        )));
    }
    Ok(version)
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    meter: Arc<Meter>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader whose frames are counted.
    pub fn new(stream: R, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }

    /// Reads a frame; `None` if the other side ended the stream between two. Waits at most `idle_timeout` for its first
    /// byte. Memory grows with the bytes that arrive, not with the header's length.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the stream is cut, too slow, or has no valid frame.
    pub async fn read(&mut self, idle_timeout: Duration) -> Result<Option<Frame>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        let first = timeout(idle_timeout, self.stream.read(&mut header)).await.map_err(|_| silent(idle_timeout))?;
        let first = first.map_err(|error| lost(&error))?;
        if first == 0 {
            return Ok(None);
        }
        self.fill(&mut header[first..]).await?;
        let head = Head::decode(header).map_err(broken)?;
        let payload = self.payload(head.payload_bytes).await?;
        let frame = Frame { kind: head.kind, request: head.request, payload };
        self.meter.count(&self.meter.received, &frame);
        Ok(Some(frame))
    }

    /// Reads a payload into a buffer that at most doubles while bytes arrive, and is not zeroed first.
    async fn payload(&mut self, bytes: usize) -> Result<Bytes> {
        let mut payload = BytesMut::with_capacity(bytes.min(STEP_BYTES));
        while payload.len() < bytes {
            let missing = bytes - payload.len();
            if payload.capacity() == payload.len() {
                payload.reserve(missing.min(payload.len()));
            }
            let step = missing.min(STEP_BYTES).min(payload.capacity() - payload.len());
            self.append(&mut payload, step).await?;
        }
        Ok(payload.freeze())
    }

    async fn append(&mut self, payload: &mut BytesMut, bytes: usize) -> Result<()> {
        let end = payload.len() + bytes;
        let appending = async {
            while payload.len() < end {
                let mut rest = (&mut self.stream).take((end - payload.len()) as u64);
                if rest.read_buf(payload).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(())
        };
        let appended = timeout(STEP_TIME_MAX, appending).await.map_err(|_| too_slow())?;
        appended.map_err(|error| lost(&error))
    }

    /// Reads a frame that must be short, as a client's first one.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if it is longer, or the stream ends.
    pub async fn read_short(&mut self, payload_bytes_max: usize) -> Result<Frame> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.fill(&mut header).await?;
        let head = Head::decode(header).map_err(broken)?;
        if head.payload_bytes > payload_bytes_max {
            return Err(broken(format!("a first message of {} bytes", head.payload_bytes)));
        }
        let mut payload = vec![0; head.payload_bytes];
        self.fill(&mut payload).await?;
        Ok(Frame { kind: head.kind, request: head.request, payload: Bytes::from(payload) })
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let read = timeout(STEP_TIME_MAX, self.stream.read_exact(bytes)).await.map_err(|_| too_slow())?;
        read.map(drop).map_err(|error| lost(&error))
    }
}

fn silent(idle_timeout: Duration) -> Error {
    Error::Unreachable { what: format!("the other side was silent for {} s", idle_timeout.as_secs()) }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    meter: Arc<Meter>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer whose frames are counted.
    pub fn new(stream: W, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }

    /// Writes a frame. It may wait in a buffer until [`FrameWriter::flush`].
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the other side is gone or reads too slowly.
    pub async fn write(&mut self, frame: &Frame) -> Result<()> {
        self.write_step(&frame.header()).await?;
        for step in frame.payload.chunks(STEP_BYTES) {
            self.write_step(step).await?;
        }
        self.meter.count(&self.meter.sent, frame);
        Ok(())
    }

    async fn write_step(&mut self, bytes: &[u8]) -> Result<()> {
        let written = timeout(STEP_TIME_MAX, self.stream.write_all(bytes)).await.map_err(|_| too_slow())?;
        written.map_err(|error| lost(&error))
    }

    /// Sends the buffered bytes.
    ///
    /// # Errors
    /// As [`FrameWriter::write`].
    pub async fn flush(&mut self) -> Result<()> {
        let flushed = timeout(STEP_TIME_MAX, self.stream.flush()).await.map_err(|_| too_slow())?;
        flushed.map_err(|error| lost(&error))
    }

    /// Ends the stream.
    pub async fn shutdown(&mut self) {
        // There is no one to report an error to.
        let _ = timeout(STEP_TIME_MAX, self.stream.shutdown()).await;
    }
}
