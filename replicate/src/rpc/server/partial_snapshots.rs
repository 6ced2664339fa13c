//! Handlers of requests from a mount with an upstream: for partial snapshots, unreadable records and boot orders.

use std::sync::Arc;

use chunkstore::catalog::boot_order::{self, BootOrder};
use chunkstore::catalog::{Snapshot, SnapshotName, State};
use chunkstore::format::EntryId;
use chunkstore::storage::LocalDir;
use chunkstore::store::Store;
use chunkstore::{Error, Result};

use super::connection::Connection;
use crate::rpc::wire::{Ids, Reply, SessionId};

impl Connection {
    pub(super) async fn publish_partial(self: Arc<Self>, entry: Vec<u8>) -> Result<Reply> {
        let published = self.server.work(move |store| {
            let snapshot = Snapshot::from_entry(EntryId::of(&entry), entry, State::default())?;
            store.session(None)?.publish_partial(&snapshot)
        });
        Ok(Reply::Published(published.await?.encode()))
    }

    pub(super) async fn flush(self: Arc<Self>, session: SessionId) -> Result<Reply> {
        let session = self.session(session)?;
        self.server.work(move |_| session.flush()).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn has(self: Arc<Self>, Ids(ids): Ids) -> Result<Reply> {
        let places = self.server.work(move |store| store.locate(&ids)).await?;
        Ok(Reply::Bits(places.into_iter().map(|place| place.is_some()).collect()))
    }

    pub(super) async fn suspect(self: Arc<Self>, Ids(ids): Ids) -> Result<Reply> {
        let bad = self.server.work(move |store| store.check_suspects(&ids)).await?;
        Ok(Reply::Bits(bad.into_iter().collect()))
    }

    pub(super) async fn boot_order(self: Arc<Self>, snapshot: String, or_nearest: bool) -> Result<Reply> {
        let order = self.server.work(move |store| order_of(store, &snapshot, or_nearest)).await?;
        Ok(Reply::BootOrder(order.map(|order| order.encode())))
    }

    pub(super) async fn put_boot_order(self: Arc<Self>, snapshot: String, order: Vec<u8>) -> Result<Reply> {
        self.server.quota.charge(&self.grant, order.len() as u64)?;
        self.server.work(move |store| put_order(store, &snapshot, &order)).await?;
        Ok(Reply::Done)
    }
}

fn order_of(store: &Store, snapshot: &str, or_nearest: bool) -> Result<Option<BootOrder>> {
    let snapshot = store.catalog().read(&snapshot.parse()?)?;
    let storage = LocalDir::new(store.dir());
    if or_nearest {
        boot_order::nearest(&storage, store.catalog(), &snapshot)
    } else {
        boot_order::read(&storage, snapshot.entry_id())
    }
}

fn put_order(store: &Store, snapshot: &str, order: &[u8]) -> Result<()> {
    let (name, order): (SnapshotName, _) = (snapshot.parse()?, BootOrder::decode(order)?);
    if order.ranges().is_empty() {
        return Err(Error::invalid("a boot order without any range"));
    }
    store.write_boot_order(&name, &order)
}
