//! The program `vmstore` from outside: arguments, exit codes, output, and concurrent use of a store.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod arguments;
mod common;
mod ingest;
mod output;
mod restore;
mod snapshots;
mod store;
