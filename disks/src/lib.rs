//! Snapshots and clones of a store as disks: read and written by offset, wherever their bytes are.
//!
//! [`snapshot`] reads through one [`chunk_cache`], behind which is the local store and, if there is one, a far store
//! ([`upstream`]). [`clone`] adds layers of written blocks. Nothing reaches a reader that was not verified. Everything
//! is asynchronous, and knows neither FUSE nor a terminal.
#![cfg_attr(
    test,
    allow(
        clippy::case_sensitive_file_extension_comparisons,
        clippy::large_stack_arrays,
        clippy::needless_for_each,
        clippy::single_range_in_vec_init,
        clippy::unwrap_used,
        reason = "a test fails by a panic, and tables of cases are written as plainly as they can be"
    )
)]

pub mod chunk_cache;
pub mod clone;
pub mod disk;
pub mod errno;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzzing {
    //! Decoders for the fuzz targets in `tests/src/fuzz`.
    pub use crate::clone::fuzzing::{clone_files, clone_map, clone_record, clone_socket, lock_holder};
}
pub mod names;
mod poison;
pub mod snapshot;
pub mod stats;
pub mod upstream;
