//! Memory of the server and of its clients while 64 sessions are open.

use std::path::PathBuf;
use std::thread;

use anyhow::{Result, ensure};
use tests::measured;
use tests::wan::{Link, Proxy};

use super::ingest_as;
use super::server::Server;
use crate::files;
use crate::run::Bench;
use crate::table::{Row, Target};

const SESSIONS: u64 = 64;
const IMAGE_BYTES: u64 = 16 << 20;
/// So narrow that the first session lasts until the last one has begun.
const MBIT: u64 = 200;
const RTT_MS: u64 = 20;

/// Pushes from 64 stores at once. The server's memory is among the peaks that are reported of every command.
pub(super) fn rows(bench: &mut Bench) -> Result<Vec<Row>> {
    eprintln!("sessions");
    let stores = (0..SESSIONS).map(|n| small_store(bench, n)).collect::<Result<Vec<_>>>()?;
    let server = Server::start(bench, "sessions-remote")?;
    let proxy = Proxy::start(Link::of(MBIT, RTT_MS), server.remote().address())?;
    let args = server.remote().via(proxy.address()).args();
    let commands = stores.iter().map(|store| {
        let mut command = bench.command(store, "push");
        command.args(&args).arg("--all");
        command
    });
    let commands: Vec<_> = commands.collect();
    let ended: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            commands.into_iter().map(|mut command| scope.spawn(move || measured(&mut command))).collect();
        running.into_iter().map(|thread| thread.join().expect("it only waits for a child")).collect()
    });
    let mut client_bytes = 0;
    for ended in ended {
        ensure!(ended.status.success(), "a push ended with {}", ended.status);
        client_bytes = ended.peak_bytes.max(client_bytes);
    }
    let most = proxy.most_connections();
    ensure!(most as u64 >= SESSIONS, "only {most} connections were open at once");
    let server_bytes = server.stop(bench)?;
    let row = |what: &str, bytes: u64| {
        let what = format!("{SESSIONS} sessions open, memory of {what}");
        Row::new(what, bytes as f64, "B").target(Target::AtMost(300e6))
    };
    Ok(vec![row("the server", server_bytes), row("a client", client_bytes)])
}

/// A store of one image that no other store has.
fn small_store(bench: &mut Bench, number: u64) -> Result<PathBuf> {
    let store = bench.new_store(&format!("session{number}"))?;
    let image = bench.path("session.raw");
    tests::images::make(&image, IMAGE_BYTES, 1000 + number);
    ingest_as(bench, &store, &image, &format!("session{number}"))?;
    files::remove(&image)?;
    Ok(store)
}
