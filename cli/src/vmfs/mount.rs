//! `vmfs mount`: shows a store's snapshots and clones below a directory.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use chunkstore::format::manifest::ChunkSource;
use chunkstore::metrics::Metrics;
use chunkstore::store::Store;
use clap::{Args, ValueHint};
use disks::chunk_cache::{ChunkCache, ChunkCacheOptions};
use disks::names::LocalNames;
use disks::upstream::UpstreamService;
use fusefs::mount::{MountOptions, Mounted};
use fusefs::mounts::{self, Unmounted};
use fusefs::service::{MountService, Parts};
use jiff::SignedDuration;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::background;
use super::upstream::{self, Local, UpstreamOptions};
use crate::connector::{Connector, Purpose};
use crate::failure::{Exit, Failure, Result};
use crate::process_limits;
use crate::size;
use crate::terminal::log_file::{self, LogFile};

const AFTER_HELP: &str = "\
Examples:
  vmfs mount /mnt/vm --store /srv/vmstore
  vmfs mount /mnt/vm --allow-other --cache 4GiB
  vmfs mount /mnt/vm --store /srv/vmstore --upstream site-a --hydrate web01@latest --record

SIGTERM unmounts as soon as the mount is unused, a second one even while it is in use. Logs go to vmfs.log in the
store, and with --foreground to standard error.";

/// The key of the data path's statistics in the status.
pub(crate) const READING: &str = "reading";
/// The name of all metrics in the status: for programs, by name, unit and value.
pub(crate) const METRICS: &str = "metrics";

/// The longest duration, 136 years: its end can still be represented.
const DURATION_MAX: Duration = Duration::from_secs(u32::MAX as u64);
/// Interval between attempts to unmount after SIGTERM.
const RETRY: Duration = Duration::from_millis(250);

/// Show a store's snapshots and clones as files below a directory
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Mount {
    /// An empty directory
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    mountpoint: PathBuf,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// Let other users in, such as the one that runs the hypervisor
    #[arg(long)]
    allow_other: bool,
    /// Mount over a directory that is not empty
    #[arg(long)]
    allow_nonempty: bool,
    /// Size of the cache of decoded chunks
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size::parse)]
    cache: u64,
    /// How long a read waits for an unreachable store before it fails
    #[arg(long, value_name = "DURATION", default_value = "2min", value_parser = duration)]
    timeout: Duration,
    /// Threads that take requests from the kernel
    #[arg(long, value_name = "N", default_value = "4")]
    threads: NonZeroUsize,
    #[command(flatten)]
    upstream: UpstreamOptions,
}

impl Mount {
    pub(crate) fn run(&self, connector: &Connector, in_background: bool) -> Result<Exit> {
        if self.foreground || in_background {
            self.serve(connector, in_background)
        } else {
            connector.store_dir()?;
            background::start().map(|()| Exit::Done)
        }
    }

    fn serve(&self, connector: &Connector, in_background: bool) -> Result<Exit> {
        process_limits::allow_descriptors();
        process_limits::bound_heaps();
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
        let signals = signals.map_err(|error| Failure::io("handling", "signals", error))?;
        let store = connector.store_dir()?;
        let store = std::path::absolute(store).map_err(|error| Failure::io("finding", store, error))?;
        let (view, site) = self.view(connector, &store)?;
        let mounted = Mounted::start(view, &self.options())?;
        end_on_signal(signals, mounted.mount().clone());
        if in_background {
            background::tell_ready();
            // From here on standard error has no reader.
            LogFile::take_over(&store, log_file::VMFS)?;
            std::env::set_current_dir("/").map_err(|error| Failure::io("entering", "/", error))?;
        }
        let (shown, mountpoint) = (store.display(), mounted.mount().mountpoint.clone());
        tracing::info!("{shown} is mounted at {}", mountpoint.display());
        let ended = mounted.wait();
        if let Some(site) = site {
            site.stop_blocking();
        }
        ended?;
        tracing::info!("{} is unmounted", mountpoint.display());
        Ok(Exit::Done)
    }

