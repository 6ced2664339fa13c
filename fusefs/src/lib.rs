//! FUSE: every snapshot of a store as a plain raw file under a mount, and its writable clones.
//!
//! [`disks`] reads and writes; this crate adds what the kernel needs: names, inodes, handles, attributes, replies.
//! Reads are futures, because the content may be at a far site: a FUSE thread polls each once, and passes those that
//! are not ready to the runtime.

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
mod counters;
mod file_ops;
mod filesystem;
mod fusermount;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzzing;
mod handles;
mod inodes;
pub mod mount;
pub mod mounts;
mod namespace;
mod open_disk;
mod readahead_limit;
mod reply;
pub mod service;
pub mod status;
