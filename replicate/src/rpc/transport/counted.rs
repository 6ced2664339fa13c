//! Counts the bytes that pass through a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use chunkstore::metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that have passed.
#[derive(Debug, Default)]
pub struct ByteCounters {
    sent_bytes: Counter,
    received_bytes: Counter,
}

impl ByteCounters {
    /// Bytes sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.get()
    }

    /// Bytes received.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct CountedStream<S> {
    stream: S,
    counters: Arc<ByteCounters>,
}

impl<S> CountedStream<S> {
    /// Counts what passes through `stream`.
    pub fn new(stream: S, counters: Arc<ByteCounters>) -> Self {
        Self { stream, counters }
    }

    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.counters.sent_bytes.add(*bytes as u64);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.counters.received_bytes.add((buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_passes_is_counted() {
        let (near, mut far) = duplex(100);
        let counters = Arc::new(ByteCounters::default());
        let mut near = CountedStream::new(near, Arc::clone(&counters));
        near.write_all(&[1; 30]).await.unwrap();
        let slices = [io::IoSlice::new(&[2; 3]), io::IoSlice::new(&[3; 4])];
        let written = near.write_vectored(&slices).await.unwrap();
        far.write_all(&[4; 50]).await.unwrap();
        near.read_exact(&mut [0; 20]).await.unwrap();
        assert_eq!((counters.sent_bytes(), counters.received_bytes()), (30 + written as u64, 20));
    }
}