    fn options(&self) -> MountOptions {
        let &Self { allow_other, allow_nonempty, threads, .. } = self;
        MountOptions { mountpoint: self.mountpoint.clone(), allow_other, allow_nonempty, threads: threads.get() }
    }

    fn view(&self, connector: &Connector, store: &Path) -> Result<(MountService, Option<Arc<UpstreamService>>)> {
        connector.catalog()?;
        // By its whole path: a mount in the background has another working directory.
        let (_, catalog) = Store::open_catalog(store)?;
        mounts::refuse_on_view(store, "the store")?;
        let runtime = connector.runtime()?.handle().clone();
        let owner: Arc<dyn ChunkSource> = Arc::new(connector.owner(store, Purpose::Use)?);
        let metrics = Metrics::default();
        let local = Local { dir: store, catalog: &catalog, source: &owner, metrics: &metrics };
        let site = self.upstream.start(connector, &local, self.timeout)?;
        let options = ChunkCacheOptions {
            cache_bytes_max: self.cache,
            timeout: self.timeout,
            metrics: metrics.clone(),
            far: site.as_ref().and_then(|site| site.far()),
            observer: site.as_ref().and_then(|site| site.observer()),
            ..ChunkCacheOptions::default()
        };
        let cache = ChunkCache::with_options(owner, runtime.clone(), options);
        let names = site.as_ref().and_then(|site| site.names());
        let (read, upstream) = (Arc::clone(&cache), site.clone());
        let view = MountService::new(Parts {
            names: names.unwrap_or_else(|| Arc::new(LocalNames::new(store, catalog))),
            clones: Arc::new(super::clone::clones(connector, store)?),
            cache,
            runtime,
            store: store.to_path_buf(),
            read_timeout: self.timeout,
            metrics: metrics.clone(),
            more_status: Box::new(move || {
                let values = serde_json::to_value(metrics.snapshot()).expect("its keys are strings");
                let metrics = (METRICS.to_owned(), values);
                reading(&read).into_iter().chain(upstream::status(upstream.as_deref())).chain([metrics]).collect()
            }),
        });
        Ok((view, site))
    }
}

/// The data path's statistics for the status.
fn reading(cache: &ChunkCache) -> serde_json::Map<String, serde_json::Value> {
    let statistics = serde_json::to_value(cache.statistics()).expect("it has only numbers");
    [(READING.to_owned(), statistics)].into_iter().collect()
}

/// The first signal unmounts as soon as the mount is unused, the second even while it is in use.
fn end_on_signal(mut signals: Signals, mount: mounts::Mount) {
    thread::spawn(move || {
        let mut was_asked = false;
        for _ in signals.forever() {
            if was_asked {
                tracing::warn!("unmounting {} while it is in use", mount.mountpoint.display());
                tell(mount.force());
            } else {
                let mount = mount.clone();
                thread::spawn(move || tell(unmount_when_unused(&mount)));
            }
            was_asked = true;
        }
    });
}

fn unmount_when_unused(mount: &mounts::Mount) -> chunkstore::Result<()> {
    let mut was_told = false;
    while mount.unmount()? == Unmounted::Busy {
        if !was_told {
            let mountpoint = mount.mountpoint.display();
            tracing::warn!("{mountpoint} is in use: it is unmounted when it is unused, or at the next signal");
            was_told = true;
        }
        thread::sleep(RETRY);
    }
    Ok(())
}

fn tell(result: chunkstore::Result<()>) {
    if let Err(error) = result {
        tracing::error!("{error}");
    }
}

/// Reads `90s`, `2min` or `PT2M`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    match parsed {
        Some(duration) if duration <= DURATION_MAX => Ok(duration),
        Some(_) => Err("too long".to_owned()),
        None => Err("not a duration; use one such as 90s or 2min".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("2min", 120), ("1h 30m", 5400), ("PT2M", 120)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "2", "-2s", "soon", "1193047h", "9223372036854775807s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(std::time::Instant::now().checked_add(DURATION_MAX).is_some());
    }
}
