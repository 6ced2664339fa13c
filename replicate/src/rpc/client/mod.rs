//! The client of a store's owner, near or far: many requests at once over one connection.
//!
//! [`Client`] is cheap to clone and is used by tasks and, through its blocking methods, by plain threads. When the
//! connection ends, every request that waits and every later one fails with [`chunkstore::Error::Unreachable`].

mod connection;
mod local_packs;
mod partial;
mod requests;
mod session;
mod source;
mod stored_records;
#[cfg(test)]
pub(crate) mod testing;

pub use connection::{Client, Link};
pub(crate) use connection::{PATIENCE, WRITE_BUFFER_BYTES, broken, write_queue};
pub use local_packs::Packs;
pub(crate) use local_packs::{Direct, Owner};
pub use requests::{Arrived, Selected};
pub(crate) use session::expect_done;
pub use session::{ClientSession, Decided};
pub(crate) use source::{Bases, decode};
