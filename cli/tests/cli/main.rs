//! The program from outside: arguments, exit codes, what is printed where, and who may use a store when.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod arguments;
mod common;
mod ingest;
mod output;
mod restore;
mod snapshots;
mod store;
