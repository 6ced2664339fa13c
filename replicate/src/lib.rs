//! The protocol between vmstore's programs and sites: server, client, push and pull.
//!
//! One process owns a store ([`server`]); everyone else speaks to it ([`client`]) over a unix socket, TLS or ssh, and
//! can't tell them apart. [`transfer`] brings snapshots from one store to another. PROTOCOL.md describes every byte.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod address;
pub mod auth;
pub mod client;
pub mod owner;
mod private_file;
pub mod rate;
pub mod remotes;
pub mod repair;
pub mod server;
pub mod tls;
pub mod transfer;
pub mod transport;
pub mod wire;

/// This program and its version, as it introduces itself.
pub const PROGRAM: &str = concat!("vmstore ", env!("CARGO_PKG_VERSION"));

/// Locks a mutex whose content is whole whatever its holders do.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
