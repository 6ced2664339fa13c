//! How people refer to a snapshot: `IMAGE`, `IMAGE@latest`, or `IMAGE@TIME` where a unique beginning is enough.

use std::fmt;
use std::str::FromStr;

use super::time::{SHAPE, has_shape};
use super::{ImageName, SnapshotTime, quoted};
use crate::error::{Error, Result};

/// Most candidates that an error message lists.
const CANDIDATES_SHOWN: usize = 5;

/// A reference to one snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Of which image.
    pub image: ImageName,
    /// Which of its snapshots.
    pub at: At,
}

/// Which snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Latest,
    /// The only one whose compact time begins with this, such as `20261120`.
    Prefix(String),
}

impl Selector {
    /// Finds the snapshot that is meant among an image's `times`, in any order.
    ///
    /// # Errors
    /// [`Error::NotFound`], naming what is there instead; [`Error::Invalid`] if several match, naming them.
    pub fn resolve(&self, times: &[SnapshotTime]) -> Result<SnapshotTime> {
        let prefix = match &self.at {
            At::Latest => return times.iter().max().copied().ok_or_else(|| self.not_found(times)),
            At::Prefix(prefix) => prefix,
        };
        let mut matching: Vec<_> = times.iter().copied().filter(|time| time.to_string().starts_with(prefix)).collect();
        matching.sort_unstable();
        matching.dedup();
        match matching[..] {
            [] => Err(self.not_found(times)),
            [time] => Ok(time),
            _ => Err(self.ambiguous(&matching)),
        }
    }

    fn not_found(&self, times: &[SnapshotTime]) -> Error {
        let image = &self.image;
        let Some((oldest, newest)) = times.iter().min().zip(times.iter().max()) else {
            return Error::not_found(format!("snapshot {self} ({image} has no snapshots)"));
        };
        let there = match times.len() {
            1 => format!("{image} has one snapshot, {newest}"),
            count => format!("{image} has {count} snapshots, from {oldest} to {newest}"),
        };
        let nearest = self.nearest(times).filter(|nearest| ![oldest, newest].contains(&nearest));
        let nearest = nearest.map_or_else(String::new, |nearest| format!(", the nearest is {nearest}"));
        Error::not_found(format!("snapshot {self} ({there}{nearest})"))
    }

    /// The snapshot nearest to the first time with the prefix.
    fn nearest(&self, times: &[SnapshotTime]) -> Option<SnapshotTime> {
        let At::Prefix(prefix) = &self.at else { return None };
        let first = format!("{prefix}{}", "00000101T000000Z".get(prefix.len()..)?);
        let wanted = SnapshotTime::from_compact(&first)?.timestamp().as_second();
        times.iter().copied().min_by_key(|time| time.timestamp().as_second().abs_diff(wanted))
    }

    fn ambiguous(&self, matching: &[SnapshotTime]) -> Error {
        let shown: Vec<_> = matching.iter().take(CANDIDATES_SHOWN).map(SnapshotTime::to_string).collect();
        let more = if matching.len() > shown.len() { ", …" } else { "" };
        Error::invalid(format!(
            "{self} could be any of {} snapshots: {}{more}; write more of the time",
            matching.len(),
            shown.join(", ")
        ))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Latest => write!(f, "{}@latest", self.image),
            At::Prefix(prefix) => write!(f, "{}@{prefix}", self.image),
        }
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (image, at) = text.split_once('@').unwrap_or((text, "latest"));
        let image = image.parse()?;
        let at = if at == "latest" { At::Latest } else { At::Prefix(prefix(at)?) };
        Ok(Self { image, at })
    }
}

/// The beginning of a compact time that is meant by `2026-11`, `20261120T02` or a whole time with an offset.
fn prefix(at: &str) -> Result<String> {
    let stripped = at.replace(['-', ':'], "");
    if !stripped.is_empty() && stripped.len() <= SHAPE.len() && has_shape(stripped.as_bytes()) {
        return Ok(stripped);
    }
    // A date alone was taken above as the prefix that it is, so this is a whole time.
    at.parse::<SnapshotTime>().map(|time| time.to_string()).map_err(|_| {
        let at = quoted(at);
        Error::invalid(format!("not a snapshot's time: {at}: write 'latest' or the beginning of 20261120T020000Z"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(texts: &[&str]) -> Vec<SnapshotTime> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn resolve(selector: &str, texts: &[&str]) -> Result<String> {
        selector.parse::<Selector>()?.resolve(&times(texts)).map(|time| time.to_string())
    }

    const NIGHTS: [&str; 4] = ["20261120T020000Z", "20261121T020000Z", "20261121T140000Z", "20251231T020000Z"];

    #[test]
    fn a_unique_beginning_is_enough() {
        let cases = [
            ("web01", "20261121T140000Z"),
            ("web01@latest", "20261121T140000Z"),
            ("web01@2025", "20251231T020000Z"),
            ("web01@20261120", "20261120T020000Z"),
            ("web01@2026-11-20", "20261120T020000Z"),
            ("web01@2026-11-21T14", "20261121T140000Z"),
            ("web01@20261121T0", "20261121T020000Z"),
            ("web01@2026-11-21T14:00:00Z", "20261121T140000Z"),
            ("web01@2026-11-21T15:00:00+01:00", "20261121T140000Z"),
            ("web01@20261121T140000Z", "20261121T140000Z"),
        ];
        for (selector, found) in cases {
            assert_eq!(resolve(selector, &NIGHTS).unwrap(), found, "{selector}");
        }
        assert_eq!(resolve("a@2026", &["2026-01-01", "2026-01-01"]).unwrap(), "20260101T000000Z");
    }

    #[test]
    fn what_is_missing_or_unclear_says_what_is_there() {
        let there = "web01 has 4 snapshots, from 20251231T020000Z to 20261121T140000Z";
        let cases = [
            ("web01@20261122", format!("snapshot web01@20261122 ({there}) not found")),
            ("web01@20269", format!("snapshot web01@20269 ({there}) not found")),
            (
                "web01@20261119",
                format!("snapshot web01@20261119 ({there}, the nearest is 20261120T020000Z) not found"),
            ),
            (
                "web01@2026-11-21",
                "web01@20261121 could be any of 2 snapshots: 20261121T020000Z, 20261121T140000Z; write more of the time"
                    .to_owned(),
            ),
        ];
        for (selector, message) in cases {
            assert_eq!(resolve(selector, &NIGHTS).unwrap_err().to_string(), message);
        }
        let none = resolve("web01", &[]).unwrap_err();
        assert_eq!(none.to_string(), "snapshot web01@latest (web01 has no snapshots) not found");
        let days: Vec<String> = (1..=9).map(|day| format!("2026-11-0{day}")).collect();
        let days: Vec<&str> = days.iter().map(String::as_str).collect();
        let unclear = resolve("web01@2026", &days).unwrap_err().to_string();
        assert!(unclear.contains("any of 9") && unclear.contains("20261105T000000Z, …"), "{unclear}");
    }

    #[test]
    fn what_is_not_a_selector() {
        for bad in [
            "",
            "@latest",
            "web01@",
            "web01@Latest",
            "web01@x",
            "web01@2026112x",
            "web01@20261120T020000Zz",
            "web01@2026T",
            "web01@-",
            "web01@latest@latest",
            "a/b",
            "../a@latest",
            "web01@２０２６",
        ] {
            assert!(matches!(bad.parse::<Selector>(), Err(Error::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn displays_as_read() {
        for text in ["web01@latest", "web01@20261120T02"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }
}
