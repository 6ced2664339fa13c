//! Counts the bytes that are written to a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use chunkstore::metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose sent bytes are counted.
#[derive(Debug)]
pub(crate) struct CountedStream<S> {
    stream: S,
    sent_bytes: Counter,
}

impl<S> CountedStream<S> {
    /// Counts what is written to `stream`.
    pub(crate) fn new(stream: S, sent_bytes: Counter) -> Self {
        Self { stream, sent_bytes }
    }

    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.sent_bytes.add(*bytes as u64);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
    async fn only_sent_bytes_are_counted() {
        let (near, mut far) = duplex(100);
        let sent = Counter::default();
        let mut near = CountedStream::new(near, sent.clone());
        near.write_all(&[1; 30]).await.unwrap();
        let slices = [io::IoSlice::new(&[2; 3]), io::IoSlice::new(&[3; 4])];
        let written = near.write_vectored(&slices).await.unwrap();
        far.write_all(&[4; 50]).await.unwrap();
        near.read_exact(&mut [0; 20]).await.unwrap();
        assert_eq!(sent.get(), 30 + written as u64);
    }
}
