//! Access rights: what a token or a client's certificate grants, and how much it may store.
//!
//! A store keeps only hashes of tokens. A token's text exists only at the client, in a file that only its user may read
//! or in the environment; it never appears in messages, logs or `Debug` output.

use std::fmt;

use chunkstore::catalog::ImageName;
use chunkstore::{Error, Result};
use serde::{Deserialize, Serialize};

mod pattern;
mod quota;
mod token;
mod token_file;

pub use pattern::ImagePattern;
pub use quota::Quota;
pub use token::{Token, TokenHash, client_token};
pub(crate) use token::{from_hex, hex};
pub use token_file::{Holder, TokenEntry, TokenFile};

/// The environment variable with a client's token, if no file holds one.
pub const TOKEN_VARIABLE: &str = "VMSTORE_TOKEN";

/// The role of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read snapshots.
    Read,
    /// Push snapshots, and neither read nor remove any.
    Push,
    /// Do everything; with patterns of images, only read and push those.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Push => "push",
            Self::Admin => "admin",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let roles = [Self::Read, Self::Push, Self::Admin];
        let role = roles.into_iter().find(|role| role.to_string() == text);
        role.ok_or_else(|| Error::invalid(format!("not a role: {text:?}: read, push and admin are")))
    }
}

/// The right that a request without an image needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Read some image.
    Read,
    /// Manage the whole store.
    Admin,
    /// Change the store's files directly: the store's own user and root, on this machine.
    Local,
}

/// The rights of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The token's name; none for a client that can change the store's files directly.
    token: Option<String>,
    role: Role,
    images: Vec<ImagePattern>,
    quota_bytes: Option<u64>,
}

impl Grant {
    /// The rights of the store's own user: everything.
    pub fn local() -> Self {
        Self { token: None, role: Role::Admin, images: Vec::new(), quota_bytes: None }
    }

    /// The rights of a token's holder, for images that match these patterns, or for all images if there is none.
    pub fn of_token(name: String, role: Role, images: Vec<ImagePattern>, quota_bytes: Option<u64>) -> Self {
        Self { token: Some(name), role, images, quota_bytes }
    }

    /// Whether the client can change the store's files directly.
    pub fn is_local(&self) -> bool {
        self.token.is_none()
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        self.token.as_deref().unwrap_or("the store's user")
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its quota in stored bytes; unlimited if not given.
    pub fn quota_bytes(&self) -> Option<u64> {
        self.quota_bytes
    }

    /// Whether an image is among those that the grant is for.
    pub fn covers(&self, image: &ImageName) -> bool {
        self.images.is_empty() || self.images.iter().any(|pattern| pattern.matches(image))
    }

    /// Whether it may read the images that it [covers](Self::covers). A stolen push token reveals nothing.
    pub(crate) fn may_read(&self) -> bool {
        self.role != Role::Push
    }

    /// Whether it may push snapshots of some image.
    pub(crate) fn may_push_anything(&self) -> bool {
        self.role >= Role::Push
    }

    /// Whether it may push snapshots of this image.
    pub(crate) fn may_push(&self, image: &ImageName) -> bool {
        self.may_push_anything() && self.covers(image)
    }

    /// Whether it may manage the whole store. A grant that is limited to some images may not.
    pub(crate) fn may_admin(&self) -> bool {
        self.role >= Role::Admin && self.images.is_empty()
    }

    /// Whether it includes a right.
    pub fn has(&self, right: Right) -> bool {
        match right {
            Right::Read => self.may_read(),
            Right::Admin => self.may_admin(),
            Right::Local => self.is_local(),
        }
    }

    /// The mark of the snapshots that it pushes; none for the operator.
    pub fn received_from(&self) -> Option<String> {
        self.token.clone()
    }
}

/// Locks data that is consistent whenever a holder panics.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_images_decide() {
        let (web, db) = ("web01".parse().unwrap(), "db01".parse().unwrap());
        let bound = vec!["web*".parse().unwrap()];
        // (role, images; reads, pushes anything, pushes web, pushes db, is admin)
        let cases = [
            (Role::Read, vec![], [true, false, false, false, false]),
            (Role::Push, vec![], [false, true, true, true, false]),
            (Role::Push, bound.clone(), [false, true, true, false, false]),
            (Role::Admin, vec![], [true, true, true, true, true]),
            (Role::Admin, bound, [true, true, true, false, false]),
        ];
        for (role, images, expected) in cases {
            let grant = Grant::of_token("t".into(), role, images, None);
            let found = [
                grant.may_read(),
                grant.may_push_anything(),
                grant.may_push(&web),
                grant.may_push(&db),
                grant.may_admin(),
            ];
            assert_eq!(found, expected, "{grant:?}");
            assert_eq!((grant.is_local(), grant.received_from().as_deref()), (false, Some("t")));
        }
        let local = Grant::local();
        assert!(local.is_local() && local.may_admin() && local.may_push(&db) && local.received_from().is_none());
    }

    #[test]
    fn roles_are_read_as_shown() {
        for role in [Role::Read, Role::Push, Role::Admin] {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
        }
        assert!(matches!("root".parse::<Role>(), Err(Error::Invalid { .. })));
    }
}
