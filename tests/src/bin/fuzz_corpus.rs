//! Writes the valid examples of every fuzz target, one file each, below a directory: `fuzz-corpus fuzz/corpus`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use tests::fuzz::TARGETS;

/// Writes the examples of the fuzz targets.
#[derive(Parser)]
struct Args {
    /// Gets a directory for each target. Other files there stay.
    dir: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    for target in TARGETS {
        let dir = args.dir.join(target.name);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        for (name, bytes) in (target.examples)() {
            let path = dir.join(name);
            fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}
