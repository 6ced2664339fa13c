//! The answers to what a mount with an upstream asks: for partial snapshots, for records that it could not read, and for
//! boot orders.

use chunkstore::catalog::boot_order::{self, BootOrder};
use chunkstore::catalog::{Snapshot, SnapshotName, State};
use chunkstore::format::EntryId;
use chunkstore::storage::LocalDir;
use chunkstore::store::Store;
use chunkstore::{Error, Result};

use super::connection::Connection;
use crate::rpc::wire::{Ids, Reply, Request};

impl Connection {
    pub(super) async fn of_partial(&self, request: Request) -> Result<Reply> {
        match request {
            Request::PublishPartial { entry } => {
                let published = self.server.work(move |store| {
                    let snapshot = Snapshot::from_entry(EntryId::of(&entry), entry, State::default())?;
                    store.session(None)?.publish_partial(&snapshot)
                });
                Ok(Reply::Published(published.await?.encode()))
            }
            Request::Flush { session } => {
                let session = self.session(session)?;
                self.server.work(move |_| session.flush()).await?;
                Ok(Reply::Done)
            }
            Request::Has { ids: Ids(ids) } => {
                let places = self.server.work(move |store| store.places(&ids)).await?;
                Ok(Reply::Bits(places.into_iter().map(|place| place.is_some()).collect()))
            }
            Request::Suspect { ids: Ids(ids) } => {
                let bad = self.server.work(move |store| store.check_suspects(&ids)).await?;
                Ok(Reply::Bits(bad.into_iter().collect()))
            }
            Request::BootOrder { snapshot, or_nearest } => {
                let order = self.server.work(move |store| order_of(store, &snapshot, or_nearest)).await?;
                Ok(Reply::BootOrder(order.map(|order| order.encode())))
            }
            Request::PutBootOrder { snapshot, order } => {
                self.server.quota.charge(&self.grant, order.len() as u64)?;
                self.server.work(move |store| put_order(store, &snapshot, &order)).await?;
                Ok(Reply::Done)
            }
            _ => unreachable!("others are answered elsewhere"),
        }
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
