//! Arguments of commands, and messages from other processes of the machine.

use std::collections::BTreeSet;

use chunkstore::catalog::SnapshotTime;
use chunkstore::catalog::retention::{Decision, Reason, Retention, plan};
use jiff::tz::TimeZone;

use super::Verdict;

/// Values of options, a line each: sizes, times to wait, time zones. Times of snapshots among them are pruned,
/// by the rules that the plain numbers are, in the last of the time zones.
pub fn options(bytes: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(bytes) else { return Verdict::Refused };
    let mut accepted = false;
    for line in text.lines() {
        accepted |= cli::fuzzing::option_value(line);
    }
    let times: Vec<SnapshotTime> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let mut counts = text.lines().filter_map(|line| line.parse().ok());
    let retention = Retention {
        last: counts.next(),
        hourly: counts.next(),
        daily: counts.next(),
        weekly: counts.next(),
        monthly: counts.next(),
        yearly: counts.next(),
    };
    let zone = text.lines().rev().find_map(|line| TimeZone::get(line).ok());
    prune(&times, retention, &zone.unwrap_or(TimeZone::UTC));
    Verdict::when(accepted || !times.is_empty())
}

fn prune(times: &[SnapshotTime], retention: Retention, zone: &TimeZone) {
    let decisions = plan(times, retention, zone);
    let newest_first: Vec<_> = times.iter().copied().collect::<BTreeSet<_>>().into_iter().rev().collect();
    assert!(decisions.iter().map(|(time, _)| *time).eq(newest_first.iter().copied()), "each is decided about once");
    let kept = |by| {
        let is_kept = |(_, decision): &&(_, Decision)| matches!(decision, Decision::Keep(why) if why.contains(&by));
        decisions.iter().filter(is_kept).count()
    };
    let Retention { last, hourly, daily, weekly, monthly, yearly } = retention;
    assert_eq!(kept(Reason::Last), newest_first.len().min(last.unwrap_or(0) as usize));
    for (reason, count) in [
        (Reason::Hourly, hourly),
        (Reason::Daily, daily),
        (Reason::Weekly, weekly),
        (Reason::Monthly, monthly),
        (Reason::Yearly, yearly),
    ] {
        let most = newest_first.len().min(count.unwrap_or(0) as usize);
        assert!(kept(reason) <= most && (most == 0 || kept(reason) > 0), "{reason:?}");
    }
    let is_removed = |(_, decision): &(_, Decision)| *decision == Decision::Remove;
    assert!(!retention.is_empty() || !decisions.iter().any(is_removed), "without a rule nothing is removed");
}

/// A mount's `.vmfs/status.json`, which another user may serve.
pub fn mount_status(bytes: &[u8]) -> Verdict {
    Verdict::when(str::from_utf8(bytes).is_ok_and(cli::fuzzing::mount_status))
}

/// An owner's report of a job.
pub fn reports(json: &[u8]) -> Verdict {
    Verdict::when(cli::fuzzing::report(json))
}
