//! The order in which a guest first reads a snapshot travels along, so that the next site can boot it as fast. It is
//! only a hint: that it can't be had fails nothing.

use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::{Error, Result};
use tokio::task::JoinHandle;

use super::plan::Item;
use crate::rpc::client::Client;

/// Asks for a snapshot's order while its records travel.
pub(super) fn begin(source: &Client, item: &Item) -> JoinHandle<Result<Option<BootOrder>>> {
    let (source, name) = (source.clone(), item.name.clone());
    tokio::spawn(async move { source.boot_order(&name, false).await })
}

/// Brings it, if there is one.
pub(super) async fn bring(order: JoinHandle<Result<Option<BootOrder>>>, sink: &Client, item: &Item) {
    let brought = match order.await {
        Ok(Ok(Some(order))) => sink.put_boot_order(&item.name, &order).await,
        Ok(Ok(None)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    };
    match brought {
        // One of the stores does not know of orders, or may not be told.
        Ok(()) | Err(Error::Invalid { .. } | Error::Denied { .. }) => {}
        Err(error) => tracing::warn!("{}: its boot order did not travel: {error}", item.name),
    }
}
