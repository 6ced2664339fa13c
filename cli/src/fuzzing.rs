//! Private decoders, for the fuzz targets in `tests/src/fuzz` only.
//!
//! Each returns whether it accepted its input, and panics if an accepted value does not survive a round trip, or can't
//! be shown.

use std::fmt::Debug;
use std::time::Instant;

use chunkstore::catalog::IngestReport;
use chunkstore::maintenance::repair::RepairReport;
use chunkstore::maintenance::verify::VerifyReport;
use fusefs::mounts::{Mount, TYPE};
use fusefs::status::Status;
use jiff::SignedDuration;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::commands::repair::Report;
use crate::commands::{gc, prune, stats, verify};
use crate::size;
use crate::snapshot_view::lines_of;
use crate::terminal::output::fields;
use crate::vmfs::mount::duration;
use crate::vmfs::probe::{Probed, understand};
use crate::vmfs::status;

/// The value of an option: a size, a duration, a time zone.
pub fn option_value(text: &str) -> bool {
    let size = size::parse(text);
    if let Ok(bytes) = size {
        assert_eq!(size::parse(&bytes.to_string()), Ok(bytes));
        assert_eq!(size::parse_u32(text).ok(), u32::try_from(bytes).ok());
        assert_eq!(size::parse_positive(text).map_or(0, u64::from), bytes);
    }
    let time = duration(text);
    if let Ok(time) = time {
        assert!(Instant::now().checked_add(time).is_some());
        let displayed = SignedDuration::try_from(time).expect("it was one").to_string();
        assert_eq!(duration(&displayed), Ok(time), "{text:?} is displayed as {displayed:?}");
    }
    size.is_ok() || time.is_ok() || prune::parse_zone(text).is_ok()
}

/// The status of a mount, which `vmfs status` turns into text.
pub fn mount_status(told: &str) -> bool {
    let probed = understand(told, "");
    let accepted = matches!(probed, Probed::Well(_));
    if let Probed::Well(status) = &probed {
        survives::<Status>(status);
    }
    let [mountpoint, source] = ["/mnt/vm", "/srv/vmstore"].map(Into::into);
    let mount = Mount { mountpoint, device: "0:53".to_owned(), kind: TYPE.to_owned(), source };
    let text = status::text(&status::view(mount, probed));
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    accepted
}

/// The report of a job by a store's owner, as JSON.
pub fn report(json: &[u8]) -> bool {
    let repair = |report: &RepairReport| {
        let mut rounds = Report::default();
        rounds.add(report.clone());
        rounds.add(report.clone());
        rounds.to_text()
    };
    // All of them are tried.
    [
        shown(json, gc::to_text),
        shown(json, stats::to_text),
        shown(json, |report: &VerifyReport| verify::complaint(report) + &verify::summary(report)),
        shown(json, repair),
        shown(json, |report: &IngestReport| fields(&lines_of(report))),
    ]
    .contains(&true)
}

fn shown<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8], to_text: impl Fn(&T) -> String) -> bool {
    let Ok(report) = serde_json::from_slice(json) else { return false };
    survives(&report);
    assert!(to_text(&report).ends_with('\n'));
    true
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(told: &T) {
    let again = serde_json::to_vec(told).expect("all keys are strings");
    assert_eq!(&serde_json::from_slice::<T>(&again).expect("it was just encoded"), told);
}
