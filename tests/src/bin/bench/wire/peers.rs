//! The next day of the site through one link, compared with rsync onto yesterday's copy and `restic copy` between
//! repositories.
//!
//! rsync speaks to its own daemon, restic to an SFTP server, both without ssh, which would only cost them. Bytes are
//! the link's, both ways, so that they count what each protocol adds.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::wan::{Direction, Link, Proxy};

use super::link::MBIT;
use super::server::Server;
use super::{push_new, site};
use crate::files;
use crate::run::{Bench, Samples};
use crate::table::Row;

const RTT_MS: u64 = 50;
const TIME: &str = "next day over the link, time";
const BYTES: &str = "next day over the link, bytes";
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A child that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes and time of each tool, the same change through the same link.
pub(super) fn rows(bench: &mut Bench) -> Result<Vec<Row>> {
    let store = site::source(bench)?;
    let restic = Restic::new(bench)?;
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("peers, round {}", round + 1);
        vmstore(bench, &mut samples, &store)?;
        rsync(bench, &mut samples)?;
        restic.copy(bench, &mut samples)?;
    }
    let mut rows = Vec::new();
    for tool in ["rsync", "restic"] {
        let time = Row::new(format!("{TIME}, times faster than {tool}"), samples.median(TIME, "vmstore"), "s");
        rows.push(time.times_better_than(samples.median(TIME, tool)));
        let bytes = Row::new(format!("{BYTES}, part of {tool}'s"), samples.median(BYTES, "vmstore"), "B");
        rows.push(bytes.part_of(samples.median(BYTES, tool)));
    }
    Ok(rows)
}

fn proxy_to(target: SocketAddr) -> Result<Proxy> {
    Proxy::start(Link::of(MBIT, RTT_MS), target).context("cannot start the proxy")
}

/// Adds what a tool took.
fn add(samples: &mut Samples, tool: &'static str, elapsed_s: f64, proxy: &Proxy) {
    let bytes = [Direction::Up, Direction::Down].map(|direction| proxy.usage(direction).bytes);
    samples.add(TIME, tool, elapsed_s);
    samples.add(BYTES, tool, (bytes[0] + bytes[1]) as f64);
}

fn vmstore(bench: &mut Bench, samples: &mut Samples, store: &Path) -> Result<()> {
    let server = Server::start(bench, "peers-remote")?;
    push_new(bench, store, server.remote(), &site::snapshot(1))?;
    let proxy = proxy_to(server.remote().address())?;
    let args = server.remote().via(proxy.address()).args();
    let sample = bench.vmstore(store, "push", args.into_iter().chain([site::snapshot(2).into()]))?;
    add(samples, "vmstore", sample.elapsed_s, &proxy);
    server.stop(bench).map(drop)
}

/// `rsync -z --inplace` of the whole image onto the copy of the day before.
fn rsync(bench: &mut Bench, samples: &mut Samples) -> Result<()> {
    let dir = bench.path("rsync");
    fs::create_dir_all(&dir)?;
    let copy = dir.join("disk.raw");
    files::remove(&copy)?;
    files::copy_sparse(&site::image(bench, 1), &copy)?;
    let (daemon, address) = rsync_daemon(&dir)?;
    let proxy = proxy_to(address)?;
    let mut command = Command::new("rsync");
    command.args(["-z", "--inplace", "--no-whole-file", "--ignore-times"]).arg(site::image(bench, 2));
    command.arg(format!("rsync://{}/disk/disk.raw", proxy.address()));
    let sample = bench.measure(&mut command)?;
    add(samples, "rsync", sample.elapsed_s, &proxy);
    drop(daemon);
    files::ensure_same(&site::image(bench, 2), &copy)?;
    files::remove(&copy)
}

