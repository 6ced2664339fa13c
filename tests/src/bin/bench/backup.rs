//! Backups and restores of a real image by vmstore and by its peers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::files::{self, stored_bytes, tree_bytes, warm};
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

const FIRST: &str = "first ingest";
const AGAIN: &str = "same image again";
const NEXT: &str = "next day";
const GROWTH_FIRST: &str = "stored after the first ingest";
const GROWTH_AGAIN: &str = "growth by the same image";
const GROWTH_NEXT: &str = "growth by the next day";

/// A backup tool with a repository of its own.
#[derive(Clone, Copy)]
enum Tool {
    Vmstore,
    Restic,
    Borg,
}

impl Tool {
    const ALL: [Self; 3] = [Self::Vmstore, Self::Restic, Self::Borg];

    fn name(self) -> &'static str {
        match self {
            Self::Vmstore => "vmstore",
            Self::Restic => "restic",
            Self::Borg => "borg",
        }
    }

    fn init(self, bench: &mut Bench) -> Result<()> {
        let repository = bench.path(self.name());
        match self {
            Self::Vmstore => bench.new_store(self.name()).map(drop),
            Self::Restic => run_quietly(restic(bench).args(["init", "--repository-version", "2"])),
            Self::Borg => run_quietly(borg(bench).args(["init", "--encryption", "none"]).arg(repository)),
        }
    }

    /// Backs up `source`, reading all of it, and returns the seconds that it took.
    fn back_up(self, bench: &mut Bench, source: &Path, night: usize) -> Result<f64> {
        let repository = bench.path(self.name());
        let sample = match self {
            Self::Vmstore => bench.ingest(&repository, source, &format!("2026010{night}T020000Z"))?,
            Self::Restic => bench.measure(restic(bench).args(["backup", "--force"]).arg(source))?,
            Self::Borg => {
                let archive = format!("{}::night{night}", repository.display());
                let create = ["create", "--compression", "zstd,1", "--files-cache", "disabled"];
                bench.measure(borg(bench).args(create).arg(archive).arg(source))?
            }
        };
        Ok(sample.elapsed_s)
    }

    fn stored_bytes(self, bench: &Bench) -> Result<u64> {
        let repository = bench.path(self.name());
        match self {
            Self::Vmstore => stored_bytes(&repository),
            Self::Restic | Self::Borg => tree_bytes(&repository),
        }
    }
}

fn restic(bench: &Bench) -> Command {
    let mut command = Command::new("restic");
    command.env("RESTIC_PASSWORD", "bench").env("RESTIC_CACHE_DIR", bench.path("restic-cache"));
    command.arg("--quiet").arg("--repo").arg(bench.path("restic"));
    command
}

fn borg(bench: &Bench) -> Command {
    let mut command = Command::new("borg");
    command.env("BORG_BASE_DIR", bench.path("borg-base")).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
    command
}

/// Runs what is not measured.
fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// First night, the same image again, and the next night, compared with zstd, restic and borg.
pub(crate) fn ingest(bench: &mut Bench) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    for round in 0..bench.runs as usize {
        eprintln!("ingest, round {}", round + 1);
        ingest_round(bench, &mut samples, round)?;
    }
    let store = bench.path(Tool::Vmstore.name());
    let index_bytes_per_chunk = tree_bytes(&store.join("index"))? as f64 / bench.stat(&store, "chunks")?;
    let mut rows = judge_ingest(&samples);
    rows.push(Row::new("index", index_bytes_per_chunk, "B/chunk").target(Target::AtMost(100.0)));
    Ok(rows)
}

fn ingest_round(bench: &mut Bench, samples: &mut Samples, round: usize) -> Result<()> {
    let source_dir = bench.path("source");
    fs::create_dir_all(&source_dir)?;
    let source = source_dir.join("disk.raw");
    clear_repositories(bench)?;
    for tool in Tool::ALL {
        tool.init(bench)?;
    }
    let stages =
        [(FIRST, GROWTH_FIRST, "day1.raw"), (AGAIN, GROWTH_AGAIN, "day1.raw"), (NEXT, GROWTH_NEXT, "day2.raw")];
    for (night, (stage, growth, image)) in stages.into_iter().enumerate() {
        files::link(&bench.images.join(image), &source)?;
        if stage == FIRST {
            samples.add(FIRST, "zstd", zstd(bench, &source)?);
        }
        for turn in 0..Tool::ALL.len() {
            let tool = Tool::ALL[(turn + round) % Tool::ALL.len()];
            let before = tool.stored_bytes(bench)?;
            warm(&source)?;
            samples.add(stage, tool.name(), tool.back_up(bench, &source, night + 1)?);
            samples.add(growth, tool.name(), (tool.stored_bytes(bench)? - before) as f64);
        }
    }
    Ok(())
}

