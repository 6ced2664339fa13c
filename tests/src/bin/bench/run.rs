//! Running one command and measuring it: wall time and peak memory, from a quiet disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::netns::Network;
use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// An owner whose store is gone ends in a moment.
const OWNER_LEAVES_WITHIN: Duration = Duration::from_secs(20);

/// The cost of one run of a command.
pub(crate) struct Sample {
    pub(crate) elapsed_s: f64,
    pub(crate) stdout: Vec<u8>,
    pub(crate) peak_bytes: u64,
}

/// The figures of one measurement, a figure a round.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Samples {
    /// Adds what a round gave for `tool` in `what`.
    pub(crate) fn add(&mut self, what: &'static str, tool: &'static str, value: f64) {
        eprintln!("  {what}: {tool} {value:.3}");
        self.0.entry((what, tool)).or_default().push(value);
    }

    /// The median of what was added; NaN if nothing was.
    pub(crate) fn median(&self, what: &'static str, tool: &'static str) -> f64 {
        self.0.get(&(what, tool)).map_or(f64::NAN, |values| median(values))
    }
}

/// The middle one, or the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    f64::midpoint(sorted[low], sorted[high])
}

/// Shared by all measurements.
pub(crate) struct Bench {
    /// Rounds of each measurement.
    pub(crate) runs: u32,
    /// Where `day1.raw` and `day2.raw` are.
    pub(crate) images: PathBuf,
    /// An empty directory for everything else.
    pub(crate) work: PathBuf,
    /// The most memory each vmstore command has taken.
    pub(crate) peak_bytes: BTreeMap<String, u64>,
    /// Where other sites are, if they are machines of their own.
    pub(crate) network: Option<Arc<Network>>,
    vmstore: PathBuf,
}

impl Bench {
    pub(crate) fn new(vmstore: PathBuf, images: PathBuf, work: PathBuf, runs: u32) -> Self {
        Self { runs, images, work, peak_bytes: BTreeMap::new(), network: None, vmstore }
    }

    /// The program that is measured.
    pub(crate) fn vmstore_program(&self) -> &Path {
        &self.vmstore
    }

    /// A path in the work directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// Runs `vmstore COMMAND ARGS...` on a store and keeps its peak memory under the command's name.
    pub(crate) fn vmstore<I>(&mut self, store: &Path, command: &str, args: I) -> Result<Sample>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let sample = self.measure(self.command(store, command).args(args))?;
        let peak = self.peak_bytes.entry(command.to_owned()).or_default();
        *peak = sample.peak_bytes.max(*peak);
        Ok(sample)
    }

    /// The command `vmstore COMMAND` on a store, which it opens itself, and with its result as JSON.
    pub(crate) fn command(&self, store: &Path, command: &str) -> Command {
        let mut run = self.program(store);
        run.args(["--progress", "never", "--json", command]);
        run
    }

    /// [`Bench::vmstore`] through the store's owner, which stays until the store is removed.
    pub(crate) fn vmstore_through_owner<I>(&mut self, store: &Path, command: &str, args: I) -> Result<Sample>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut run = self.command(store, command);
        run.env_remove("VMSTORE_STANDALONE").env("VMSTORE_IDLE_EXIT", "3600");
        self.measure(run.args(args))
    }

    fn program(&self, store: &Path) -> Command {
        let mut run = Command::new(&self.vmstore);
        run.env("VMSTORE_STANDALONE", "1").arg("--store").arg(store);
        run
    }

    /// A command's output without `--json`.
    pub(crate) fn plain_output(&self, store: &Path, args: &[&str]) -> Result<Vec<u8>> {
        Ok(self.measure(self.program(store).args(args))?.stdout)
    }

    /// Makes the real images of a kind, unless they are there.
    pub(crate) fn make_images(&self, kind: &str) -> Result<()> {
        let maker = Path::new(env!("CARGO_MANIFEST_DIR")).join("make-images");
        let status = Command::new(&maker).arg(kind).arg(&self.images).status();
        let status = status.with_context(|| format!("cannot run {}", maker.display()))?;
        ensure!(status.success(), "{} could not make the images", maker.display());
        Ok(())
    }

    /// Makes an empty store of that name, in place of an older one.
    pub(crate) fn new_store(&mut self, name: &str) -> Result<PathBuf> {
        let store = self.path(name);
        remove_store(&store)?;
        self.vmstore(&store, "init", ["--no-reserve"])?;
        Ok(store)
    }

    /// Ingests a file as `web01` of this time.
    pub(crate) fn ingest(&mut self, store: &Path, source: &Path, time: &str) -> Result<Sample> {
        self.vmstore(store, "ingest", ingest_args(source, time))
    }

    /// [`Bench::ingest`] through the store's owner.
    pub(crate) fn ingest_through_owner(&mut self, store: &Path, source: &Path, time: &str) -> Result<Sample> {
        self.vmstore_through_owner(store, "ingest", ingest_args(source, time))
    }

    /// A figure of `vmstore stats`.
    pub(crate) fn stat(&mut self, store: &Path, field: &str) -> Result<f64> {
        let sample = self.vmstore(store, "stats", [""; 0])?;
        let stats: serde_json::Value = serde_json::from_slice(&sample.stdout).context("stats --json is not JSON")?;
        stats[field].as_f64().with_context(|| format!("stats --json has no number {field}"))
    }

    /// Runs a command that must succeed. Earlier writers' dirty pages are on disk before it starts.
    pub(crate) fn measure(&self, command: &mut Command) -> Result<Sample> {
        let (stdout, stderr) = (self.path("stdout"), self.path("stderr"));
        command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        rustix::fs::sync();
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let (status, peak_bytes) = wait(&child)?;
        let elapsed_s = started.elapsed().as_secs_f64();
        if !status.success() {
            bail!("{command:?} ended with {status}:\n{}", fs::read_to_string(&stderr)?);
        }
        Ok(Sample { elapsed_s, stdout: fs::read(&stdout)?, peak_bytes })
    }
}

/// Removes a store, if it is there, and waits until its owner has noticed: it may be writing into it until then, and
/// keeps files that are removed.
pub(crate) fn remove_store(store: &Path) -> Result<()> {
    let Ok(lock) = File::open(store.join("lock")) else { return Ok(()) };
    let until = Instant::now() + OWNER_LEAVES_WITHIN;
    loop {
        match fs::remove_dir_all(store) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && Instant::now() < until => {
                thread::sleep(Duration::from_millis(50));
            }
            removed => break removed.with_context(|| format!("cannot remove {}", store.display()))?,
        }
    }
    while lock.try_lock().is_err() {
        ensure!(Instant::now() < until, "the owner of {} does not leave", store.display());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn ingest_args<'a>(source: &'a Path, time: &'a str) -> [&'a OsStr; 5] {
    [source.as_os_str(), "--image".as_ref(), "web01".as_ref(), "--time".as_ref(), time.as_ref()]
}

/// Waits for a child and learns the most memory that it had.
fn wait(child: &Child) -> Result<(ExitStatus, u64)> {
    let mut status = 0;
    // SAFETY: `rusage` is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals that outlive the call, and no other thread waits for this child.
    let waited = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
    if waited < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot wait for a child");
    }
    Ok((ExitStatus::from_raw(status), u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024))
}

/// Keeps this program and all it starts on the first `count` of the cores it may use.
pub(crate) fn stay_on_cores(count: usize) -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let mut chosen = CpuSet::new();
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(count).for_each(|cpu| chosen.set(cpu));
    sched_setaffinity(None, &chosen).context("cannot choose cores")
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_odd_and_even() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
