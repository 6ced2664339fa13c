//! A site: a store with a server in front of it, and how a client reaches it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::run::Bench;

const START_TIMEOUT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
const TOKEN_FILE: &str = "token";
/// The machine of the network where servers are; everything else is on the first.
const FAR: u8 = 1;

/// The server's address and key, as clients need them.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    address: SocketAddr,
    pin: String,
    token_file: PathBuf,
}

impl Remote {
    /// The remote and its options, as `push` and `pull` take them.
    pub(super) fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![format!("tls://{}", self.address).into()];
        args.extend(["--pin".into(), self.pin.clone().into(), "--token-file".into(), self.token_file.clone().into()]);
        args
    }

    /// The same server, reached by another address.
    pub(super) fn via(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// `vmstore serve` on an empty store, stopped when dropped.
pub(super) struct Server {
    child: Child,
    remote: Remote,
}

impl Server {
    /// Makes a store of that name, in place of an older one, and serves it.
    pub(super) fn start(bench: &mut Bench, name: &str) -> Result<Self> {
        let store = bench.new_store(name)?;
        let token_file = make_token(bench, &store)?;
        let network = bench.network.clone().context("the sites' network is not there")?;
        let mut command = network.on(FAR, &bench.command(&store, "serve"));
        let listen = format!("tls://{}:0", network.address(FAR));
        command.args(["--listen", &listen]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().context("cannot run vmstore serve")?;
        let stderr = child.stderr.take().context("its standard error is a pipe")?;
        // Made first, so that a server that says the wrong thing is stopped too.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, remote: Remote { address: nowhere, pin: String::new(), token_file } };
        (server.remote.address, server.remote.pin) = listening(stderr)?;
        Ok(server)
    }

    pub(super) fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Stops it, which must succeed. Returns, and notes as `serve`'s, the most memory that it has had, in bytes.
    pub(super) fn stop(mut self, bench: &mut Bench) -> Result<u64> {
        let peak_bytes = peak_bytes(self.child.id())?;
        let noted = bench.peak_bytes.entry("serve".to_owned()).or_default();
        *noted = peak_bytes.max(*noted);
        self.terminate()?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "vmstore serve ended with {status}");
                return Ok(peak_bytes);
            }
            ensure!(started.elapsed() < STOP_TIMEOUT, "vmstore serve does not end on SIGTERM");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn terminate(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::TERM)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` it has been waited for, and this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a token that may do everything, in a file next to the store.
fn make_token(bench: &mut Bench, store: &Path) -> Result<PathBuf> {
    let token = bench.plain_output(store, &["token", "add", "bench", "--role", "admin"])?;
    let file = store.with_extension(TOKEN_FILE);
    // A token that others can read is refused.
    let mut private = File::options().write(true).create(true).truncate(true).mode(0o600).open(&file)?;
    private.write_all(&token)?;
    Ok(file)
}

/// Reads where a server listens and its fingerprint; what it says afterwards goes to this program's standard error.
fn listening(stderr: ChildStderr) -> Result<(SocketAddr, String)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || forward(stderr, &sender));
    match receiver.recv_timeout(START_TIMEOUT) {
        Ok(line) => parse_listening(&line).ok_or_else(|| anyhow!("vmstore serve said {line:?}")),
        Err(RecvTimeoutError::Timeout) => bail!("vmstore serve does not say where it listens"),
        Err(RecvTimeoutError::Disconnected) => bail!("vmstore serve ended before it listened"),
    }
}

fn forward(stderr: impl Read, sender: &Sender<String>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if line.contains("listening on tls://") {
            let _ = sender.send(line);
        } else {
            eprintln!("  serve: {line}");
        }
    }
}

/// Takes `listening on tls://ADDR:PORT fingerprint sha256:HEX` apart.
fn parse_listening(line: &str) -> Option<(SocketAddr, String)> {
    let (_, rest) = line.split_once("listening on tls://")?;
    let (address, fingerprint) = rest.split_once(" fingerprint ")?;
    Some((address.parse().ok()?, fingerprint.split_whitespace().next()?.to_owned()))
}

/// The most memory that a running process has had, in bytes (`VmHWM` of proc(5)).
fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("vmstore serve has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_listens_is_read_from_its_line() {
        let parsed = parse_listening("listening on tls://127.0.0.1:4711 fingerprint sha256:00ff").unwrap();
        assert_eq!(parsed, ("127.0.0.1:4711".parse().unwrap(), "sha256:00ff".to_owned()));
        for other in
            ["listening on tcp://127.0.0.1:1", "listening on tls://127.0.0.1:1", "listening on tls://x fingerprint y"]
        {
            assert!(parse_listening(other).is_none(), "{other}");
        }
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(peak_bytes(std::process::id()).unwrap() > 1 << 20);
    }
}
