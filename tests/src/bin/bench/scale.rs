//! Sizes that are no real machine's: 8 TiB of holes, and a store of 20 million chunks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::files;
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

const HUGE_BYTES: u64 = 8 << 40;
const MIB: u64 = 1 << 20;
const DATA_MIB: u64 = 100;
/// How much longer data may take for lying in 8 TiB of holes: "about as long", with room for a small figure's noise.
const ABOUT: f64 = 1.5;

/// An image of 8 TiB of holes, and one with 100 MiB of data among them.
pub(crate) fn sparse(bench: &mut Bench) -> Result<Vec<Row>> {
    let image = bench.path("holes.raw");
    if File::create(&image)?.set_len(HUGE_BYTES).is_err() {
        eprintln!("sparse: left out, the file system has no files of 8 TiB");
        return Ok(Vec::new());
    }
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("sparse, round {}", round + 1);
        holes_round(bench, &mut samples, &image)?;
    }
    let under_a_second = |what| {
        Row::new(format!("8 TiB of holes: {what}"), samples.median(what, "vmstore"), "s").target(Target::AtMost(1.0))
    };
    let mut rows: Vec<Row> = ["ingest", "list", "diff", "restore"].into_iter().map(under_a_second).collect();
    rows.push(scattered(bench, &image)?);
    Ok(rows)
}

fn holes_round(bench: &mut Bench, samples: &mut Samples, image: &Path) -> Result<()> {
    let store = bench.new_store("holes")?;
    let target = bench.path("restored.raw");
    let (old, new) = ("web01@20260101T020000Z", "web01@20260102T020000Z");
    samples.add("ingest", "vmstore", bench.ingest(&store, image, "20260101T020000Z")?.elapsed_s);
    bench.ingest(&store, image, "20260102T020000Z")?;
    samples.add("list", "vmstore", bench.vmstore(&store, "list", [""; 0])?.elapsed_s);
    samples.add("diff", "vmstore", bench.vmstore(&store, "diff", [old, new])?.elapsed_s);
    let restored = bench.vmstore(&store, "restore", [new.as_ref(), target.as_os_str()])?;
    samples.add("restore", "vmstore", restored.elapsed_s);
    ensure!(target.metadata()?.len() == HUGE_BYTES, "the restored image has another size");
    files::remove(&target)
}

/// 100 MiB of data spread over 8 TiB, compared with the same data in a file of 100 MiB.
fn scattered(bench: &mut Bench, image: &Path) -> Result<Row> {
    const WHAT: &str = "100 MiB";
    let plain = bench.path("plain.raw");
    scatter(&plain, image)?;
    let mut samples = Samples::default();
    for _ in 0..bench.runs {
        for (tool, source) in [("scattered", image), ("plain", &plain)] {
            let store = bench.new_store("holes")?;
            files::warm_data(source)?;
            samples.add(WHAT, tool, bench.ingest(&store, source, "20260101T020000Z")?.elapsed_s);
        }
    }
    let row = Row::new("ingest of 100 MiB in 8 TiB, part of a plain 100 MiB's", samples.median(WHAT, "scattered"), "s");
    Ok(row.part_of(samples.median(WHAT, "plain")).target(Target::AtMost(ABOUT)))
}

/// Writes the same random data to `plain` and, a mebibyte here and there, to `image`. It is not kept in memory, because
/// a child's peak begins with what its parent had.
fn scatter(plain: &Path, image: &Path) -> Result<()> {
    let (plain, image) = (File::create(plain)?, File::options().write(true).open(image)?);
    for n in 0..DATA_MIB {
        let bytes = files::random_bytes(MIB as usize)?;
        plain.write_all_at(&bytes, n * MIB)?;
        image.write_all_at(&bytes, n * (HUGE_BYTES / DATA_MIB / MIB * MIB))?;
    }
    Ok(())
}

/// Gc's mark of a store that the program `scale` makes, and random look-ups in its index.
pub(crate) fn index(bench: &mut Bench, chunks: u64) -> Result<Vec<Row>> {
    let store = bench.path("generated");
    let scale = std::env::current_exe()?.with_file_name("scale");
    let count = chunks.to_string();
    eprintln!("index: making a store of {chunks} chunks");
    let run =
        |part: &str| Command::new(&scale).args([part.as_ref(), store.as_os_str()]).args(["--chunks", &count]).output();
    let made = run("make").with_context(|| format!("cannot run {}", scale.display()))?;
    ensure!(made.status.success(), "scale make failed: {}", String::from_utf8_lossy(&made.stderr));
    let looked_up: serde_json::Value = serde_json::from_slice(&run("lookup")?.stdout)?;
    let sample = bench.vmstore(&store, "gc", ["--dry-run"])?;
    let memory = Row::new("gc --dry-run of 20 million chunks, memory", sample.peak_bytes as f64, "B");
    let lookup_memory = looked_up["peak_bytes"].as_f64().context("scale lookup prints its peak")?;
    Ok(vec![
        Row::new("gc --dry-run of 20 million chunks", sample.elapsed_s, "s").target(Target::AtMost(180.0)),
        memory.target(Target::AtMost(64e6)),
        Row::new("a million look-ups among them, memory (cache 32 MiB)", lookup_memory, "B"),
    ])
}
