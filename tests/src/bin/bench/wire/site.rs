//! Bytes and round trips between two sites without a limit on the link: what has to be said, and what is said besides.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::server::Server;
use super::{push, push_new};
use crate::files;
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

/// Images of the site, oldest first, and their times.
const NIGHTS: [(&str, &str); 3] = [
    ("site-base.raw", "20260101T020000Z"),
    ("site-day1.raw", "20260102T020000Z"),
    ("site-day2.raw", "20260103T020000Z"),
];
/// When the second day's image is there again.
const UNCHANGED_TIME: &str = "20260104T020000Z";

const FIRST: &str = "site installed from the base, wire bytes part of non-zero bytes";
const NEXT: &str = "site's next day, wire bytes part of non-zero bytes";
const UNCHANGED: &str = "site's unchanged night, wire bytes";
const UNCHANGED_TRIPS: &str = "site's unchanged night, round trips";
const PRESENT: &str = "snapshot that is there, wire bytes";
const PRESENT_TRIPS: &str = "snapshot that is there, round trips";

/// Images of a store of a thousand snapshots, and nights of each.
const SMALL_IMAGES: u64 = 20;
const SMALL_NIGHTS: u64 = 50;
const SMALL_BYTES: u64 = 256 << 10;

fn snapshot_of(time: &str) -> String {
    format!("web01@{time}")
}

/// The image of a day; 0 is what it was installed from.
pub(super) fn image(bench: &Bench, day: usize) -> PathBuf {
    bench.images.join(NIGHTS[day].0)
}

/// A day's snapshot in the store that `source` makes.
pub(super) fn snapshot(day: usize) -> String {
    snapshot_of(NIGHTS[day].1)
}

/// A store with all nights of the site.
pub(super) fn source(bench: &mut Bench) -> Result<PathBuf> {
    let store = bench.new_store("site")?;
    for (image, time) in NIGHTS {
        bench.ingest(&store, &bench.images.join(image), time)?;
    }
    bench.ingest(&store, &image(bench, 2), UNCHANGED_TIME)?;
    Ok(store)
}

/// A production image to a site that has what it was installed from, its next day, and nothing new.
pub(super) fn rows(bench: &mut Bench) -> Result<Vec<Row>> {
    let nonzero_bytes = files::nonzero_bytes(&image(bench, 1))? as f64;
    let store = source(bench)?;
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("site, round {}", round + 1);
        site_round(bench, &mut samples, &store)?;
    }
    let median = |what| samples.median(what, "vmstore");
    let part = |what, limit| Row::new(what, median(what), "B").part_of(nonzero_bytes).target(Target::AtMost(limit));
    let at_most = |what, unit, limit| Row::new(what, median(what), unit).target(Target::AtMost(limit));
    Ok(vec![
        part(FIRST, 0.14),
        part(NEXT, 0.012),
        at_most(UNCHANGED, "B", 4096.0),
        at_most(UNCHANGED_TRIPS, "trips", 3.0),
        at_most(PRESENT, "B", 4096.0),
        at_most(PRESENT_TRIPS, "trips", 3.0),
    ])
}

fn site_round(bench: &mut Bench, samples: &mut Samples, store: &Path) -> Result<()> {
    let server = Server::start(bench, "site-remote")?;
    let remote = server.remote().clone();
    let send = |bench: &mut Bench, snapshot: &str| push_new(bench, store, &remote, snapshot);
    let mut add = |what, value| samples.add(what, "vmstore", value);
    send(bench, &snapshot(0))?;
    add(FIRST, send(bench, &snapshot(1))?.wire_bytes_sent as f64);
    add(NEXT, send(bench, &snapshot(2))?.wire_bytes_sent as f64);
    let unchanged = send(bench, &snapshot_of(UNCHANGED_TIME))?;
    add(UNCHANGED, unchanged.wire_bytes());
    add(UNCHANGED_TRIPS, unchanged.round_trips as f64);
    let present = push(bench, store, &remote, &[&snapshot_of(UNCHANGED_TIME)])?;
    ensure!(present.snapshots_sent.is_empty() && present.snapshots_present == 1, "{present:?}");
    add(PRESENT, present.wire_bytes());
    add(PRESENT_TRIPS, present.round_trips as f64);
    server.stop(bench).map(drop)
}

