//! What a mount with an upstream asks of the owner of its own store.

use chunkstore::Result;
use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::catalog::{Snapshot, SnapshotName};
use chunkstore::format::{EntryId, RecordId};

use super::requests::unexpected;
use super::session::{expect_done, published};
use super::{Client, ClientSession};
use crate::rpc::wire::{IDS_MAX, Ids, Reply, Request};

impl Client {
    /// Publishes a snapshot, by its entry's encoding, of which nothing need be here. It is durable when this returns; one
    /// that is here already is left as it is.
    ///
    /// # Errors
    /// [`chunkstore::Error::Refused`] if there is another of its name; [`chunkstore::Error::Denied`].
    pub async fn publish_partial(&self, entry: Vec<u8>) -> Result<Snapshot> {
        let id = EntryId::of(&entry);
        published(&self.call(&Request::PublishPartial { entry }).await?, id)
    }

    /// Which records are there, sound as far as is known, and can be read.
    ///
    /// # Errors
    /// If the connection fails; [`chunkstore::Error::Denied`].
    pub async fn has(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        self.bits(ids, |ids| Request::Has { ids }).await
    }

    /// Reports records that could not be read. Tells which of them indeed can't be: from then on they count as absent.
    ///
    /// # Errors
    /// As [`Client::has`].
    pub async fn suspect(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        self.bits(ids, |ids| Request::Suspect { ids }).await
    }

    async fn bits(&self, ids: &[RecordId], request: impl Fn(Ids) -> Request) -> Result<Vec<bool>> {
        let mut all = Vec::with_capacity(ids.len());
        for ids in ids.chunks(IDS_MAX) {
            match self.call(&request(Ids(ids.to_vec()))).await? {
                Reply::Bits(bits) => all.extend((0..ids.len()).map(|at| bits.has(at))),
                reply => return Err(unexpected(&reply)),
            }
        }
        Ok(all)
    }

    /// The order in which a guest first read a snapshot or, if that will do, another night of its image.
    ///
    /// # Errors
    /// [`chunkstore::Error::NotFound`] if there is no such snapshot; [`chunkstore::Error::Invalid`] if the other side does not know of orders.
    pub async fn boot_order(&self, snapshot: &SnapshotName, or_nearest: bool) -> Result<Option<BootOrder>> {
        let request = Request::BootOrder { snapshot: snapshot.to_string(), or_nearest };
        match self.call(&request).await? {
            Reply::BootOrder(order) => order.map(|order| BootOrder::decode(&order)).transpose(),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Keeps such an order with a snapshot, durably, in place of an earlier one.
    ///
    /// # Errors
    /// As [`Client::boot_order`]; [`chunkstore::Error::Denied`].
    pub async fn put_boot_order(&self, snapshot: &SnapshotName, order: &BootOrder) -> Result<()> {
        let request = Request::PutBootOrder { snapshot: snapshot.to_string(), order: order.encode() };
        expect_done(&self.call(&request).await?)
    }
}

impl ClientSession {
    /// Makes all that the session has put durable, and readable by everybody.
    ///
    /// # Errors
    /// If the session or the connection failed: nobody then knows which of it is there.
    pub async fn flush(&self) -> Result<()> {
        expect_done(&self.client().call(&Request::Flush { session: self.id() }).await?)
    }
}
