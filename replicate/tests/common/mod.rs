//! Helpers of these tests: stores in temporary directories behind owners in this process, images in memory, and streams
//! that count or cut.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unnecessary_literal_bound,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "each test uses a part; helpers fail as tests do"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use chunkstore::Progress;
use chunkstore::catalog::{Snapshot, SnapshotName, SnapshotTime};
use chunkstore::format::ChunkParams;
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::{self, ChunkSource, Node};
use chunkstore::ingest::{Base, IngestInto, IngestOptions, ingest};
use chunkstore::maintenance::gc;
use chunkstore::maintenance::verify;
use chunkstore::source::{MemDisk, Source};
use chunkstore::store::{InitOptions, OpenOptions, Store};
pub use chunkstore::testing::noise;
use replicate::rpc::client::{Client, ClientSession, Link};
use replicate::rpc::server::{ServeOptions, Server, serve_stream};
use replicate::rpc::transport::{Peer, Stream};
use replicate::rpc::wire::{Hello, Purpose};
use replicate::transfer::{Direction, Ends, TransferOptions, TransferReport, Wanted, transfer};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Small chunks, so that small images have many.
pub fn small_params() -> ChunkParams {
    ChunkParams { min_bytes: 2 << 10, avg_bytes: 8 << 10, max_bytes: 32 << 10, zero_run_min_bytes: 8 << 10 }
}

/// The name of an image's snapshot of a day of January 2026.
pub fn night(image: &str, day: u32) -> SnapshotName {
    let first: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let time = first + jiff::SignedDuration::from_hours(24 * i64::from(day));
    SnapshotName::new(image.parse().unwrap(), SnapshotTime::new(time).unwrap())
}

/// A store with its owner, in this process.
pub struct Site {
    pub dir: TempDir,
    pub store: Arc<Store>,
    pub server: Arc<Server>,
}

impl Site {
    pub fn new(seed: u8) -> Self {
        Self::with_params(seed, small_params())
    }

    pub fn with_params(seed: u8, params: ChunkParams) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions { params, reserve: false };
        Store::init(dir.path(), &options, [seed; 16], "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        Self::open(dir, seed)
    }

