//! How busy one push keeps a link of 100 Mbit/s, near and far.

use anyhow::{Context, Result};
use tests::wan::{Direction, Link, Proxy};

use super::push_new;
use super::server::Server;
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

/// The rate of all links here, in Mbit/s.
pub(super) const MBIT: u64 = 100;
const TIME: &str = "20260101T020000Z";
const BUSY_0: &str = "link of 100 Mbit/s and 0 ms, share of time busy";
const BUSY_50: &str = "link of 100 Mbit/s and 50 ms, share of time busy";
const BUSY_150: &str = "link of 100 Mbit/s and 150 ms, share of time busy";
const LINKS: [(u64, &str); 3] = [(0, BUSY_0), (50, BUSY_50), (150, BUSY_150)];

/// A first image to an empty site.
pub(super) fn rows(bench: &mut Bench) -> Result<Vec<Row>> {
    let store = bench.new_store("link")?;
    bench.ingest(&store, &bench.images.join("site-base.raw"), TIME)?;
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("link, round {}", round + 1);
        for (rtt_ms, what) in LINKS {
            let server = Server::start(bench, "link-remote")?;
            let proxy = Proxy::start(Link::of(MBIT, rtt_ms), server.remote().address())?;
            push_new(bench, &store, &server.remote().via(proxy.address()), &format!("web01@{TIME}"))?;
            let busy = proxy.usage(Direction::Up).busy().context("nothing went through the link")?;
            samples.add(what, "vmstore", busy);
            server.stop(bench)?;
        }
    }
    let row = |(_, what)| Row::new(what, samples.median(what, "vmstore"), "").target(Target::AtLeast(0.9));
    Ok(LINKS.into_iter().map(row).collect())
}
