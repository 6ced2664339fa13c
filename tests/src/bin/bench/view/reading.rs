//! Reading a snapshot from end to end and at random, compared with the raw file and QEMU's export.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::images::Rng;
use tests::{Mounted, Vmstore};

use super::export::Export;
use super::{CACHE_BYTES, drop_caches, mount};
use crate::backup::make_qcow2;
use crate::files::{self, data_ranges, nth_block};
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

const WHOLE: &str = "mount: sequential read of the data";
const AGAIN: &str = "mount: second read, from the page cache";
const RANDOM_ONE: &str = "mount: random 4 KiB, one reader";
const RANDOM_EIGHT: &str = "mount: random 4 KiB, eight readers";
const MEMORY_BESIDES_BYTES: f64 = 150e6;

const SEQUENTIAL_BYTES: usize = 1 << 20;
const RANDOM_BYTES: u64 = 4096;
/// Random reads go to the first so many bytes of data.
const RANDOM_OVER_BYTES: u64 = 1_300_000_000;
const RANDOM_TIME: Duration = Duration::from_secs(6);

/// A way to show the image as a raw file.
#[derive(Clone, Copy)]
enum Tool {
    Raw,
    Vmfs,
    Qemu,
}

/// A shown image, and how it is taken down.
struct Shown {
    file: PathBuf,
    mounted: Option<Mounted>,
    _export: Option<Export>,
}

/// The parts that all tools read.
struct Disk<'a> {
    vmstore: &'a Vmstore,
    image: PathBuf,
    qcow2: PathBuf,
    bytes: u64,
    /// Where the image has data: only that is read, of all alike.
    ranges: Vec<Range<u64>>,
}

impl Tool {
    const ALL: [Self; 3] = [Self::Raw, Self::Vmfs, Self::Qemu];

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw file",
            Self::Vmfs => "vmfs",
            Self::Qemu => "qemu-storage-daemon",
        }
    }
}

impl Disk<'_> {
    /// Shows the disk anew, with nothing of it in any cache.
    fn show(&self, bench: &Bench, tool: Tool) -> Result<Shown> {
        let shown = match tool {
            Tool::Raw => Shown { file: self.image.clone(), mounted: None, _export: None },
            Tool::Vmfs => {
                let (mounted, file) = mount(self.vmstore);
                Shown { file, mounted: Some(mounted), _export: None }
            }
            Tool::Qemu => {
                let export = Export::start(&self.qcow2, self.bytes, bench.path("export.raw"))?;
                Shown { file: export.file().to_owned(), mounted: None, _export: Some(export) }
            }
        };
        drop_caches()?;
        Ok(shown)
    }

    fn nonce(&self, rng: &mut Rng) -> u64 {
        let blocks = self.ranges.iter().map(|range| (range.end - range.start) / RANDOM_BYTES).sum::<u64>();
        nth_block(&self.ranges, rng.below(blocks.min(RANDOM_OVER_BYTES / RANDOM_BYTES)), RANDOM_BYTES)
    }
}

/// All figures of reading.
pub(super) fn rows(bench: &Bench, vmstore: &Vmstore, image: &Path) -> Result<Vec<Row>> {
    let file = File::open(image)?;
    let ranges = data_ranges(&file)?;
    let qcow2 = make_qcow2(bench, image)?;
    let disk = Disk { vmstore, image: image.to_owned(), qcow2, bytes: file.metadata()?.len(), ranges };
    let mut samples = Samples::default();
    let mut memory_bytes = 0;
    for round in 0..bench.runs as usize {
        eprintln!("view, round {}", round + 1);
        for turn in 0..Tool::ALL.len() {
            let tool = Tool::ALL[(turn + round) % Tool::ALL.len()];
            memory_bytes = measure(bench, &disk, tool, round as u64, &mut samples)?.max(memory_bytes);
        }
    }
    files::remove(&disk.qcow2)?;
    Ok(judge(&samples, memory_bytes))
}

/// One round of a tool; returns the most memory that vmfs had.
fn measure(bench: &Bench, disk: &Disk<'_>, tool: Tool, seed: u64, samples: &mut Samples) -> Result<u64> {
    let mut shown = disk.show(bench, tool)?;
    for what in [WHOLE, AGAIN] {
        samples.add(what, tool.name(), sequential(&shown.file, &disk.ranges)?);
    }
    let mut memory_bytes = shown.end()?;
    for (what, readers) in [(RANDOM_ONE, 1), (RANDOM_EIGHT, 8)] {
        let mut shown = disk.show(bench, tool)?;
        samples.add(what, tool.name(), random(&shown.file, disk, readers, seed)?);
        memory_bytes = shown.end()?.max(memory_bytes);
    }
    Ok(memory_bytes)
}

impl Shown {
    /// Takes it down; returns the most memory that vmfs has had, if it is that.
    fn end(&mut self) -> Result<u64> {
        let Some(mounted) = self.mounted.take() else { return Ok(0) };
        let bytes = memory_bytes_max(mounted.pid())?;
        mounted.unmount();
        Ok(bytes)
    }
}

/// Seconds to read all data in order.
fn sequential(path: &Path, ranges: &[Range<u64>]) -> Result<f64> {
    let started = Instant::now();
    let file = File::open(path)?;
    let mut buffer = vec![0; SEQUENTIAL_BYTES];
    for range in ranges {
        for start in range.clone().step_by(SEQUENTIAL_BYTES) {
            let bytes = (range.end - start).min(SEQUENTIAL_BYTES as u64) as usize;
            file.read_exact_at(&mut buffer[..bytes], start)?;
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds for a read, all readers together.
fn random(path: &Path, disk: &Disk<'_>, readers: u64, seed: u64) -> Result<f64> {
    let reads = AtomicU64::new(0);
    let started = Instant::now();
    let read = |reader: u64| -> Result<()> {
        let file = File::open(path)?;
        let mut rng = Rng::new(seed * 100 + reader);
        let mut buffer = vec![0; RANDOM_BYTES as usize];
        while started.elapsed() < RANDOM_TIME {
            file.read_exact_at(&mut buffer, disk.nonce(&mut rng))?;
            reads.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|reader| scope.spawn(move || read(reader))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a reader does not panic"))
    })?;
    Ok(started.elapsed().as_secs_f64() / reads.into_inner() as f64)
}

/// `VmHWM` of proc(5).
fn memory_bytes_max(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("vmfs has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn judge(samples: &Samples, memory_bytes: u64) -> Vec<Row> {
    let row = |what: &'static str| Row::new(what, samples.median(what, "vmfs"), "s");
    let than = |what: &'static str, tool| row(what).times_better_than(samples.median(what, tool));
    vec![
        than(WHOLE, "qemu-storage-daemon").target(Target::AtLeast(3.0)),
        row(WHOLE).part_of(samples.median(WHOLE, "raw file")),
        row(AGAIN).part_of(samples.median(AGAIN, "raw file")).target(Target::AtMost(1.1)),
        than(RANDOM_ONE, "qemu-storage-daemon").target(Target::AtLeast(1.6)),
        than(RANDOM_EIGHT, "qemu-storage-daemon").target(Target::AtLeast(1.5)),
        Row::new("vmfs --cache 1GiB, peak memory", memory_bytes as f64, "B")
            .target(Target::AtMost(CACHE_BYTES + MEMORY_BESIDES_BYTES)),
    ]
}
