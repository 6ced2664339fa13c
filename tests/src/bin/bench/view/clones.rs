//! Committing a clone, and finding one's way among many snapshots.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tests::Vmstore;
use tests::images::Rng;

use super::{SNAPSHOT, drop_caches};
use crate::files::stored_bytes;
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

const COMMIT: &str = "commit of 10 MB of random 4 KiB blocks in 8 GiB";
const GROWTH: &str = "growth by that commit";
const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 10_000_000 / BLOCK_BYTES as u64;

/// The time and the growth of a commit, each round of a new clone.
pub(super) fn commit(bench: &Bench, vmstore: &Vmstore) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    let mounted = vmstore.mount(&[]);
    for round in 0..bench.runs {
        eprintln!("commit, round {}", round + 1);
        let name = format!("clone{round}");
        vmstore.run_vmfs(["clone", "create", &name, SNAPSHOT]);
        scatter(&mounted.clone_file(&name), u64::from(round))?;
        let before = stored_bytes(vmstore.store())?;
        let started = Instant::now();
        vmstore.run_vmfs(["clone", "commit", &name, "--image", &name]);
        samples.add(COMMIT, "vmfs", started.elapsed().as_secs_f64());
        samples.add(GROWTH, "vmfs", (stored_bytes(vmstore.store())? - before) as f64);
    }
    mounted.unmount();
    Ok(vec![
        Row::new(COMMIT, samples.median(COMMIT, "vmfs"), "s").target(Target::AtMost(1.0)),
        Row::new(GROWTH, samples.median(GROWTH, "vmfs"), "B").target(Target::AtMost(14e6)),
    ])
}

/// Writes noise to blocks all over a disk, and syncs it.
fn scatter(disk: &Path, seed: u64) -> Result<()> {
    let file = File::options().write(true).open(disk)?;
    let blocks = file.metadata()?.len() / BLOCK_BYTES as u64;
    let mut rng = Rng::new(seed);
    for _ in 0..BLOCKS {
        file.write_all_at(&rng.noise(BLOCK_BYTES), rng.below(blocks) * BLOCK_BYTES as u64)?;
    }
    Ok(file.sync_all()?)
}

/// Listing a hundred snapshots and reading the first byte of each.
pub(super) fn hundred(bench: &mut Bench, vmstore: &Vmstore) -> Result<Vec<Row>> {
    const HUNDRED: &str = "a hundred snapshots listed, and the first byte of each";
    let image = bench.path("small.raw");
    tests::images::make(&image, 64 << 20, 1);
    for hour in 0..100 {
        let time = format!("202602{:02}T{:02}0000Z", 1 + hour / 10, hour % 10);
        crate::files::edit(&image, 16, hour)?;
        vmstore.run([
            "ingest".as_ref(),
            image.as_os_str(),
            "--image".as_ref(),
            "db01".as_ref(),
            "--time".as_ref(),
            time.as_ref(),
        ]);
    }
    let mut samples = Samples::default();
    for _ in 0..bench.runs {
        let mounted = vmstore.mount(&[]);
        drop_caches()?;
        samples.add(HUNDRED, "vmfs", first_bytes(&mounted.path().join("snapshots/db01"))?);
        mounted.unmount();
    }
    Ok(vec![Row::new(HUNDRED, samples.median(HUNDRED, "vmfs"), "s").target(Target::AtMost(1.0))])
}

fn first_bytes(dir: &Path) -> Result<f64> {
    let started = Instant::now();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        path.metadata()?;
        let mut byte = [0];
        File::open(&path)?.read_exact(&mut byte).with_context(|| path.display().to_string())?;
    }
    Ok(started.elapsed().as_secs_f64())
}
