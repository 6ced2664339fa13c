//! Policies by example and by property.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

fn zone(posix: &str) -> TimeZone {
    TimeZone::posix(posix).unwrap()
}

fn times(texts: &[&str]) -> Vec<SnapshotTime> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn kept(plan: &[(SnapshotTime, Decision)]) -> Vec<SnapshotTime> {
    plan.iter().filter(|(_, decision)| matches!(decision, Decision::Keep(_))).map(|(time, _)| *time).collect()
}

/// One line a snapshot, newest first, such as `20261120T020000Z daily weekly`.
fn shown(plan: &[(SnapshotTime, Decision)]) -> Vec<String> {
    let words = |decision: &Decision| match decision {
        Decision::Keep(reasons) => reasons.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(" "),
        Decision::Remove => "remove".to_owned(),
    };
    plan.iter().map(|(time, decision)| format!("{time} {}", words(decision))).collect()
}

#[test]
fn nightly_backups_of_a_fortnight() {
    let nights: Vec<String> = (1..=14).map(|day| format!("2026-11-{day:02}T02:00:00Z")).collect();
    let nights = times(&nights.iter().map(String::as_str).collect::<Vec<_>>());
    let retention =
        Retention { last: Some(1), daily: Some(2), weekly: Some(2), monthly: Some(9), ..Retention::default() };
    let kept: Vec<_> = shown(&plan(&nights, retention, &TimeZone::UTC));
    let kept: Vec<_> = kept.iter().filter(|line| !line.ends_with("remove")).collect();
    // The 8th of November 2026 is a Sunday, the end of its week.
    let expected = ["20261114T020000Z last daily weekly monthly", "20261113T020000Z daily", "20261108T020000Z weekly"];
    assert_eq!(kept, expected);
}

#[test]
fn periods_without_a_snapshot_do_not_count() {
    let sparse = times(&["2026-11-20", "2026-08-01", "2025-02-03", "2025-02-02"]);
    let plan = plan(&sparse, Retention { daily: Some(3), ..Retention::default() }, &TimeZone::UTC);
    assert_eq!(kept(&plan), sparse[..3]);
}

#[test]
fn without_rules_all_is_kept() {
    let two = times(&["2026-11-20", "2026-11-21", "2026-11-20"]);
    for retention in [Retention::default(), Retention { daily: Some(0), ..Retention::default() }] {
        assert!(retention.is_empty());
        assert_eq!(shown(&plan(&two, retention, &TimeZone::UTC)), ["20261121T000000Z ", "20261120T000000Z "]);
    }
    assert!(plan(&[], Retention { last: Some(1), ..Retention::default() }, &TimeZone::UTC).is_empty());
}

#[test]
fn days_are_those_of_the_time_zone() {
    let evening_and_night = times(&["2026-11-20T22:30:00Z", "2026-11-20T23:30:00Z"]);
    let retention = Retention { daily: Some(9), ..Retention::default() };
    assert_eq!(kept(&plan(&evening_and_night, retention, &TimeZone::UTC)).len(), 1);
    assert_eq!(kept(&plan(&evening_and_night, retention, &zone("CET-1CEST,M3.5.0,M10.5.0/3"))).len(), 2);
}

