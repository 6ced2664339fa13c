//! What a client may ask for. One function decides, before anything is done.

use chunkstore::name::{ImageName, Selector, SnapshotName};
use chunkstore::{Error, Result};

use crate::auth::Grant;
use crate::wire::{Names, Purpose, Request};

fn denied(grant: &Grant, what: &str) -> Error {
    Error::Denied { what: format!("{} may not {what} here", grant.name()) }
}

/// Checks a request against what its client may do. Requests about a session need no more than the session.
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
        | Request::Has { .. }
        | Request::Suspect { .. } => grant.may_admin(),
        // Who can't open the packs has no use for them.
        Request::Places { .. } | Request::BaseIds { .. } => grant.is_local(),
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
        | Request::Flush { .. }
        | Request::End { .. }
        | Request::Claim { .. }
        | Request::Await { .. }
        | Request::Full { .. }
        | Request::Publish { .. }
        | Request::Lacks { .. } => true,
    };
    if allowed { Ok(()) } else { Err(denied(grant, what(request))) }
}

fn what(request: &Request) -> &'static str {
    match request {
        Request::Begin { purpose: Purpose::Ingest, .. } | Request::Bases { .. } => "ingest",
        Request::Begin { purpose: Purpose::Receive, .. } => "push",
        Request::Do(_) | Request::PublishPartial { .. } | Request::Suspect { .. } => "manage the store",
        Request::Leave => "end the owner",
        Request::Places { .. } | Request::BaseIds { .. } => "read packs",
        _ => "read",
    }
}

fn image_of(snapshot: &str) -> Result<ImageName> {
    Ok(snapshot.parse::<SnapshotName>()?.image)
}

/// A push may build on what it could have pushed.
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
        // Only what it may read is selected.
        Names::All => Ok(()),
        Names::Image(image) => check_image(grant, &image.parse()?),
        Names::Selectors(selectors) => {
            selectors.iter().try_for_each(|selector| check_image(grant, &selector.parse::<Selector>()?.image))
        }
    }
}
