//! Six hosts that push at once what they have in common: each distinct chunk should cross the link once.

use std::path::PathBuf;
use std::thread;

use anyhow::{Result, ensure};
use tests::wan::{Direction, Link, Proxy};

use super::link::MBIT;
use super::server::Server;
use super::{Report, ingest_as, push};
use crate::files::stored_bytes;
use crate::run::Bench;
use crate::table::{Row, Target};

const HOSTS: u64 = 6;
const GUESTS: [char; 4] = ['a', 'b', 'c', 'd'];
const RTT_MS: u64 = 50;

/// Bytes of all hosts at once, compared with the union of their chunks and with what each would send alone.
pub(super) fn rows(bench: &mut Bench) -> Result<Vec<Row>> {
    eprintln!("fleet");
    let stores = (1..=HOSTS).map(|host| host_store(bench, host)).collect::<Result<Vec<_>>>()?;
    let union_bytes = union_bytes(bench)? as f64;
    let alone_bytes = alone_bytes(bench, &stores)? as f64;
    let together = together(bench, &stores)?;
    let sent = |what: &str| Row::new(format!("six hosts at once, {what}"), together.sent_bytes as f64, "B");
    Ok(vec![
        sent("wire bytes part of the union as stored").part_of(union_bytes).target(Target::AtMost(1.03)),
        sent("wire bytes part of the sum of each alone").part_of(alone_bytes).target(Target::AtMost(0.5)),
        Row::new("six hosts at once, share of time the link was busy", together.busy, ""),
    ])
}

fn image_of(bench: &Bench, host: u64, guest: char) -> PathBuf {
    bench.images.join(format!("fleet-host{host}-{guest}.raw"))
}

/// A store with a host's guests.
fn host_store(bench: &mut Bench, host: u64) -> Result<PathBuf> {
    let store = bench.new_store(&format!("host{host}"))?;
    for guest in GUESTS {
        ingest_as(bench, &store, &image_of(bench, host, guest), &format!("host{host}-{guest}"))?;
    }
    Ok(store)
}

/// The size of one store of all guests of all hosts.
fn union_bytes(bench: &mut Bench) -> Result<u64> {
    let store = bench.new_store("union")?;
    let empty_bytes = stored_bytes(&store)?;
    for host in 1..=HOSTS {
        for guest in GUESTS {
            ingest_as(bench, &store, &image_of(bench, host, guest), &format!("host{host}-{guest}"))?;
        }
    }
    Ok(stored_bytes(&store)? - empty_bytes)
}

/// The sum of what each host sends to an empty site.
fn alone_bytes(bench: &mut Bench, stores: &[PathBuf]) -> Result<u64> {
    let mut bytes = 0;
    for store in stores {
        let server = Server::start(bench, "alone-remote")?;
        let remote = server.remote().clone();
        bytes += all_sent(&push(bench, store, &remote, &["--all"])?)?;
        server.stop(bench)?;
    }
    Ok(bytes)
}

/// Bytes of a push that had to send every guest.
fn all_sent(report: &Report) -> Result<u64> {
    ensure!(report.snapshots_sent.len() == GUESTS.len(), "not all guests were sent: {report:?}");
    Ok(report.wire_bytes_sent)
}

struct Together {
    sent_bytes: u64,
    busy: f64,
}

/// All hosts at once through one link to one empty site.
fn together(bench: &mut Bench, stores: &[PathBuf]) -> Result<Together> {
    let server = Server::start(bench, "together-remote")?;
    let proxy = Proxy::start(Link::of(MBIT, RTT_MS), server.remote().address())?;
    let args = server.remote().via(proxy.address()).args();
    let commands = stores.iter().map(|store| {
        let mut command = bench.command(store, "push");
        command.args(&args).arg("--all");
        command
    });
    let commands: Vec<_> = commands.collect();
    let outputs: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = commands.into_iter().map(|mut command| scope.spawn(move || command.output())).collect();
        running.into_iter().map(|thread| thread.join().expect("it only waits for a child")).collect()
    });
    let mut sent_bytes = 0;
    for output in outputs {
        let output = output?;
        ensure!(output.status.success(), "a push failed: {}", String::from_utf8_lossy(&output.stderr));
        sent_bytes += all_sent(&Report::parse(&output.stdout)?)?;
    }
    let busy = proxy.usage(Direction::Up).busy().unwrap_or(f64::NAN);
    server.stop(bench)?;
    Ok(Together { sent_bytes, busy })
}
