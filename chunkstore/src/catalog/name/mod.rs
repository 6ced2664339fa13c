//! Names of images and snapshots, and how a command line refers to them.
//!
//! Names become file names and are sent by other machines, so a name that exists as a value here is safe as one
//! part of a path: no `/`, no leading dot, no control characters, no colon (QEMU reads `a:b` as a protocol).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod selector;
mod time;

pub use selector::{At, Selector};
pub use time::SnapshotTime;

/// Longest name of an image.
const IMAGE_NAME_BYTES_MAX: usize = 128;

/// The name of an image: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::try_from(name.to_owned())
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let starts_well = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && name.len() <= IMAGE_NAME_BYTES_MAX && name.bytes().all(allowed) {
            return Ok(Self(name));
        }
        Err(Error::invalid(format!(
            "not an image's name: {}: 1 to {IMAGE_NAME_BYTES_MAX} letters, digits, '.', '_' or '-' are allowed, \
             the first a letter or digit",
            quoted(&name)
        )))
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl AsRef<str> for ImageName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of a snapshot, written `web01@20261120T020000Z`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName {
    /// Of which image.
    pub image: ImageName,
    /// Of which time.
    pub time: SnapshotTime,
}

impl SnapshotName {
    /// The name of an image's snapshot of this time.
    pub fn new(image: ImageName, time: SnapshotTime) -> Self {
        Self { image, time }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.image, self.time)
    }
}

impl FromStr for SnapshotName {
    type Err = Error;

    /// Reads exactly what is displayed; see [`Selector`] for what people write.
    fn from_str(name: &str) -> Result<Self> {
        let (image, time) = name
            .split_once('@')
            .ok_or_else(|| Error::invalid(format!("not a snapshot's name: {}: it has no '@'", quoted(name))))?;
        let time = SnapshotTime::from_compact(time).ok_or_else(|| {
            let name = quoted(name);
            Error::invalid(format!("not a snapshot's name: {name}: its time must look like 20261120T020000Z"))
        })?;
        Ok(Self { image: image.parse()?, time })
    }
}

/// Text for an error message: on one line, and cut if it is long.
fn quoted(text: &str) -> String {
    const CHARS_MAX: usize = 160;
    let mut shown: String = text.chars().take(CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names() {
        for good in ["a", "0", "web01", "Web-01.disk_0", "a..b", &"x".repeat(128)] {
            let name: ImageName = good.parse().unwrap();
            assert_eq!(name.to_string(), good);
            assert_eq!(serde_json::from_str::<ImageName>(&serde_json::to_string(&name).unwrap()).unwrap(), name);
        }
        let long = "x".repeat(300);
        for bad in ["", ".", "..", ".a", "-a", "_a", "a/b", "../a", "a\n", "a b", "a@b", "a:b", "ä", "a\0", &long] {
            let error = bad.parse::<ImageName>().unwrap_err().to_string();
            assert!(error.contains("letters, digits") && !error.contains('\n') && error.len() < 400, "{error}");
            assert!(serde_json::from_str::<ImageName>(&serde_json::to_string(bad).unwrap()).is_err());
        }
    }

    #[test]
    fn snapshot_names() {
        let name: SnapshotName = "web01@20261120T020000Z".parse().unwrap();
        assert_eq!(name.to_string(), "web01@20261120T020000Z");
        assert_eq!(name, SnapshotName::new("web01".parse().unwrap(), "2026-11-20T02:00:00Z".parse().unwrap()));
        for bad in ["", "web01", "web01@", "web01@latest", "@20261120T020000Z", "web01@2026-11-20T02:00:00Z"] {
            assert!(matches!(bad.parse::<SnapshotName>(), Err(Error::Invalid { .. })), "{bad}");
        }
        for bad in ["a/b@20261120T020000Z", "web01@20261120T020000Z ", "web01@@20261120T020000Z"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }
}
