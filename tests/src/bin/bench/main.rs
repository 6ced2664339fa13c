//! The benchmark program: vmstore compared with zstd, restic, borg, rsync and `qemu-img` on real images, in one run.
//!
//! Owns the order of the measurements and what they must reach. Tools take turns in every round, so that a machine
//! that slows down slows all of them, and a figure is the median of the rounds. It judges, but never fails: the exit
//! code is 0 whether targets are met or not.

mod backup;
mod files;
mod nights;
mod owner;
mod run;
mod scale;
mod table;
mod view;
mod wire;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Error, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::run::Bench;
use crate::table::{Row, Target};

/// Compares vmstore with other tools on two nights of a real image.
#[derive(Parser)]
struct Options {
    /// Rounds; each figure is their median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only these measurements
    #[arg(long)]
    only: Vec<Part>,
    /// Where the real images are kept; they are made if they are not there
    #[arg(long, env = "VMSTORE_IMAGES")]
    images: PathBuf,
    /// Where the stores go, on the images' file system; by default next to the images
    #[arg(long)]
    work: Option<PathBuf>,
    /// The program to measure [default: the one that `make programs` has built]
    #[arg(long)]
    vmstore: Option<PathBuf>,
    /// Cores that every tool gets
    #[arg(long, default_value_t = 2)]
    cores: usize,
    /// Chunks of the store that the part `index` makes
    #[arg(long, default_value_t = 20_000_000)]
    chunks: u64,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

/// A group of measurements.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// First night, the same image again, and the next night, compared with zstd, restic and borg
    Ingest,
    /// The same through the store's owner, compared with one process alone
    Owner,
    /// Restoring to a file, compared with `qemu-img convert`
    Restore,
    /// Verifying one night and thirty, and every other command on thirty
    Nights,
    /// An image of 8 TiB of holes
    Sparse,
    /// Gc's mark and look-ups in a store of 20 million chunks
    Index,
    /// Replication between sites, compared with rsync and restic
    Wire,
    /// The mount, compared with QEMU's export of a compressed qcow2, and guests that boot from it
    View,
}

fn main() -> Result<()> {
    let options = Options::parse();
    run::stay_on_cores(options.cores)?;
    let parent = options.work.clone().unwrap_or_else(|| options.images.clone());
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let work = tempfile::Builder::new().prefix("bench.").tempdir_in(&parent)?;
    let vmstore = match &options.vmstore {
        Some(path) => path.clone(),
        None => tests::programs::vmstore().map_err(Error::msg)?.to_owned(),
    };
    ensure!(vmstore.is_file(), "{} is not built", vmstore.display());
    let mut bench = Bench::new(vmstore, options.images.clone(), work.path().to_owned(), options.runs);
    bench.make_images("full")?;
    let rows = measure(&mut bench, &options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        table::print(&rows);
    }
    Ok(())
}

fn measure(bench: &mut Bench, options: &Options) -> Result<Vec<Row>> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let mut rows = Vec::new();
    if wanted(Part::Ingest) {
        rows.extend(backup::ingest(bench)?);
    }
    if wanted(Part::Owner) {
        rows.extend(owner::owner(bench)?);
    }
    if wanted(Part::Restore) {
        rows.extend(backup::restore(bench)?);
    }
    if wanted(Part::Nights) {
        rows.extend(nights::nights(bench)?);
    }
    if wanted(Part::Sparse) {
        rows.extend(scale::sparse(bench)?);
    }
    if wanted(Part::Index) {
        rows.extend(scale::index(bench, options.chunks)?);
    }
    if wanted(Part::Wire) {
        rows.extend(wire::wire(bench)?);
    }
    if wanted(Part::View) {
        rows.extend(view::view(bench)?);
    }
    rows.extend(peak_memory(bench));
    Ok(rows)
}

/// The most memory that each vmstore command took in any of its runs.
fn peak_memory(bench: &Bench) -> Vec<Row> {
    let row = |(command, &bytes): (&String, &u64)| {
        Row::new(format!("peak memory of {command}"), bytes as f64, "B").target(Target::AtMost(300e6))
    };
    bench.peak_bytes.iter().map(row).collect()
}
