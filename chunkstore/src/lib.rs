//! Content-addressed, deduplicated, delta-compressed storage of virtual machine images.
//!
//! Start at [`store::Store`]: it owns a directory of packs (ground truth), a catalog of snapshots (ground truth) and
//! an index (derived). [`ingest`] makes snapshots, [`restore`] writes them out, [`verify`] checks everything, [`gc`]
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

#[cfg(test)]
extern crate self as chunkstore;

pub mod beside;
pub mod boot_order;
mod buffers;

pub mod catalog;
pub mod chunk;
pub mod chunk_source;
pub mod chunker;
pub mod codec;
pub mod compare;
pub mod config;
pub mod damaged;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod gc;
pub mod id;
pub mod index;
pub mod ingest;
pub mod lease;
pub mod limits;
pub mod lock;
pub mod manifest;
mod mark;
pub mod name;
pub mod pack;
mod parallel;
pub mod partial;
pub mod placed;
pub mod progress;
pub mod quarantine;
pub mod record;
pub mod repair;
pub mod reserve;
pub mod restore;
pub mod retention;
pub mod sink;
pub mod source;
pub mod stats;
pub mod storage;
pub mod store;
#[cfg(test)]
mod testing;
pub mod verify;

pub use error::{Error, Result};
