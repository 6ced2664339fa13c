//! Sends a snapshot's boot order along, so that the next site can boot it as fast. It is only a hint: if it can't be
//! read or stored, nothing else fails.

use chunkstore::catalog::boot_order::BootOrder;
use chunkstore::{Error, Result};
use tokio::task::JoinHandle;

use super::plan::Item;
use crate::rpc::client::Client;

/// Requests a snapshot's boot order while its records are sent.
pub(super) fn begin(source: &Client, item: &Item) -> JoinHandle<Result<Option<BootOrder>>> {
    let (source, name) = (source.clone(), item.name.clone());
    tokio::spawn(async move { source.boot_order(&name, false).await })
}

/// Stores it at the receiver, if there is one.
pub(super) async fn bring(order: JoinHandle<Result<Option<BootOrder>>>, sink: &Client, item: &Item) {
    let brought = match order.await {
        Ok(Ok(Some(order))) => sink.put_boot_order(&item.name, &order).await,
        Ok(Ok(None)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    };
    match brought {
        // One of the stores is too old for boot orders, or refuses them.
        Ok(()) | Err(Error::Invalid { .. } | Error::Denied { .. }) => {}
        Err(error) => tracing::warn!("{}: its boot order was not copied: {error}", item.name),
    }
}
