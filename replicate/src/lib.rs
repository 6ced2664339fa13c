//! The protocol between vmstore's programs and sites: server, client, push and pull.
//!
//! One process owns a store ([`rpc::server`]); everyone else is its client ([`rpc::client`]) over a unix socket, TLS or
//! ssh, and need not know which. [`transfer`] copies snapshots from one store to another. PROTOCOL.md describes every
//! byte.

pub mod owner;
pub mod remotes;
pub mod repair;
pub mod rpc;
pub mod transfer;

/// This program and its version, as it introduces itself.
pub const PROGRAM: &str = concat!("vmstore ", env!("CARGO_PKG_VERSION"));
