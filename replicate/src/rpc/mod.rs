//! The protocol: frames on a stream, who is at each end, and what they may ask.
//!
//! [`wire`] is the bytes, [`transport`] and [`tls`] carry them, [`auth`] says who may do what, [`client`] asks and
//! [`server`] answers. Imports point one way: client and server, then auth, then transport, then tls, then wire. May
//! import `chunkstore` alone.

pub mod address;
pub mod auth;
pub mod client;
pub(crate) mod private_file;
pub mod server;
pub mod tls;
pub mod transport;
pub mod wire;
