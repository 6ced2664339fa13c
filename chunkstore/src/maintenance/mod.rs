//! Operations on a whole store: gc, verify, repair, statistics. One of them runs at a time.
//!
//! [`gc`] frees records that no snapshot needs, [`verify`] checks everything, [`repair`] fixes the damage that verify
//! found, [`stats`] counts. They share the walk over everything that snapshots need (`mark`). May import every folder
//! but `ingest`, `restore` and `source`.

pub mod gc;
pub(crate) mod mark;
pub mod repair;
pub mod stats;
pub mod verify;
