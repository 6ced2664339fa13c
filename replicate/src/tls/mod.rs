//! TLS 1.3 between sites: who the server is, and, if wanted, who the client is.
//!
//! A server is known by its pinned key, or by a certificate of an authority that the client names. There is no third
//! way: an unknown server is never trusted on first use, and gets nothing from the client.

mod fingerprint;

pub use fingerprint::Fingerprint;
