//! The protocol between vmstore's programs and sites: server, client, push and pull.

pub mod address;
pub mod auth;
mod private_file;
pub mod remotes;
pub mod tls;
pub mod transport;
