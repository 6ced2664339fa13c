//! Requests of a mount with an upstream to the owner of its local store.

use chunkstore::Result;
use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::catalog::{Snapshot, SnapshotName};
use chunkstore::format::{EntryId, RecordId};

use super::requests::unexpected;
use super::session::{expect_done, published};
use super::{Client, ClientSession};
use crate::rpc::wire::{IDS_MAX, Ids, Reply, Request};

impl Client {
    /// Publishes a snapshot of which nothing need be present, by its entry's encoding. It is durable when this returns;
    /// an existing one is left as it is.
    ///
    /// # Errors
    /// [`chunkstore::Error::Refused`] if there is another of its name; [`chunkstore::Error::Denied`].
    pub async fn publish_partial(&self, entry: Vec<u8>) -> Result<Snapshot> {
        let id = EntryId::of(&entry);
        published(&self.call(&Request::PublishPartial { entry }).await?, id)
    }

    /// Which records are present, undamaged as far as is known, and readable.
    ///
    /// # Errors
    /// If the connection fails; [`chunkstore::Error::Denied`].
    pub async fn has(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        self.bits(ids, |ids| Request::Has { ids }).await
    }

    /// Reports records that could not be read. Returns which of them the owner can't read either: those count as absent
    /// from then on.
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

    /// The order in which a guest first read a snapshot or, with `or_nearest`, another snapshot of its image.
    ///
    /// # Errors
    /// [`chunkstore::Error::NotFound`] if there is no such snapshot; [`chunkstore::Error::Invalid`] if the other side
    /// is too old for boot orders.
    pub async fn boot_order(&self, snapshot: &SnapshotName, or_nearest: bool) -> Result<Option<BootOrder>> {
        let request = Request::BootOrder { snapshot: snapshot.to_string(), or_nearest };
        match self.call(&request).await? {
            Reply::BootOrder(order) => order.map(|order| BootOrder::decode(&order)).transpose(),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Stores a snapshot's boot order durably and replaces an earlier one.
    ///
    /// # Errors
    /// As [`Client::boot_order`]; [`chunkstore::Error::Denied`].
    pub async fn put_boot_order(&self, snapshot: &SnapshotName, order: &BootOrder) -> Result<()> {
        let request = Request::PutBootOrder { snapshot: snapshot.to_string(), order: order.encode() };
        expect_done(&self.call(&request).await?)
    }
}

impl ClientSession {
    /// Makes everything that the session has put durable and readable.
    ///
    /// # Errors
    /// If the session or the connection failed: some of the records may be durable then.
    pub async fn flush(&self) -> Result<()> {
        expect_done(&self.client().call(&Request::Flush { session: self.id() }).await?)
    }
}
