//! What tests of this crate and of others share: noise from a seed, images in memory, stores in a temporary directory,
//! reading back. May import every folder.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by a panic")]

pub mod contract;
mod random;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use self::random::{Rng, noise, repeated_seed, seed_of_run};
use crate::catalog::{Entry, Snapshot, SnapshotName, SnapshotTime};
use crate::error::Result;
use crate::format::limits::SEGMENT_BYTES;
use crate::format::manifest::ChunkSource;
use crate::format::{ChunkParams, manifest};
use crate::ingest::{Base, IngestOptions, ingest};
use crate::progress::Progress;
pub use crate::source::MemDisk;
use crate::source::Source;
use crate::store::{InitOptions, OpenOptions, Store};

/// An image in memory as a source.
pub fn disk(bytes: &[u8]) -> Source {
    Source::Disk(Box::new(MemDisk { bytes: bytes.to_vec(), tells_holes: true }))
}

/// Small chunks, so that small images have many.
pub fn small_params() -> ChunkParams {
    ChunkParams { min_bytes: 2 << 10, avg_bytes: 8 << 10, max_bytes: 32 << 10, zero_run_min_bytes: 8 << 10 }
}

/// Makes a store with small chunks.
pub fn init(dir: &Path) {
    let options = InitOptions { params: small_params(), reserve: false };
    Store::init(dir, &options, [7; 16], "2026-11-20T00:00:00Z".parse().unwrap()).unwrap();
}

/// How stores are opened. A program that another test has just started holds their locks, too, until it has its own
/// image.
pub fn open_options() -> OpenOptions {
    OpenOptions { wait: Duration::from_mins(1), ..OpenOptions::default() }
}

/// Opens a store.
pub fn open(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(dir, &open_options()).unwrap())
}

/// The name of an image's snapshot of a day of January 2026, or of the days after.
pub fn night(image: &str, day: u32) -> SnapshotName {
    let first: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let time = first + jiff::SignedDuration::from_hours(24 * i64::from(day));
    SnapshotName::new(image.parse().unwrap(), SnapshotTime::new(time).unwrap())
}

/// Options of an ingest with two threads.
pub fn options(name: SnapshotName, base: Base) -> IngestOptions {
    let now = name.time.timestamp();
    IngestOptions { name, labels: BTreeMap::new(), group: None, base, threads: 2, now }
}

/// Ingests an image onto its newest snapshot.
pub fn put(store: &Arc<Store>, name: SnapshotName, bytes: &[u8]) -> Snapshot {
    ingest(store, disk(bytes), &options(name, Base::Newest), &Progress::default()).unwrap()
}

/// All bytes of a snapshot, verified.
pub fn read_back(source: &dyn ChunkSource, entry: &Entry) -> Result<Vec<u8>> {
    let mut image = vec![0; entry.virtual_bytes as usize];
    manifest::walk(source, entry.root, entry.virtual_bytes, &mut |segment| {
        let leaf = manifest::read_leaf(source, segment.leaf)?;
        let start = segment.number as usize * SEGMENT_BYTES;
        let chunks: Vec<_> = leaf.chunks().collect();
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.1).collect();
        source.chunks(&ids, &mut |position, chunk| {
            let at = start + chunks[position].0;
            let chunk = chunk?;
            image[at..at + chunk.bytes().len()].copy_from_slice(chunk.bytes());
            Ok(())
        })
    })?;
    Ok(image)
}
