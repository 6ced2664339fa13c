//! The view: every snapshot of a store as a plain raw file under a mount, and writable clones of them.
//!
//! Reads answer as futures, because what is read may lie at a far site: a FUSE thread polls once, and hands what can't
//! be answered at once to the runtime. Nothing reaches a reader that was not verified.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by a panic"))]

mod attributes;
pub mod clone;
mod counters;
pub mod disk;
mod errno;
mod filesystem;
mod fusermount;
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
