//! What users do with the programs, from end to end: each command, sites that replicate, and the view through mounts.
//!
//! The tests of one file are about one part; they share one binary, so that they run beside one another.

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
