//! The client of a store's owner, near or far: many requests at once over one connection.
//!
//! [`Client`] is cheap to clone and is used by tasks and, through its blocking methods, by plain threads. When the
//! connection ends, every request that waits and every later one fails with [`chunkstore::Error::Unreachable`].

mod local_packs;
mod multiplex;
mod partial;
mod requests;
mod session;
mod source;
mod stored_records;
#[cfg(test)]
pub(crate) mod testing;

pub use local_packs::LocalPacks;
pub(crate) use local_packs::{LocalReader, OwnerConnection};
pub use multiplex::{Client, Link};
pub(crate) use multiplex::{IDLE_TIMEOUT, WRITE_BUFFER_BYTES, broken, write_queue};
pub use requests::{Arrived, Selected};
pub(crate) use session::expect_done;
pub use session::{ClientSession, Decided};
pub(crate) use source::{Bases, decode};
