//! Booting a guest: from the raw file, from the mount, and from a mount whose chunks are all 50 ms away.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::guest::{Disk, Guest, Kernel};
use tests::wan::{Link, Proxy};
use tests::{Listening, Serving, Vmstore};

use super::{CACHE, SNAPSHOT, TIME, drop_caches, mount};
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

const FIRST_PROCESS: &str = "boot to the first process";
const SERVICES: &str = "boot to all services up";
const RTT: Duration = Duration::from_millis(50);

/// Medians of two moments of a boot.
pub(super) fn rows(bench: &mut Bench, vmstore: &Vmstore, image: &Path) -> Result<Vec<Row>> {
    let kernel = Kernel::of(image, &bench.work);
    let recorded = record(bench, image, &kernel)?;
    let [far, far_recorded] = [Far::start(vmstore)?, Far::start(&recorded)?];
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("boots, round {}", round + 1);
        boot(bench, &kernel, image, "raw file", &mut samples)?;
        let (mounted, snapshot) = mount(vmstore);
        boot(bench, &kernel, &snapshot, "mount", &mut samples)?;
        mounted.unmount();
        for (tool, far) in [("upstream", &far), ("upstream, recorded", &far_recorded)] {
            let near = far.new_near(bench)?;
            let mounted = near.mount(&["--upstream", "far", "--cache", CACHE]);
            boot(bench, &kernel, &mounted.snapshot(SNAPSHOT), tool, &mut samples)?;
            mounted.unmount();
        }
    }
    Ok([FIRST_PROCESS, SERVICES].into_iter().flat_map(|what| judge(&samples, what)).collect())
}

/// Another store of the image, which has the order in which a boot reads it, too.
fn record(bench: &mut Bench, image: &Path, kernel: &Kernel) -> Result<Vmstore> {
    let store = bench.new_store("view-recorded")?;
    bench.ingest(&store, image, TIME)?;
    let recorded = Vmstore::with(bench.vmstore_program(), store).through_owner();
    let mounted = recorded.mount(&["--record"]);
    boot(bench, kernel, &mounted.snapshot(SNAPSHOT), "recording", &mut Samples::default())?;
    mounted.unmount();
    Ok(recorded)
}

/// A store's server, as far away as a proxy makes it.
struct Far {
    pin: String,
    token: String,
    proxy: Proxy,
    _serving: Serving,
}

impl Far {
    fn start(vmstore: &Vmstore) -> Result<Self> {
        let token = vmstore.run(["token", "add", "near", "--role", "admin"]);
        let serving = Serving::start(vmstore, &["--listen", "tls://127.0.0.1:0"]);
        let Listening { address, fingerprint } = serving.listening()[0].clone();
        let address: SocketAddr = address.trim_start_matches("tls://").parse()?;
        let proxy = Proxy::start(Link { rtt: RTT, rate: None }, address)?;
        Ok(Self { pin: fingerprint.context("a server of TLS has a key")?, token, proxy, _serving: serving })
    }

    /// A new and empty store on this side that knows the server as `far`.
    fn new_near(&self, bench: &mut Bench) -> Result<Vmstore> {
        let store = bench.new_store("near")?;
        let token = bench.path("near.token");
        // A token that others can read is refused.
        let mut private = File::options().write(true).create(true).truncate(true).mode(0o600).open(&token)?;
        private.write_all(self.token.as_bytes())?;
        let near = Vmstore::with(bench.vmstore_program(), store).through_owner();
        let address = format!("tls://{}", self.proxy.address());
        let token = token.to_str().context("a path that is no text")?;
        near.run(["remote", "add", "far", &address, "--pin", &self.pin, "--token-file", token]);
        Ok(near)
    }
}

/// Boots with nothing in the kernel's caches, and takes the time.
fn boot(bench: &Bench, kernel: &Kernel, disk: &Path, tool: &'static str, samples: &mut Samples) -> Result<()> {
    let dir = bench.path("guest");
    fs::create_dir_all(&dir)?;
    drop_caches()?;
    let started = Instant::now();
    let mut guest = Guest::boot(kernel, &Disk::snapshot(disk), "start_services", &dir);
    guest.reaches_user_space();
    samples.add(FIRST_PROCESS, tool, started.elapsed().as_secs_f64());
    guest.services_are_up();
    samples.add(SERVICES, tool, started.elapsed().as_secs_f64());
    guest.powers_off();
    Ok(())
}

fn judge(samples: &Samples, what: &'static str) -> [Row; 3] {
    let raw_s = samples.median(what, "raw file");
    let row = |tool, part: f64, more_s: f64| {
        let row = Row::new(format!("{what}, {tool}"), samples.median(what, tool), "s").part_of(raw_s);
        row.target(Target::AtMost(part + more_s / raw_s))
    };
    [row("mount", 1.05, 1.0), row("upstream", 4.0, 0.0), row("upstream, recorded", 1.5, 1.0)]
}