#[test]
fn an_hour_that_comes_twice_is_two() {
    // In central Europe, on 2026-10-25, clocks went from 3:00 back to 2:00 at 01:00 UTC.
    let hours = times(&["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]);
    let retention = Retention { hourly: Some(9), ..Retention::default() };
    assert_eq!(kept(&plan(&hours, retention, &zone("CET-1CEST,M3.5.0,M10.5.0/3"))).len(), 2);
}

#[test]
fn a_date_that_comes_twice_is_one() {
    // Newfoundland's clocks once went back at 00:01, to 23:01 of the day before.
    let zone = zone("NST3:30NDT2:30,M4.1.0/0:01,M10.5.0/0:01");
    let around = times(&["2026-10-25T02:30:30Z", "2026-10-25T02:45:00Z", "2026-10-25T03:45:00Z"]);
    let dates: Vec<_> = around.iter().map(|time| time.timestamp().to_zoned(zone.clone()).day()).collect();
    assert_eq!(dates, [25, 24, 25]);
    let plan = plan(&around, Retention { daily: Some(9), ..Retention::default() }, &zone);
    assert_eq!(kept(&plan).len(), 2);
}

#[test]
fn weeks_at_new_year_follow_iso_8601() {
    // 2026-12-28 to 2027-01-03 is week 53 of 2026.
    let days = times(&["2027-01-04", "2027-01-03", "2027-01-01", "2026-12-28", "2026-12-27"]);
    let plan = plan(&days, Retention { weekly: Some(9), ..Retention::default() }, &TimeZone::UTC);
    assert_eq!(kept(&plan), times(&["2027-01-04", "2027-01-03", "2026-12-27"]));
}

fn any_times() -> impl Strategy<Value = Vec<SnapshotTime>> {
    // Some two years around one start, in places dense enough for several an hour.
    let second = prop_oneof![1_790_000_000..1_850_000_000i64, 1_793_000_000..1_793_050_000i64];
    let time = second.prop_map(|second| SnapshotTime::new(Timestamp::from_second(second).unwrap()).unwrap());
    prop::collection::vec(time, 0..60)
}

fn any_retention() -> impl Strategy<Value = Retention> {
    let count = || prop::option::of(0..8u32);
    (count(), count(), count(), count(), count(), count()).prop_map(|(last, hourly, daily, weekly, monthly, yearly)| {
        Retention { last, hourly, daily, weekly, monthly, yearly }
    })
}

fn any_zone() -> impl Strategy<Value = TimeZone> {
    prop::sample::select(vec!["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "NST3:30NDT2:30,M4.1.0/0:01,M10.5.0/0:01"])
        .prop_map(zone)
}

/// How many snapshots a rule keeps.
fn count_of(plan: &[(SnapshotTime, Decision)], reason: Reason) -> usize {
    plan.iter().filter(|(_, decision)| matches!(decision, Decision::Keep(reasons) if reasons.contains(&reason))).count()
}

proptest! {
    #[test]
    fn the_newest_is_kept_and_the_plan_is_sorted_and_whole(
        times in any_times(), retention in any_retention(), zone in any_zone(),
    ) {
        let plan = plan(&times, retention, &zone);
        prop_assert!(plan.is_sorted_by(|a, b| a.0 > b.0));
        prop_assert!(times.iter().all(|time| plan.iter().any(|(planned, _)| planned == time)));
        prop_assert_eq!(kept(&plan).first().copied(), times.iter().max().copied());
    }

    #[test]
    fn a_second_plan_keeps_all_for_the_same_reasons(
        times in any_times(), retention in any_retention(), zone in any_zone(),
    ) {
        let first = plan(&times, retention, &zone);
        let again = plan(&kept(&first), retention, &zone);
        let expected: Vec<_> = first.into_iter().filter(|(_, decision)| *decision != Decision::Remove).collect();
        prop_assert_eq!(again, expected);
    }

    #[test]
    fn each_rule_keeps_its_count_or_all_its_periods(
        times in any_times(), retention in any_retention(), zone in any_zone(),
    ) {
        let plan = plan(&times, retention, &zone);
        for (reason, count) in retention.rules() {
            let periods: HashSet<_> = times.iter().map(|time| Period::of(reason, *time, &zone)).collect();
            let expected = periods.len().min(count as usize);
            prop_assert!(retention.is_empty() || count_of(&plan, reason) == expected);
        }
    }

    #[test]
    fn a_higher_count_keeps_at_least_as_much(
        times in any_times(), retention in any_retention(), more in 1..5u32, zone in any_zone(),
    ) {
        prop_assume!(!retention.is_empty());
        let raise = |count: Option<u32>| count.map(|count| count + more);
        let larger = Retention { daily: raise(retention.daily), monthly: raise(retention.monthly), ..retention };
        let larger = kept(&plan(&times, larger, &zone));
        prop_assert!(kept(&plan(&times, retention, &zone)).iter().all(|time| larger.contains(time)));
    }

    #[test]
    fn a_new_snapshot_is_kept(times in any_times(), retention in any_retention(), zone in any_zone()) {
        prop_assume!(!retention.is_empty());
        let newest = SnapshotTime::new(Timestamp::from_second(1_900_000_000).unwrap()).unwrap();
        let with_newest: Vec<_> = times.iter().copied().chain([newest]).collect();
        prop_assert!(kept(&plan(&with_newest, retention, &zone)).contains(&newest));
    }
}
