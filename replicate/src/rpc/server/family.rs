//! Request families: requests that this crate does not know, and that code registered by the owner's program answers.
//!
//! So crates above `replicate` are served by the owner without being imported here.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use chunkstore::{Error, Result};
use tokio::task::JoinSet;

use super::connection::Connection;
use super::rights;
use crate::rpc::auth::{Grant, Right};
use crate::rpc::wire::Reply;

/// The answer to a request of a family, in the family's own encoding.
pub type FamilyAnswer = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

/// A family of requests.
pub trait RequestFamily: Send + Sync {
    /// Its name on the wire.
    fn name(&self) -> &'static str;

    /// The right that every request of the family needs.
    fn right(&self) -> Right;

    /// Answers a request. The future is dropped when the client disconnects. `grant` has the client's rights, for
    /// checks that depend on the request.
    fn answer(&self, grant: &Grant, body: Bytes) -> FamilyAnswer;
}

/// The families that an owner serves.
#[derive(Clone, Default)]
pub struct Families(Vec<Arc<dyn RequestFamily>>);

impl Families {
    /// Adds a family.
    ///
    /// # Panics
    /// If a family of this name is registered already.
    #[must_use]
    pub fn with(mut self, family: Arc<dyn RequestFamily>) -> Self {
        assert!(self.0.iter().all(|other| other.name() != family.name()), "{} is registered twice", family.name());
        self.0.push(family);
        self
    }

    fn find(&self, name: &str) -> Result<&Arc<dyn RequestFamily>> {
        let found = self.0.iter().find(|family| family.name() == name);
        found.ok_or_else(|| Error::refused(format!("the store's owner has no requests of family {name:.64}")))
    }
}

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|family| family.name())).finish()
    }
}

impl Connection {
    pub(super) async fn family(self: Arc<Self>, number: u32, name: String, body: Vec<u8>) -> Result<Reply> {
        let family = self.server.options.families.find(&name)?;
        if !self.grant.has(family.right()) {
            return Err(rights::denied(&self.grant, &format!("use {name}")));
        }
        // On a task of its own, so that a panic becomes an error; aborted when this one is dropped.
        let mut answering = JoinSet::new();
        answering.spawn(family.answer(&self.grant, body.into()));
        let answered = answering.join_next().await.expect("one was spawned");
        let answer = answered.unwrap_or_else(|_| Err(super::failed()))?;
        self.report(number, answer).await
    }
}
