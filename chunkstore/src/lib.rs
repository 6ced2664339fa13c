//! Content-addressed, deduplicated, delta-compressed storage of virtual machine images.
//!
//! Start at [`store::Store`]: it owns a directory of packs (ground truth), a catalog of snapshots (ground truth) and an
//! index (derived). [`ingest`] makes snapshots, [`restore`] writes them out, and [`maintenance`] verifies, repairs and
//! frees what no snapshot needs. No network, no FUSE, no terminal here. FORMAT.md describes every byte on disk.

#![cfg_attr(
    test,
    allow(
        clippy::cloned_ref_to_slice_refs,
        clippy::format_collect,
        clippy::large_stack_arrays,
        clippy::needless_for_each,
        clippy::single_range_in_vec_init,
        clippy::type_complexity,
        clippy::unnecessary_literal_bound,
        reason = "tables of cases are written as plainly as they can be"
    )
)]

pub mod catalog;
mod error;
pub mod format;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzzing;
pub mod ingest;
pub mod maintenance;
pub mod metrics;
pub mod pack;
mod parallel;
mod progress;
pub mod restore;
mod retry;
pub mod source;
pub mod storage;
pub mod store;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
pub mod truth_lock;

pub use error::{Error, Result};
pub use progress::Progress;
pub use retry::Backoff;
