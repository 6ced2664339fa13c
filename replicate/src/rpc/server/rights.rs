//! The rights that each request needs. One function decides, before anything is done.

use chunkstore::catalog::{ImageName, Selector, SnapshotName};
use chunkstore::{Error, Result};

use crate::rpc::auth::Grant;
use crate::rpc::wire::{Names, Purpose, Request};

pub(super) fn denied(grant: &Grant, what: &str) -> Error {
    Error::Denied { what: format!("{} may not {what} here", grant.name()) }
}

/// Checks a request against its client's grant. Requests of a session need only the session.
///
/// # Errors
/// [`Error::Denied`], naming what was denied.
pub(super) fn check(grant: &Grant, request: &Request) -> Result<()> {
    let allowed = match request {
        Request::Begin { purpose: Purpose::Ingest, .. }
        | Request::Bases { .. }
        | Request::Do(_)
        | Request::Leave
        | Request::PublishPartial { .. }
        // Each creates packs, however small.
        | Request::Flush { .. }
        | Request::Has { .. }
        | Request::Suspect { .. } => grant.may_admin(),
        // They are useless to clients that can't open the packs.
        Request::Locate { .. } | Request::BaseIds { .. } | Request::Reserve { .. } | Request::AppendWritten { .. } => {
            grant.is_local()
        }
        Request::Begin { purpose: Purpose::Receive, snapshot, .. } => {
            return check_parent(grant, snapshot.as_deref());
        }
        Request::Begin { purpose: Purpose::Read, snapshot, .. } => {
            return check_read(grant, snapshot.as_deref());
        }
        Request::Get { .. } => grant.may_read(),
        Request::Select { names, .. } => return check_select(grant, names),
        Request::BootOrder { snapshot, .. } => return check_read(grant, Some(snapshot)),
        Request::PutBootOrder { snapshot, .. } => return check_push(grant, &image_of(snapshot)?),
        Request::Attach { .. }
        | Request::End { .. }
        | Request::Claim { .. }
        | Request::Await { .. }
        | Request::Full { .. }
        | Request::Publish { .. }
        | Request::Lacks { .. }
        // The family decides.
        | Request::Family { .. } => true,
    };
    if allowed { Ok(()) } else { Err(denied(grant, what(request))) }
}

fn what(request: &Request) -> &'static str {
    match request {
        Request::Begin { purpose: Purpose::Ingest, .. } | Request::Bases { .. } => "ingest",
        Request::Begin { purpose: Purpose::Receive, .. } => "push",
        Request::Do(_) | Request::PublishPartial { .. } | Request::Flush { .. } | Request::Suspect { .. } => {
            "manage the store"
        }
        Request::Leave => "end the owner",
        Request::Locate { .. } | Request::BaseIds { .. } => "read packs",
        Request::Reserve { .. } | Request::AppendWritten { .. } => "write packs",
        _ => "read",
    }
}

fn image_of(snapshot: &str) -> Result<ImageName> {
    Ok(snapshot.parse::<SnapshotName>()?.image)
}

/// A push may use a parent that it could have pushed.
fn check_parent(grant: &Grant, parent: Option<&str>) -> Result<()> {
    if !grant.may_push_anything() {
        return Err(denied(grant, "push"));
    }
    parent.map_or(Ok(()), |parent| check_push(grant, &image_of(parent)?))
}

/// Checks that a snapshot of this image may be published.
///
/// # Errors
/// [`Error::Denied`].
pub(super) fn check_push(grant: &Grant, image: &ImageName) -> Result<()> {
    if grant.may_push(image) { Ok(()) } else { Err(denied(grant, &format!("push image {image}"))) }
}

fn check_read(grant: &Grant, snapshot: Option<&str>) -> Result<()> {
    if !grant.may_read() {
        return Err(denied(grant, "read"));
    }
    snapshot.map_or(Ok(()), |snapshot| check_image(grant, &image_of(snapshot)?))
}

fn check_image(grant: &Grant, image: &ImageName) -> Result<()> {
    if grant.covers(image) { Ok(()) } else { Err(denied(grant, &format!("read image {image}"))) }
}