/// `push --all` of a thousand snapshots that are all there.
pub(super) fn many_snapshots(bench: &mut Bench) -> Result<Vec<Row>> {
    const WHAT: &str = "a thousand snapshots that are there";
    let store = bench.new_store("many")?;
    eprintln!("{WHAT}");
    for night in 0..SMALL_NIGHTS {
        ingest_small_images(bench, &store, night)?;
    }
    let server = Server::start(bench, "many-remote")?;
    let remote = server.remote().clone();
    let count = (SMALL_IMAGES * SMALL_NIGHTS) as usize;
    let sent = push(bench, &store, &remote, &["--all"])?;
    ensure!(sent.snapshots_sent.len() == count, "{} of {count} snapshots were sent", sent.snapshots_sent.len());
    let again = push(bench, &store, &remote, &["--all"])?;
    ensure!(again.snapshots_sent.is_empty() && again.snapshots_present == count as u64, "{again:?}");
    server.stop(bench)?;
    Ok(vec![
        Row::new(format!("{WHAT}, wire bytes"), again.wire_bytes(), "B").target(Target::AtMost(16_384.0)),
        Row::new(format!("{WHAT}, round trips"), again.round_trips as f64, "trips"),
    ])
}

/// One night of all small images. A command ingests them all, because each opens the store.
fn ingest_small_images(bench: &mut Bench, store: &Path, night: u64) -> Result<()> {
    let mut args = Vec::new();
    for image in 0..SMALL_IMAGES {
        let file = bench.path(&format!("small-{image}.raw"));
        tests::images::make(&file, SMALL_BYTES, night * SMALL_IMAGES + image);
        args.push(file.into_os_string());
    }
    for image in 0..SMALL_IMAGES {
        args.extend(["--image".into(), format!("small{image}").into()]);
    }
    // One a month, from the year 2001 on.
    args.extend(["--time".into(), format!("{}{:02}01T020000Z", 2001 + night / 12, 1 + night % 12).into()]);
    bench.vmstore(store, "ingest", args).map(drop)
}

/// The whole image without a limit, and then one changed block of it.
pub(super) fn one_block(bench: &mut Bench) -> Result<Vec<Row>> {
    let store = bench.new_store("block")?;
    let image = bench.path("block.raw");
    files::copy_sparse(&bench.images.join("day1.raw"), &image)?;
    bench.ingest(&store, &image, NIGHTS[0].1)?;
    let whole = whole_image(bench, &store)?;
    files::edit(&image, 1, 1)?;
    bench.ingest(&store, &image, NIGHTS[1].1)?;
    files::remove(&image)?;
    let server = Server::start(bench, "block-remote")?;
    let remote = server.remote().clone();
    push_new(bench, &store, &remote, &snapshot(0))?;
    let block = push_new(bench, &store, &remote, &snapshot(1))?;
    server.stop(bench)?;
    Ok(vec![
        Row::new("8 GiB image over a veth pair, records", whole, "B/s").target(Target::AtLeast(600e6)),
        Row::new("one changed block of 8 GiB, wire bytes", block.wire_bytes(), "B").target(Target::AtMost(32_768.0)),
        Row::new("one changed block of 8 GiB, round trips", block.round_trips as f64, "trips"),
    ])
}

/// Bytes of records a second, to an empty site.
fn whole_image(bench: &mut Bench, store: &Path) -> Result<f64> {
    const WHAT: &str = "records a second over a veth pair";
    let mut samples = Samples::default();
    for _ in 0..bench.runs {
        let server = Server::start(bench, "block-remote")?;
        let remote = server.remote().clone();
        files::warm_tree(&store.join("packs"))?;
        let report = push_new(bench, store, &remote, &snapshot(0))?;
        samples.add(WHAT, "vmstore", report.record_bytes as f64 / report.elapsed_s);
        server.stop(bench)?;
    }
    Ok(samples.median(WHAT, "vmstore"))
}