fn clear_repositories(bench: &Bench) -> Result<()> {
    for name in ["restic", "restic-cache", "borg", "borg-base"].map(|name| bench.path(name)) {
        if name.exists() {
            fs::remove_dir_all(name)?;
        }
    }
    Ok(())
}

/// Seconds of `zstd -1 -T2 -c IMAGE > FILE`; what `measure` keeps of standard output is that file.
fn zstd(bench: &Bench, source: &Path) -> Result<f64> {
    warm(source)?;
    let compressed = bench.path("disk.raw.zst");
    let mut command = Command::new("sh");
    command.args(["-c", "exec zstd -1 -T2 -q -c \"$0\" > \"$1\""]).args([source, &compressed]);
    let sample = bench.measure(&mut command)?;
    files::remove(&compressed)?;
    Ok(sample.elapsed_s)
}

fn judge_ingest(samples: &Samples) -> Vec<Row> {
    let vmstore = |what| samples.median(what, "vmstore");
    let faster = |what, tool: &'static str| {
        Row::new(format!("{what}, times faster than {tool}"), vmstore(what), "s")
            .times_better_than(samples.median(what, tool))
    };
    let smaller = |what, tool: &'static str| {
        Row::new(format!("{what}, part of {tool}'s"), vmstore(what), "B").part_of(samples.median(what, tool))
    };
    let of_zstd = Row::new("first ingest, part of zstd -1 -T2", vmstore(FIRST), "s");
    vec![
        of_zstd.part_of(samples.median(FIRST, "zstd")).target(Target::AtMost(0.65)),
        faster(FIRST, "restic").target(Target::AtLeast(4.0)),
        faster(FIRST, "borg"),
        smaller(GROWTH_FIRST, "restic").target(Target::AtMost(1.08)),
        smaller(GROWTH_FIRST, "borg"),
        faster(AGAIN, "restic").target(Target::AtLeast(10.0)),
        faster(AGAIN, "borg"),
        Row::new(GROWTH_AGAIN, vmstore(GROWTH_AGAIN), "B").target(Target::AtMost(8192.0)),
        faster(NEXT, "restic").target(Target::AtLeast(8.0)),
        faster(NEXT, "borg"),
        smaller(GROWTH_NEXT, "restic").target(Target::AtMost(0.09)),
        smaller(GROWTH_NEXT, "borg"),
    ]
}

/// Restoring to a file, compared with `qemu-img convert` of a zstd qcow2 to raw.
pub(crate) fn restore(bench: &mut Bench) -> Result<Vec<Row>> {
    const RESTORE: &str = "restore";
    let image = bench.images.join("day1.raw");
    let qcow2 = make_qcow2(bench, &image)?;
    let store = bench.new_store("restore")?;
    bench.ingest(&store, &image, "20260101T020000Z")?;
    let target = bench.path("restored.raw");
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("restore, round {}", round + 1);
        files::remove(&target)?;
        files::warm_tree(&store.join("packs"))?;
        let sample = bench.vmstore(&store, RESTORE, [OsStr::new("web01"), target.as_os_str()])?;
        samples.add(RESTORE, "vmstore", sample.elapsed_s);
        if round == 0 {
            files::ensure_same(&image, &target)?;
        }
        files::remove(&target)?;
        warm(&qcow2)?;
        let convert = ["convert", "-m", "2", "-W", "-f", "qcow2", "-O", "raw"];
        let sample = bench.measure(Command::new("qemu-img").args(convert).args([&qcow2, &target]))?;
        samples.add(RESTORE, "qemu-img", sample.elapsed_s);
        files::remove(&target)?;
        let arguments = ["web01".as_ref(), target.as_os_str(), "--no-sync".as_ref()];
        let sample = bench.vmstore(&store, RESTORE, arguments)?;
        samples.add(RESTORE, "vmstore, not synced", sample.elapsed_s);
    }
    files::remove(&target)?;
    files::remove(&qcow2)?;
    let qemu_s = samples.median(RESTORE, "qemu-img");
    let row = |what: &str, tool| Row::new(what, samples.median(RESTORE, tool), "s").part_of(qemu_s);
    Ok(vec![
        // qemu-img does not wait for the disk; vmstore does without `--no-sync`.
        row("restore to a file, synced, part of qemu-img convert", "vmstore").target(Target::AtMost(0.6)),
        row("restore --no-sync to a file, part of qemu-img convert", "vmstore, not synced"),
    ])
}

pub(crate) fn make_qcow2(bench: &Bench, image: &Path) -> Result<PathBuf> {
    let qcow2 = bench.path("disk.qcow2");
    let options = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"];
    run_quietly(Command::new("qemu-img").args(options).args([image, &qcow2]))?;
    File::open(&qcow2)?.sync_all()?;
    Ok(qcow2)
}
