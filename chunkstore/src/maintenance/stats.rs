//! Sizes of a store and the cost of each image.

use std::collections::HashMap;

use crate::catalog::{ImageName, Snapshot};
use crate::error::Result;
use crate::format::HEADER_BYTES;
use crate::format::manifest::Listed;
use crate::maintenance::mark::{Gaps, Walk};
use crate::pack::Class;
use crate::pack::RecordLocation;
use crate::progress::Progress;
use crate::store::Store;
use crate::store::marks::PlaceSet;
use crate::store::partial;

/// Sizes of a whole store.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Number of images.
    pub images: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Sum of the snapshots' sizes.
    pub virtual_bytes: u64,
    /// Sum of the snapshots' bytes in chunks: the size without dedup and compression.
    pub logical_bytes: u64,
    /// Plain bytes of the distinct chunks in the store.
    pub unique_bytes: u64,
    /// Bytes of the packs on disk.
    pub stored_bytes: u64,
    /// Bytes of the index on disk.
    pub index_bytes: u64,
    /// `logical_bytes / stored_bytes`.
    pub ratio: f64,
    /// Number of distinct chunks in the store.
    pub chunks: u64,
    /// Number of packs.
    pub packs: u64,
    /// Each image.
    pub per_image: Vec<ImageStats>,
}

/// Sizes of one image.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ImageStats {
    /// Its name.
    pub image: String,
    /// Number of its snapshots.
    pub snapshots: u64,
    /// Sum of their bytes in chunks.
    pub logical_bytes: u64,
    /// Stored bytes of the records that only this image names; the bases of its deltas are not counted.
    pub only_bytes: u64,
}

/// Reads all manifests and adds up. Memory: four bytes for each record.
///
/// # Errors
/// If a snapshot's entry or manifest can't be read.
pub fn stats(store: &Store, threads: usize, progress: &Progress) -> Result<Stats> {
    let _maintenance = store.maintain();
    let mut stats = Stats::default();
    let mut walk = Walk::new(store, Owners::default(), threads, progress);
    let images = store.catalog().images()?;
    progress.set_total(images.len() as u64);
    for (number, image) in images.iter().enumerate() {
        walk.seen.current = number as u32 + 1;
        walk.seen.only_bytes.push(0);
        stats.per_image.push(image_stats(store, image, &mut walk, &mut stats.virtual_bytes)?);
        // Waiting ids belong to this image.
        walk.settle()?;
        progress.advance(1);
    }
    let (owners, _) = walk.finish()?;
    for (image, only_bytes) in stats.per_image.iter_mut().zip(owners.only_bytes) {
        image.only_bytes = only_bytes;
        stats.snapshots += image.snapshots;
        stats.logical_bytes = stats.logical_bytes.saturating_add(image.logical_bytes);
    }
    stats.images = images.len() as u64;
    sum_packs(store, &mut stats);
    stats.index_bytes = dir_bytes(&store.dir().join(crate::store::index::DIR));
    stats.ratio = if stats.stored_bytes == 0 { 1.0 } else { stats.logical_bytes as f64 / stats.stored_bytes as f64 };
    Ok(stats)
}

fn image_stats(
    store: &Store,
    image: &ImageName,
    walk: &mut Walk<'_, Owners>,
    virtual_bytes: &mut u64,
) -> Result<ImageStats> {
    let mut stats = ImageStats { image: image.to_string(), ..ImageStats::default() };
    for listed in store.catalog().list(Some(image))? {
        let snapshot = listed.snapshot?;
        walk.allow(if snapshot.state.partial { Gaps::Any } else { Gaps::None })?;
        if let Some(root) = snapshot.entry().root {
            walk.tree(root)?;
        }
        stats.snapshots += 1;
        // Sizes in snapshots from elsewhere are not trusted, and their sum may overflow.
        stats.logical_bytes = stats.logical_bytes.saturating_add(data_bytes(store, &snapshot)?);
        *virtual_bytes = virtual_bytes.saturating_add(snapshot.entry().virtual_bytes);
    }
    Ok(stats)
}

/// Bytes in the snapshot's chunks: as its ingest reported, or counted from its leaves if it came from elsewhere. Of a
/// partial snapshot, only the chunks that are here.
fn data_bytes(store: &Store, snapshot: &Snapshot) -> Result<u64> {
    if snapshot.state.partial {
        return Ok(partial::presence(store, snapshot.entry())?.present_bytes);
    }
    if let Some(report) = &snapshot.state.ingest {
        return Ok(report.data_bytes);
    }
    let entry = snapshot.entry();
    Ok(Listed::of_tree(store, entry.root, entry.virtual_bytes)?.data_bytes)
}

fn sum_packs(store: &Store, stats: &mut Stats) {
    for row in store.packs().rows() {
        stats.packs += 1;
        stats.stored_bytes += row.bytes;
        if matches!(row.class, Class::Data | Class::DataDelta) {
            stats.chunks += u64::from(row.records);
            stats.unique_bytes += row.plain_bytes;
        }
    }
}

fn dir_bytes(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Which image needs a record: none yet, one, or several.
#[derive(Default)]
struct Owners {
    /// The image being walked, counted from 1.
    current: u32,
    packs: HashMap<u32, Vec<u32>>,
    only_bytes: Vec<u64>,
}

const SHARED: u32 = u32::MAX;

impl PlaceSet for Owners {
    fn add(&mut self, location: &RecordLocation) -> bool {
        let owners = self.packs.entry(location.pack).or_default();
        let ordinal = location.ordinal as usize;
        if owners.len() <= ordinal {
            owners.resize(ordinal + 1, 0);
        }
        let bytes = HEADER_BYTES as u64 + u64::from(location.stored_bytes);
        match owners[ordinal] {
            0 => {
                owners[ordinal] = self.current;
                self.only_bytes[self.current as usize - 1] += bytes;
                true
            }
            owner if owner == self.current || owner == SHARED => false,
            other => {
                // Records below a shared node are shared as well, so the walk visits them again.
                owners[ordinal] = SHARED;
                self.only_bytes[other as usize - 1] -= bytes;
                true
            }
        }
    }
}
