//! Whether what was measured is flat, and follows the policy.

use std::sync::atomic::Ordering;

use crate::samples::{Kind, Panel, Samples, Series};
use crate::{SITES, Soak, nights};

/// In a run of fewer nights the second quarter is still of stores that fill: it says nothing of a trend.
const TREND_NIGHTS_MIN: u64 = 4 * nights::FULL_AFTER;
/// The part of a run after which stores are judged.
const WARM: f64 = 1.0 / 3.0;
/// Most bytes in packs for each distinct plain byte of the snapshots, after a collection.
const STORED_FOR_LIVE_MAX: f64 = 1.2;
/// No process may ever have more resident.
const MEMORY_MB_MAX: f64 = 300.0;

impl Kind {
    /// How much the last quarter may be above the second one: a factor, and on top of it so much.
    fn growth_max(self) -> (f64, f64) {
        match self {
            Self::Memory => (1.15, 10.0),
            Self::Descriptors => (1.25, 16.0),
            Self::Threads => (1.25, 4.0),
            Self::Store => (1.5, 32.0),
            Self::Index => (1.5, 16.0),
        }
    }
}

/// Says what is not as it should be.
pub(crate) fn judge(soak: &Soak, samples: &Samples) -> Vec<String> {
    let mut trouble = Vec::new();
    let nights = soak.nights.load(Ordering::SeqCst);
    if nights >= TREND_NIGHTS_MIN {
        let lines = samples.seen().iter().flat_map(|panel| panel.series.iter().map(move |series| (panel, series)));
        trouble.extend(lines.filter_map(|(panel, series)| trend(panel, series)));
    } else {
        println!("{nights} nights are too few to judge a trend, which takes {TREND_NIGHTS_MIN}");
    }
    let memory = samples.seen().iter().filter(|panel| panel.kind == Kind::Memory).flat_map(|panel| &panel.series);
    for series in memory {
        let most = series.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        if most > MEMORY_MB_MAX {
            trouble.push(format!("{} had {most:.0} MB resident", series.name));
        }
    }
    trouble.extend(outgrown(soak));
    trouble
}

/// Whether a series has grown.
fn trend(panel: &Panel, series: &Series) -> Option<String> {
    let end_s = series.points.last()?.0;
    let within = |from: f64, to: f64| {
        let points = series.points.iter().filter(|(at_s, _)| (from * end_s..=to * end_s).contains(at_s));
        median(points.map(|(_, value)| *value).collect())
    };
    let (second, last) = (within(0.25, 0.5), within(0.75, 1.0));
    let (factor, spare) = panel.kind.growth_max();
    println!("{}, {}: {second:.1}, in the end {last:.1}", panel.title, series.name);
    (last > second * factor + spare)
        .then(|| format!("{}, {}: grew from {second:.1} to {last:.1}", panel.title, series.name))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Whether the first store takes more than its policy keeps.
fn outgrown(soak: &Soak) -> Option<String> {
    let collected = soak.collected.lock().unwrap();
    let warm_s = collected.last()?.at_s * WARM;
    let ratio = |packs_bytes: u64, live_bytes: u64| packs_bytes as f64 / live_bytes.max(1) as f64;
    let ratios = collected.iter().filter(|collected| collected.at_s >= warm_s);
    let most = ratios.map(|collected| ratio(collected.packs_bytes, collected.live_bytes)).fold(0.0, f64::max);
    println!("{}: at most {most:.2} bytes in packs for a plain byte of a snapshot", SITES[0]);
    (most > STORED_FOR_LIVE_MAX).then(|| format!("the first store took {most:.2} bytes for a plain byte of a snapshot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend_of(kind: Kind, value: impl Fn(f64) -> f64) -> Option<String> {
        let points = (0..600).map(|second| (f64::from(second), value(f64::from(second)))).collect();
        let series = Series { name: "owner".to_owned(), points };
        trend(&Panel { title: "some", kind, series: Vec::new() }, &series)
    }

    #[test]
    fn what_grows_is_noticed_and_what_is_flat_is_not() {
        let warms_up = |at_s: f64| 80.0 * (at_s / 100.0).min(1.0);
        assert_eq!(trend_of(Kind::Memory, warms_up), None);
        assert_eq!(
            trend_of(Kind::Memory, |at_s| if (at_s as u64).is_multiple_of(7) { 400.0 } else { 80.0 }),
            None,
            "peaks"
        );
        assert!(trend_of(Kind::Memory, |at_s| 40.0 + at_s / 10.0).is_some(), "6 MB a minute");
        assert!(trend_of(Kind::Descriptors, |at_s| 20.0 + at_s / 10.0).is_some(), "6 a minute");
        assert!(trend_of(Kind::Threads, |at_s| 10.0 + at_s / 20.0).is_some(), "3 a minute");
    }
}
