//! What a store holds and what each image costs.

use crate::error::Result;
use crate::progress::Progress;
use crate::store::Store;

/// Sizes of a whole store.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stats {
    /// Number of images.
    pub images: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Sum of the snapshots' sizes.
    pub virtual_bytes: u64,
    /// Sum of the snapshots' bytes that are not zero: what keeping each for itself would take, uncompressed.
    pub logical_bytes: u64,
    /// Plain bytes of the distinct chunks in the store.
    pub unique_bytes: u64,
    /// Bytes of the packs and the catalog on disk.
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
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct ImageStats {
    /// Its name.
    pub image: String,
    /// Number of its snapshots.
    pub snapshots: u64,
    /// Sum of their bytes that are not zero.
    pub logical_bytes: u64,
    /// Stored bytes of the records that only this image needs: what removing it would free.
    pub only_bytes: u64,
}

/// Reads all manifests and sums up.
pub fn stats(store: &Store, progress: &Progress) -> Result<Stats> {
    let _ = (store, progress);
    todo!()
}
