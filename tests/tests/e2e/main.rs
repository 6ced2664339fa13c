//! The programs from end to end, as users run them: commands, replication between sites, and mounts.
//!
//! All tests share one binary so that they run in parallel.

#![allow(clippy::unwrap_used, reason = "tests")]

mod block_devices;
mod busy;
mod clones;
mod full_disk;
mod golden;
mod overlays;
mod owner;
mod peak_memory;
mod real_image;
mod sites;
mod sources;
mod tokens;
mod upstream;
mod view;
mod ways;
