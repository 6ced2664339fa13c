//! The view: every snapshot of a store as a plain raw file under a mount, and writable clones of them.
//!
//! Reads answer as futures, because what is read may lie at a far site: a FUSE thread polls once, and hands what can't
//! be answered at once to the runtime. Nothing reaches a reader that was not verified.

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

mod attributes;
mod buffers;
pub mod clone;
mod counters;
pub mod disk;
mod errno;
mod filesystem;
mod fusermount;
#[doc(hidden)]
pub mod fuzzing;
mod handles;
mod inodes;
pub mod mount;
pub mod mounts;
pub mod names;
mod now_or_later;
pub mod pool;
mod readahead_limit;
mod requests;
pub mod snapshot_disk;
pub mod stats;
pub mod status;
mod tree;
pub mod upstream;
pub mod view;
