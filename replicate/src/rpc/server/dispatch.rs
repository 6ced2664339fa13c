//! Decodes each request once and selects the method that answers it.

use std::sync::Arc;

use chunkstore::{Error, Result};

use super::connection::{Connection, Turn};
use super::rights;
use crate::rpc::wire::{ForStream, Frame, Kind, Request, split_session};

impl Connection {
    /// Decodes a frame and checks its client's rights. The returned work has not started.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the frame is no request; [`Error::Denied`].
    #[expect(clippy::needless_pass_by_value, reason = "the payload is freed as soon as it is decoded")]
    pub(super) fn dispatch(self: &Arc<Self>, frame: Frame) -> Result<Turn> {
        match frame.kind {
            Kind::Records => {
                let (session, records) = split_session(&frame.payload).map_err(Error::invalid)?;
                Ok(Turn::any(Arc::clone(self).put(session, records)))
            }
            Kind::Request => {
                let request = Request::from_bytes(&frame.payload).map_err(Error::invalid)?;
                rights::check(&self.grant, &request)?;
                Ok(self.dispatch_request(frame.request, request))
            }
            _ => Err(Error::invalid("a frame that only answers have")),
        }
    }

    fn dispatch_request(self: &Arc<Self>, number: u32, request: Request) -> Turn {
        let this = Arc::clone(self);
        match request {
            Request::Begin { session, purpose, snapshot } => Turn::next(this.begin(session, purpose, snapshot)),
            Request::Attach { session, secret } => Turn::next(this.attach(session, secret)),
            Request::End { session } => Turn::any(this.end_session(session)),
            Request::Claim { session, ids } => Turn::any(this.claim(number, session, ids)),
            Request::Await { session } => Turn::any(this.await_claims(session)),
            Request::Full { ids } => Turn::any(this.full(ids)),
            Request::Bases { session, like } => Turn::any(this.bases(number, session, like)),
            Request::Publish { session, entry, report } => Turn::any(this.publish(session, entry, report)),
            Request::Get { ids, fetch } => Turn::any(this.get(number, ids, fetch)),
            Request::Lacks { prefixes } => Turn::any(this.lacks(prefixes)),
            Request::Select { names, have } => Turn::any(this.select(number, names, have)),
            Request::Do(job) => Turn::any(this.run(number, job)),
            Request::Leave => Turn::any(this.leave()),
            Request::Locate { ids } => Turn::any(this.locate(ids)),
            Request::BaseIds { session, like } => Turn::any(this.base_ids(session, like)),
            Request::PublishPartial { entry } => Turn::any(this.publish_partial(entry)),
            Request::Flush { session } => Turn::any(this.flush(session)),
            Request::Has { ids } => Turn::any(this.has(ids)),
            Request::Suspect { ids } => Turn::any(this.suspect(ids)),
            Request::BootOrder { snapshot, or_nearest } => Turn::any(this.boot_order(snapshot, or_nearest)),
            Request::PutBootOrder { snapshot, order } => Turn::any(this.put_boot_order(snapshot, order)),
            Request::Family { name, body } => Turn::any(this.family(number, name, body)),
            Request::Reserve { session, class, bytes } => Turn::any(this.reserve(session, class, bytes)),
            Request::AppendWritten { session, extent, headers } => {
                Turn::any(this.append_written(session, extent, headers))
            }
        }
    }
}
