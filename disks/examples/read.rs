//! Measures how fast a snapshot is read through the view's data path, without FUSE.
//!
//! `read STORE SNAPSHOT [owner=VMSTORE] [cache_mib=256] [seconds=6] [span_mib=1300] [threads=N]`
//!
//! Opens the store in this process; with `owner=` reads through the store's owner, which that program is started as.
//! Each pattern begins with an empty cache. Drop the page cache before (`echo 3 > /proc/sys/vm/drop_caches`) for cold
//! figures.

use std::error::Error;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use chunkstore::catalog::Snapshot;
use chunkstore::format::manifest::ChunkSource;
use chunkstore::store::{OpenOptions, Store};
use chunkstore::testing::Rng;
use disks::chunk_cache::{ChunkCache, ChunkCacheOptions};
use disks::snapshot::SnapshotDisk;
use replicate::owner::{Reconnecting, Starter};
use tokio::runtime::{Handle, Runtime};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const READ_BYTES: usize = 256 << 10;
const BLOCK_BYTES: usize = 4096;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, name, options @ ..] = &args[..] else { return Err("read STORE SNAPSHOT [NAME=VALUE]...".into()) };
    let option = |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default: u64| option(name).map_or(Ok(default), str::parse);
    let runtime = Runtime::new()?;
    let (source, snapshot) = open(&runtime, Path::new(store), name, option("owner"))?;
    let bench = Bench {
        source,
        snapshot,
        runtime: runtime.handle().clone(),
        cache_bytes_max: number("cache_mib", 256)? << 20,
        threads: number("threads", 0)? as usize,
        duration: Duration::from_secs(number("seconds", 6)?),
        span_bytes: number("span_mib", 1300)? << 20,
    };
    let only = option("only");
    let runs = |name: &str| only.is_none_or(|only| only.split(',').any(|one| one == name));
    for readers in [1, 4] {
        if runs(&format!("seq{readers}")) {
            bench.sequential(readers)?;
        }
    }
    for readers in [1, 8] {
        if runs(&format!("rand{readers}")) {
            bench.random(readers)?;
        }
    }
    Ok(())
}

type Opened = (Arc<dyn ChunkSource>, Snapshot);

fn open(runtime: &Runtime, dir: &Path, name: &str, owner: Option<&str>) -> Outcome<Opened> {
    let name = name.parse()?;
    if let Some(program) = owner {
        let starter = Starter { program: program.into(), idle_exit: Duration::from_secs(5), frees_space: false };
        let source = Reconnecting::new(runtime.handle(), dir, starter)?;
        return Ok((Arc::new(source), Store::open_catalog(dir)?.1.read(&name)?));
    }
    let store = Store::open(dir, &OpenOptions::default())?;
    let snapshot = store.catalog().read(&name)?;
    Ok((Arc::new(store), snapshot))
}

struct Bench {
    source: Arc<dyn ChunkSource>,
    snapshot: Snapshot,
    runtime: Handle,
    cache_bytes_max: u64,
    threads: usize,
    duration: Duration,
    span_bytes: u64,
}

impl Bench {
    fn disk(&self) -> (Arc<ChunkCache>, Arc<SnapshotDisk>) {
        let mut options = ChunkCacheOptions { cache_bytes_max: self.cache_bytes_max, ..ChunkCacheOptions::default() };
        if self.threads > 0 {
            options.threads = self.threads;
        }
        let cache = ChunkCache::with_options(Arc::clone(&self.source), self.runtime.clone(), options);
        let disk = SnapshotDisk::new(&cache, &self.snapshot);
        (cache, Arc::new(disk))
    }

    /// Each reader reads all data, one after another's quarter.
    fn sequential(&self, readers: u64) -> Outcome<()> {
        let (cache, disk) = self.disk();
        let (began, began_cpu_s) = (Instant::now(), cpu_s());
        let bytes = on_threads(readers, |reader| {
            let (mut bytes, mut buf) = (0, vec![0; READ_BYTES]);
            let mut at = disk.size_bytes() / readers * reader / 4096 * 4096;
            let end = disk.size_bytes() / readers * (reader + 1);
            while let Some(data) = self.finish(disk.next_data(at))?.filter(|data| data.start < end) {
                at = data.start;
                while at < data.end {
                    let part = READ_BYTES.min((data.end - at) as usize);
                    self.finish(disk.read(&mut buf[..part], at))?;
                    (at, bytes) = (at + part as u64, bytes + part as u64);
                }
            }
            Ok(bytes)
        })?;
        let elapsed_s = began.elapsed().as_secs_f64();
        let cpu_s = cpu_s() - began_cpu_s;
        println!("sequential, {readers} readers: {:.0} MB in {elapsed_s:.3} s, CPU {cpu_s:.3} s", bytes as f64 / 1e6);
        report(&cache);
        Ok(())
    }

    fn random(&self, readers: u64) -> Outcome<()> {
        let (cache, disk) = self.disk();
        let (until, began_cpu_s) = (Instant::now() + self.duration, cpu_s());
        let blocks = self.span_bytes.min(disk.size_bytes()) / BLOCK_BYTES as u64;
        let reads = on_threads(readers, |reader| {
            let (mut reads, mut buf, mut rng) = (0, vec![0; BLOCK_BYTES], Rng::new(reader));
            while Instant::now() < until {
                self.finish(disk.read(&mut buf, rng.below(blocks) * BLOCK_BYTES as u64))?;
                reads += 1;
            }
            Ok(reads)
        })?;
        let cpu_us = (cpu_s() - began_cpu_s) * 1e6 / reads as f64;
        let rate = reads as f64 / self.duration.as_secs_f64();
        println!("random 4 KiB, {readers} readers: {rate:.0} /s, CPU {cpu_us:.1} us each");
        report(&cache);
        Ok(())
    }

    /// As a thread of FUSE does: polls once, then leaves it to the runtime.
    fn finish<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => done,
            Poll::Pending => self.runtime.block_on(work),
        }
    }
}

fn on_threads(threads: u64, work: impl Fn(u64) -> Outcome<u64> + Sync) -> Outcome<u64> {
    static SUM: AtomicU64 = AtomicU64::new(0);
    SUM.store(0, Ordering::Relaxed);
    thread::scope(|scope| {
        let work = &work;
        let handles: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        for handle in handles {
            SUM.fetch_add(handle.join().expect("a reader does not panic")?, Ordering::Relaxed);
        }
        Ok(SUM.load(Ordering::Relaxed))
    })
}

/// What this process has used so far, on all processors.
fn cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn report(cache: &ChunkCache) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory: Vec<&str> =
        status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS")).collect();
    println!("  {}", memory.join(" "));
    println!("  {}", serde_json::to_string(&cache.statistics()).unwrap_or_default());
}