fn check_select(grant: &Grant, names: &Names) -> Result<()> {
    if !grant.may_read() {
        return Err(denied(grant, "read"));
    }
    match names {
        // Only snapshots that it may read are selected.
        Names::All => Ok(()),
        Names::Image(image) => check_image(grant, &image.parse()?),
        Names::Selectors(selectors) => {
            selectors.iter().try_for_each(|selector| check_image(grant, &selector.parse::<Selector>()?.image))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chunkstore::format::{ChunkId, PackId};
    use chunkstore::pack::{Class, Extent};

    use super::*;
    use crate::rpc::auth::Role;
    use crate::rpc::wire::{
        Fetch, ForStream, Ids, Job, Prefixes, Resemblance, ReservedExtent, SessionId, SessionSecret,
    };

    const OWN: &str = "web01@20261120T020000Z";
    const OTHERS: &str = "db01@20261120T020000Z";

    /// Who may send a request; an administrator limited to some images counts as a reader and a pusher.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Who {
        All,
        Readers,
        Pushers,
        Admins,
        Local,
    }

    /// Every request; those that name images name one of the client's own.
    fn requests(snapshot: &str) -> Vec<Request> {
        let (session, ids) = (SessionId(1), Ids(vec![ChunkId::of(b"x").into()]));
        let (image, snapshot) = (snapshot.split_once('@').unwrap().0.to_owned(), snapshot.to_owned());
        let begin = |purpose| Request::Begin { session, purpose, snapshot: Some(snapshot.clone()) };
        let select = |names| Request::Select { names, have: Prefixes::default() };
        let (have, like) = (Prefixes::default(), vec![Resemblance::Sketch(1)]);
        let room = Extent { pack: PackId { number: 1, tag: 1 }, class: Class::Data, offset: 64, bytes: 1 };
        vec![
            begin(Purpose::Ingest),
            begin(Purpose::Receive),
            begin(Purpose::Read),
            Request::Attach { session, secret: SessionSecret([0; 16]) },
            Request::End { session },
            Request::Claim { session, ids: ids.clone() },
            Request::Await { session },
            Request::Full { ids: ids.clone() },
            Request::Bases { session, like: like.clone() },
            Request::Publish { session, entry: Vec::new(), report: None },
            Request::Get { ids: ids.clone(), fetch: Fetch::Stored },
            Request::Lacks { prefixes: have },
            select(Names::Image(image)),
            select(Names::Selectors(vec![snapshot.clone()])),
            Request::Do(Job::Stats { threads: 1 }),
            Request::Leave,
            Request::Locate { ids: ids.clone() },
            Request::BaseIds { session, like },
            Request::PublishPartial { entry: Vec::new() },
            Request::Flush { session },
            Request::Has { ids: ids.clone() },
            Request::Suspect { ids },
            Request::BootOrder { snapshot: snapshot.clone(), or_nearest: true },
            Request::PutBootOrder { snapshot, order: Vec::new() },
            Request::Reserve { session, class: 1, bytes: 1 },
            Request::AppendWritten { session, extent: ReservedExtent::from(room), headers: Vec::new() },
            Request::Family { name: "disks".into(), body: Vec::new() },
        ]
    }

    /// Who may send this, and whether only for the grant's images. A new request does not compile without a line.
    fn expected(request: &Request) -> (Who, bool) {
        match request {
            Request::Attach { .. }
            | Request::End { .. }
            | Request::Claim { .. }
            | Request::Await { .. }
            | Request::Full { .. }
            | Request::Publish { .. }
            | Request::Lacks { .. }
            | Request::Family { .. } => (Who::All, false),
            Request::Get { .. } => (Who::Readers, false),
            Request::Begin { purpose: Purpose::Read, .. } | Request::Select { .. } | Request::BootOrder { .. } => {
                (Who::Readers, true)
            }
            Request::Begin { purpose: Purpose::Receive, .. } | Request::PutBootOrder { .. } => (Who::Pushers, true),
            Request::Begin { purpose: Purpose::Ingest, .. }
            | Request::Bases { .. }
            | Request::Do(_)
            | Request::Leave
            | Request::PublishPartial { .. }
            | Request::Flush { .. }
            | Request::Has { .. }
            | Request::Suspect { .. } => (Who::Admins, false),
            Request::Locate { .. }
            | Request::BaseIds { .. }
            | Request::Reserve { .. }
            | Request::AppendWritten { .. } => (Who::Local, false),
        }
    }

    #[test]
    fn every_request_is_for_whom_it_is_for() {
        let token = |role, images: &[&str]| {
            let images = images.iter().map(|image| image.parse().unwrap()).collect();
            Grant::of_token("t".into(), role, images, None)
        };
        let clients: [(Grant, bool, &[Who]); 6] = [
            (token(Role::Read, &[]), false, &[Who::All, Who::Readers]),
            (token(Role::Read, &["web*"]), true, &[Who::All, Who::Readers]),
            (token(Role::Push, &["web*"]), true, &[Who::All, Who::Pushers]),
            (token(Role::Admin, &["web*"]), true, &[Who::All, Who::Readers, Who::Pushers]),
            (token(Role::Admin, &[]), false, &[Who::All, Who::Readers, Who::Pushers, Who::Admins]),
            (Grant::local(), false, &[Who::All, Who::Readers, Who::Pushers, Who::Admins, Who::Local]),
        ];
        for (grant, is_bound, may) in &clients {
            for (snapshot, is_own) in [(OWN, true), (OTHERS, false)] {
                for request in requests(snapshot) {
                    let (who, of_images) = expected(&request);
                    let allowed = may.contains(&who) && (is_own || !is_bound || !of_images);
                    match check(grant, &request) {
                        Ok(()) => assert!(allowed, "{grant:?}: {request:?}"),
                        Err(Error::Denied { .. }) => assert!(!allowed, "{grant:?}: {request:?}"),
                        Err(error) => panic!("{grant:?}: {request:?}: {error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn no_request_is_left_out_here() {
        // The first byte of a request tells which it is.
        let kinds: BTreeSet<u8> = requests(OWN).iter().map(|request| request.to_bytes()[0]).collect();
        let next = kinds.len() as u8;
        assert!(kinds.into_iter().eq(0..next));
        let unknown = |len: usize| Request::from_bytes(&[&[next][..], &vec![0; len]].concat()).is_err();
        assert!((0..64).all(unknown), "a request was added");
    }
}