/// A daemon that takes files into a directory.
fn rsync_daemon(dir: &Path) -> Result<(Running, SocketAddr)> {
    let config = dir.join("rsyncd.conf");
    // Without these ids it would become the user nobody when root starts it.
    let ids = if rustix::process::getuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
    fs::write(&config, format!("use chroot = no\n{ids}[disk]\npath = {}\nread only = no\n", dir.display()))?;
    // It can't be asked for a free port; this one was, and is unlikely to be taken in the meantime.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new("rsync");
    command.args(["--daemon", "--no-detach", "--address=127.0.0.1"]).arg(format!("--port={}", address.port()));
    command.arg("--config").arg(config).stdin(Stdio::null());
    let daemon = Running(command.spawn().context("cannot run rsync --daemon")?);
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        ensure!(started.elapsed() < START_TIMEOUT, "rsync --daemon does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    Ok((daemon, address))
}

/// Two repositories, the one with both days.
struct Restic {
    from: PathBuf,
    to: PathBuf,
    cache: PathBuf,
    /// The snapshots of both days.
    days: [String; 2],
}

impl Restic {
    fn new(bench: &mut Bench) -> Result<Self> {
        let path = |name: &str| bench.path(name);
        let (from, to, cache) = (path("restic-from"), path("restic-to"), path("restic-peer-cache"));
        let mut restic = Self { from, to, cache, days: [String::new(), String::new()] };
        bench.measure(restic.command(&restic.from).arg("init"))?;
        let disk = bench.path("restic-disk.raw");
        for day in [1, 2] {
            files::link(&site::image(bench, day), &disk)?;
            let backup = bench.measure(restic.command(&restic.from).args(["backup", "--json"]).arg(&disk))?;
            restic.days[day - 1] = snapshot_id(&backup.stdout)?;
        }
        files::remove(&disk)?;
        Ok(restic)
    }

    fn command(&self, repository: impl Into<OsString>) -> Command {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", "bench").env("RESTIC_FROM_PASSWORD", "bench");
        command.env("RESTIC_CACHE_DIR", &self.cache).arg("--repo").arg(repository.into());
        command
    }

    /// Copies a day from the one repository to the other.
    fn copying(&self, repository: impl Into<OsString>, day: usize) -> Command {
        let mut command = self.command(repository);
        command.arg("copy").arg("--from-repo").arg(&self.from).arg(&self.days[day - 1]);
        command
    }

    fn copy(&self, bench: &mut Bench, samples: &mut Samples) -> Result<()> {
        if self.to.exists() {
            fs::remove_dir_all(&self.to)?;
        }
        let init = ["init", "--copy-chunker-params", "--from-repo"];
        bench.measure(self.command(&self.to).args(init).arg(&self.from))?;
        bench.measure(&mut self.copying(&self.to, 1))?;
        let (server, address) = sftp_server()?;
        let proxy = proxy_to(address)?;
        let mut command = self.copying(format!("sftp:site:{}", self.to.display()), 2);
        let connect = format!("sftp.command={} connect {}", wan_program()?.display(), proxy.address());
        let sample = bench.measure(command.arg("--option").arg(connect))?;
        add(samples, "restic", sample.elapsed_s, &proxy);
        drop(server);
        Ok(())
    }
}

/// The snapshot that `restic backup --json` says it has made.
fn snapshot_id(stdout: &[u8]) -> Result<String> {
    let lines = stdout.rsplit(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let mut ids = lines.filter_map(|line: serde_json::Value| line["snapshot_id"].as_str().map(str::to_owned));
    ids.next().context("restic backup --json names no snapshot")
}

fn wan_program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("wan"))
}

/// An SFTP server for each connection.
fn sftp_server() -> Result<(Running, SocketAddr)> {
    let mut command = Command::new(wan_program()?);
    command.args(["serve", "127.0.0.1:0", SFTP_SERVER]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut server = Running(command.spawn().context("cannot run wan, which is built with this program")?);
    let mut line = String::new();
    BufReader::new(server.0.stderr.take().context("its standard error is a pipe")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
    Ok((server, address.with_context(|| format!("wan serve said {line:?}"))?))
}