    pub fn open(dir: TempDir, seed: u8) -> Self {
        let options = OpenOptions { seed: u64::from(seed), ..OpenOptions::default() };
        let store = Arc::new(Store::open(dir.path(), &options).unwrap());
        let server = Server::new(Arc::clone(&store), ServeOptions::default(), [seed; 32]);
        Self { dir, store, server }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Ingests an image directly.
    pub fn ingest(&self, name: SnapshotName, bytes: &[u8]) -> Snapshot {
        let now = name.time.timestamp();
        let options = IngestOptions { name, labels: BTreeMap::new(), group: None, base: Base::Newest, threads: 2, now };
        ingest(&self.store, Source::Disk(Box::new(MemDisk::new(bytes.to_vec()))), &options, &Progress::default())
            .unwrap()
    }

    /// A stream to the owner; the other end is served by a task.
    pub fn stream(&self, peer: Peer) -> DuplexStream {
        let (here, there) = tokio::io::duplex(64 << 10);
        tokio::spawn(serve_stream(Arc::clone(&self.server), Box::new(there), peer));
        here
    }

    pub async fn client(&self) -> Client {
        self.client_over(Box::new(self.stream(local()))).await
    }

    pub async fn client_over(&self, stream: Stream) -> Client {
        Client::start(stream, &Hello::default(), &Link::default()).await.unwrap()
    }

    /// All bytes of a snapshot, verified.
    pub fn read_back(&self, name: &SnapshotName) -> Vec<u8> {
        let snapshot = self.store.catalog().read(name).unwrap();
        read_back(&*self.store, &snapshot)
    }

    /// Fails unless everything in the store is whole.
    pub fn assert_sound(&self) {
        let report = verify::verify(&self.store, &[], 2, &Progress::default()).unwrap();
        assert!(report.is_sound(), "{report:?}");
    }

    pub fn collect(&self) {
        gc::collect(&self.store, false, 2, &Progress::default()).unwrap();
    }

    pub fn snapshots(&self) -> Vec<SnapshotName> {
        self.store.catalog().list(None).unwrap().into_iter().map(|listed| listed.name).collect()
    }
}

/// Ingests through an owner. Blocks its thread.
pub fn ingest_by(client: &Client, name: SnapshotName, image: &[u8]) -> Snapshot {
    let session = ClientSession::begin_blocking(client, Purpose::Ingest, None).unwrap();
    let into = IngestInto {
        sink: &session,
        source: client,
        params: small_params(),
        codec: client.codec().clone(),
        store_id: "here",
        trusts_parent: false,
        parent: None,
    };
    let now = name.time.timestamp();
    let options = IngestOptions { name, labels: BTreeMap::new(), group: None, base: Base::None, threads: 2, now };
    into.ingest(Source::Disk(Box::new(MemDisk::new(image.to_vec()))), &options, &Progress::default()).unwrap()
}

/// All bytes of a snapshot, verified.
pub fn read_back(source: &dyn ChunkSource, snapshot: &Snapshot) -> Vec<u8> {
    let entry = snapshot.entry();
    let mut image = vec![0; entry.virtual_bytes as usize];
    manifest::walk(source, entry.root, entry.virtual_bytes, &mut |segment| {
        let Node::Leaf(leaf) = source.node(segment.leaf)? else { panic!("a leaf is a leaf") };
        for (at, id, _) in leaf.chunks() {
            let chunk = source.chunk(id)?;
            let at = segment.number as usize * SEGMENT_BYTES + at;
            image[at..at + chunk.bytes().len()].copy_from_slice(chunk.bytes());
        }
        Ok(())
    })
    .unwrap();
    image
}

/// A client of the store's own user.
pub fn local() -> Peer {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    Peer::Local { uid, pid: None }
}

pub fn push_all() -> TransferOptions {
    TransferOptions { direction: Direction::Push, wanted: Wanted::All, dry_run: false }
}

pub fn pull_all() -> TransferOptions {
    TransferOptions { direction: Direction::Pull, ..push_all() }
}

/// Pushes from one site to another, or pulls to the one from the other.
pub async fn try_transfer(near: &Site, far: Client, options: &TransferOptions) -> chunkstore::Result<TransferReport> {
    let ends = Ends { near: near.client().await, catalog: near.store.catalog().clone(), far: vec![far] };
    transfer(&ends, options, &Arc::default()).await
}

pub async fn run(near: &Site, far: &Site, options: &TransferOptions) -> TransferReport {
    try_transfer(near, far.client().await, options).await.unwrap()
}

/// A stream that ends after so many bytes, both directions together.
pub struct Cut {
    inner: DuplexStream,
    left: Arc<AtomicU64>,
}

impl Cut {
    pub fn after(inner: DuplexStream, bytes: u64) -> Self {
        Self { inner, left: Arc::new(AtomicU64::new(bytes)) }
    }

    fn take(&self, wanted: usize) -> usize {
        let left = self.left.load(Ordering::Relaxed);
        wanted.min(left as usize)
    }
}

fn gone() -> std::io::Error {
    std::io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let room = self.take(buf.remaining());
        if room == 0 {
            return Poll::Ready(Err(gone()));
        }
        let mut part = buf.take(room);
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        let filled = part.filled().len();
        // SAFETY: `part` is the beginning of what is unfilled in `buf`, and so much of it was filled.
        unsafe { buf.assume_init(filled) };
        buf.advance(filled);
        self.left.fetch_sub(filled as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let room = self.take(buf.len());
        if room == 0 {
            return Poll::Ready(Err(gone()));
        }
        let polled = Pin::new(&mut self.inner).poll_write(cx, &buf[..room]);
        if let Poll::Ready(Ok(written)) = polled {
            self.left.fetch_sub(written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
