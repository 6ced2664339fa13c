//! The cost of replication: bytes and round trips between two sites, how busy it keeps a link, and what hosts share.
//!
//! Sites are stores with a server of their own in another network namespace, reached over TLS. Where a link matters, it
//! is `tests::wan`'s, and rsync and restic go through the same one in the same round.

mod fleet;
mod link;
mod peers;
mod server;
mod sessions;
mod site;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tests::netns::Network;

use self::server::Remote;
use crate::run::Bench;
use crate::table::Row;

/// The fields of `push --json` that are judged here.
#[derive(Clone, Debug, Deserialize)]
struct Report {
    snapshots_sent: Vec<String>,
    snapshots_present: u64,
    /// Bytes of the protocol in all, without the hand-shake.
    wire_bytes_sent: u64,
    wire_bytes_received: u64,
    /// Bytes of records among those that were sent.
    record_bytes: u64,
    round_trips: u64,
    elapsed_s: f64,
}

impl Report {
    fn parse(stdout: &[u8]) -> Result<Self> {
        serde_json::from_slice(stdout).context("push --json does not print the report that was agreed on")
    }

    /// Bytes both ways.
    fn wire_bytes(&self) -> f64 {
        (self.wire_bytes_sent + self.wire_bytes_received) as f64
    }
}

/// All measurements of replication.
pub(crate) fn wire(bench: &mut Bench) -> Result<Vec<Row>> {
    bench.make_images("fleet")?;
    let network = Arc::new(Network::new(2));
    bench.network = Some(Arc::clone(&network));
    let rows = network.within(0, || on_two_machines(bench));
    bench.network = None;
    rows
}

fn on_two_machines(bench: &mut Bench) -> Result<Vec<Row>> {
    let mut rows = site::rows(bench)?;
    rows.extend(site::many_snapshots(bench)?);
    rows.extend(site::one_block(bench)?);
    rows.extend(link::rows(bench)?);
    rows.extend(peers::rows(bench)?);
    rows.extend(fleet::rows(bench)?);
    rows.extend(sessions::rows(bench)?);
    Ok(rows)
}

/// Pushes what `what` names and says what that took.
fn push(bench: &mut Bench, store: &Path, remote: &Remote, what: &[&str]) -> Result<Report> {
    let args: Vec<_> = remote.args().into_iter().chain(what.iter().map(Into::into)).collect();
    let report = Report::parse(&bench.vmstore(store, "push", args)?.stdout)?;
    eprintln!(
        "  push {}: {} snapshots, {} bytes sent, {} received, {} round trips, {:.3} s",
        what.join(" "),
        report.snapshots_sent.len(),
        report.wire_bytes_sent,
        report.wire_bytes_received,
        report.round_trips,
        report.elapsed_s
    );
    Ok(report)
}

/// Pushes exactly one snapshot that the other side lacks.
fn push_new(bench: &mut Bench, store: &Path, remote: &Remote, snapshot: &str) -> Result<Report> {
    let report = push(bench, store, remote, &[snapshot])?;
    ensure!(report.snapshots_sent.len() == 1, "{snapshot} was not sent: {report:?}");
    Ok(report)
}

/// Ingests a file as this image.
fn ingest_as(bench: &mut Bench, store: &Path, source: &Path, image: &str) -> Result<()> {
    let args = [source.as_os_str(), OsStr::new("--image"), OsStr::new(image)];
    bench.vmstore(store, "ingest", args).map(drop)
}
