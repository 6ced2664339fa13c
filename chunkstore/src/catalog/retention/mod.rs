//! Which snapshots of one image a retention policy keeps. Pure: it knows times, not stores.
//!
//! Each rule keeps the newest snapshot of each of its N latest periods that have one, independently of the other
//! rules; what no rule keeps is to be removed. Periods are those of a time zone's calendar.

use std::collections::{BTreeMap, HashSet};

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Serialize};

use crate::catalog::name::SnapshotTime;

#[cfg(test)]
mod tests;

/// How many snapshots each rule keeps; `None` and 0 are no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// The newest N.
    #[serde(rename = "keep_last", skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// The newest of each of the N latest hours that have one.
    #[serde(rename = "keep_hourly", skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// Of each of N days.
    #[serde(rename = "keep_daily", skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// Of each of N weeks, from Monday to Sunday (ISO 8601).
    #[serde(rename = "keep_weekly", skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// Of each of N months.
    #[serde(rename = "keep_monthly", skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// Of each of N years.
    #[serde(rename = "keep_yearly", skip_serializing_if = "Option::is_none")]
    pub yearly: Option<u32>,
}

impl Retention {
    /// Whether there is no rule, which keeps everything.
    pub fn is_empty(&self) -> bool {
        self.rules().iter().all(|(_, count)| *count == 0)
    }

    fn rules(&self) -> [(Reason, u32); 6] {
        [
            (Reason::Last, self.last),
            (Reason::Hourly, self.hourly),
            (Reason::Daily, self.daily),
            (Reason::Weekly, self.weekly),
            (Reason::Monthly, self.monthly),
            (Reason::Yearly, self.yearly),
        ]
        .map(|(reason, count)| (reason, count.unwrap_or(0)))
    }
}

/// The decision about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Kept by these rules; by none only if there are no rules at all.
    Keep(Vec<Reason>),
    /// Kept by no rule.
    Remove,
}

/// The rule that keeps a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// One of the newest.
    Last,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
}

impl Reason {
    /// The word for it, as in `kept: daily, weekly`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

/// Decides about an image's snapshots, given in any order; the answer is sorted from the newest to the oldest.
pub fn plan(times: &[SnapshotTime], retention: Retention, zone: &TimeZone) -> Vec<(SnapshotTime, Decision)> {
    let mut newest_first = times.to_vec();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    newest_first.dedup();
    if retention.is_empty() {
        return newest_first.into_iter().map(|time| (time, Decision::Keep(Vec::new()))).collect();
    }
    let mut reasons: BTreeMap<SnapshotTime, Vec<Reason>> = BTreeMap::new();
    for (reason, count) in retention.rules() {
        for time in kept_by(reason, count, &newest_first, zone) {
            reasons.entry(time).or_default().push(reason);
        }
    }
    let mut decide = |time: SnapshotTime| reasons.remove(&time).map_or(Decision::Remove, Decision::Keep);
    newest_first.into_iter().map(|time| (time, decide(time))).collect()
}

fn kept_by(reason: Reason, count: u32, newest_first: &[SnapshotTime], zone: &TimeZone) -> Vec<SnapshotTime> {
    // A set, not only the previous period: a date comes twice where clocks go back over midnight.
    let mut periods = HashSet::new();
    let newest_of_period = newest_first.iter().filter(|time| periods.insert(Period::of(reason, **time, zone)));
    newest_of_period.take(count as usize).copied().collect()
}

/// One period of a rule.
#[derive(PartialEq, Eq, Hash)]
enum Period {
    Snapshot(SnapshotTime),
    /// With its offset: where clocks go back, an hour comes twice and counts as two.
    Hour(DateTime, Offset),
    Day(Date),
    /// Year and week of ISO 8601, where the days around New Year may belong to the other year.
    Week(i16, i8),
    Month(i16, i8),
    Year(i16),
}

impl Period {
    fn of(reason: Reason, time: SnapshotTime, zone: &TimeZone) -> Self {
        let local = time.timestamp().to_zoned(zone.clone());
        let date = local.date();
        match reason {
            Reason::Last => Self::Snapshot(time),
            Reason::Hourly => Self::Hour(date.at(local.hour(), 0, 0, 0), local.offset()),
            Reason::Daily => Self::Day(date),
            Reason::Weekly => Self::Week(date.iso_week_date().year(), date.iso_week_date().week()),
            Reason::Monthly => Self::Month(date.year(), date.month()),
            Reason::Yearly => Self::Year(date.year()),
        }
    }
}
