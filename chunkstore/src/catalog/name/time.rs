//! The time of a snapshot: UTC, in whole seconds, with one text form that sorts as the times do.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::quoted;
use crate::error::{Error, Result};

/// Letters stand for themselves, `0` for any digit.
pub(super) const SHAPE: &[u8; 16] = b"00000000T000000Z";

/// When a snapshot was taken, from 1970 to 9999. Written `20261120T020000Z` (ISO 8601, basic format).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotTime(Timestamp);

impl SnapshotTime {
    /// This time, cut to the second.
    ///
    /// # Errors
    /// [`Error::Invalid`] before 1970.
    pub fn new(timestamp: Timestamp) -> Result<Self> {
        let whole = Timestamp::from_second(timestamp.as_second()).ok().filter(|_| timestamp >= Timestamp::UNIX_EPOCH);
        whole.map(Self).ok_or_else(|| Error::invalid(format!("a snapshot can't be of {timestamp}, before 1970")))
    }

    /// Reads the compact form, and nothing else.
    pub fn from_compact(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != SHAPE.len() || !has_shape(digits) {
            return None;
        }
        let number = |from: usize, to: usize| digits[from..to].iter().fold(0, |n, &d| n * 10 + i16::from(d - b'0'));
        let small = |from: usize| number(from, from + 2) as i8;
        let civil = DateTime::new(number(0, 4), small(4), small(6), small(9), small(11), small(13), 0).ok()?;
        Self::new(TimeZone::UTC.to_timestamp(civil).ok()?).ok()
    }

    /// The time as a timestamp.
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}

/// Whether these bytes could begin a time's compact form.
pub(super) fn has_shape(prefix: &[u8]) -> bool {
    let fits = |(byte, shape): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
    prefix.len() <= SHAPE.len() && prefix.iter().zip(SHAPE).all(fits)
}

impl fmt::Display for SnapshotTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.strftime("%Y%m%dT%H%M%SZ").to_string())
    }
}

impl FromStr for SnapshotTime {
    type Err = Error;

    /// Reads `20261120T020000Z`, RFC 3339 such as `2026-11-20T02:00:00+01:00`, or a date, which means its midnight UTC.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(time) = Self::from_compact(text) {
            return Ok(time);
        }
        let rfc3339 = || text.parse::<Timestamp>().ok();
        let midnight = || TimeZone::UTC.to_timestamp(date(text)?.at(0, 0, 0, 0)).ok();
        let timestamp = rfc3339().or_else(midnight).ok_or_else(|| {
            let text = quoted(text);
            Error::invalid(format!("not a time: {text}: write 20261120T020000Z, 2026-11-20T02:00:00Z or 2026-11-20"))
        })?;
        Self::new(timestamp)
    }
}

/// Exactly `YYYY-MM-DD`: jiff alone would also take a time of day without a zone, and drop it.
fn date(text: &str) -> Option<Date> {
    text.parse().ok().filter(|_| text.len() == "2026-11-20".len())
}

impl TryFrom<String> for SnapshotTime {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::from_compact(&text)
            .ok_or_else(|| Error::invalid(format!("not a snapshot's time such as 20261120T020000Z: {}", quoted(&text))))
    }
}

impl From<SnapshotTime> for String {
    fn from(time: SnapshotTime) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_ways_to_write_a_time() {
        let cases = [
            ("20261120T020000Z", "20261120T020000Z"),
            ("2026-11-20T02:00:00Z", "20261120T020000Z"),
            ("2026-11-20T02:00:00.999Z", "20261120T020000Z"),
            ("2026-11-20T02:00:00+01:00", "20261120T010000Z"),
            ("2026-11-20T23:30:00-01:00", "20261121T003000Z"),
            ("20261120T0200Z", "20261120T020000Z"),
            ("2026-11-20", "20261120T000000Z"),
            ("1970-01-01", "19700101T000000Z"),
            ("20240229T235959Z", "20240229T235959Z"),
            ("9999-12-30T00:00:00Z", "99991230T000000Z"),
        ];
        for (text, compact) in cases {
            assert_eq!(text.parse::<SnapshotTime>().unwrap().to_string(), compact, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time() {
        let bad = [
            "",
            "latest",
            "2026",
            "2026-11",
            "20261120",
            "20261120T020000",
            "20261320T020000Z",
            "20230229T000000Z",
            "20261120T240000Z",
            "19691231T235959Z",
            "1969-12-31T23:59:59.5Z",
            "-0001-01-01",
            "2026-11-20T02:00:00",
            "2026-11-20 ",
            "tomorrow",
            "２０２６1120T020000Z",
            "+2026-11-2",
        ];
        for text in bad {
            assert!(matches!(text.parse::<SnapshotTime>(), Err(Error::Invalid { .. })), "{text}");
        }
        assert!(serde_json::from_str::<SnapshotTime>("\"2026-11-20\"").is_err());
    }

    proptest! {
        #[test]
        fn text_sorts_and_reads_back_as_the_time(a in 0..253_402_000_000i64, b in 0..253_402_000_000i64) {
            let [a, b] = [a, b].map(|second| SnapshotTime::new(Timestamp::from_second(second).unwrap()).unwrap());
            prop_assert_eq!(SnapshotTime::from_compact(&a.to_string()), Some(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            let json = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<SnapshotTime>(&json).unwrap(), a);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,24}") {
            let _ = text.parse::<SnapshotTime>();
        }
    }
}
