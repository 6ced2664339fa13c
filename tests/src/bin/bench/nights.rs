//! A month of nights in one store: the rate of `verify`, and every other command once, for its memory.

use std::path::Path;

use anyhow::Result;

use crate::files::{self, warm_tree};
use crate::run::{Bench, Samples};
use crate::table::{Row, Target};

const NIGHTS: u32 = 30;
/// Blocks of 4 KiB that change in a night.
const EDITS: usize = 500;

/// Verifying one night and thirty, and every other command on thirty.
pub(crate) fn nights(bench: &mut Bench) -> Result<Vec<Row>> {
    let store = bench.new_store("nights")?;
    let image = bench.path("night.raw");
    files::copy_sparse(&bench.images.join("day1.raw"), &image)?;
    bench.ingest(&store, &image, &time_of(1))?;
    let mut rows = vec![verify(bench, &store, "verify, one night")?];
    eprintln!("nights 2 to {NIGHTS}");
    for night in 2..=NIGHTS {
        files::edit(&image, EDITS, u64::from(night))?;
        bench.ingest(&store, &image, &time_of(night))?;
    }
    files::remove(&image)?;
    rows.push(verify(bench, &store, "verify, thirty nights")?);
    rows.extend(other_commands(bench, &store)?);
    Ok(rows)
}

fn time_of(night: u32) -> String {
    format!("202601{night:02}T020000Z")
}

/// Plain bytes of distinct chunks that `verify` checks in a second.
fn verify(bench: &mut Bench, store: &Path, what: &'static str) -> Result<Row> {
    let unique_bytes = bench.stat(store, "unique_bytes")?;
    let mut samples = Samples::default();
    for _ in 0..bench.runs {
        warm_tree(&store.join("packs"))?;
        samples.add(what, "vmstore", bench.vmstore(store, "verify", [""; 0])?.elapsed_s);
    }
    Ok(Row::new(what, unique_bytes / samples.median(what, "vmstore"), "B/s").target(Target::AtLeast(1.2e9)))
}

/// The other commands, each once, the destructive ones last.
fn other_commands(bench: &mut Bench, store: &Path) -> Result<Vec<Row>> {
    let [old, new] = [1, NIGHTS].map(|night| format!("web01@{}", time_of(night)));
    let commands: [(&str, &[&str]); 9] = [
        ("list", &[]),
        ("show", &[&new]),
        ("diff", &[&old, &new]),
        ("stats", &[]),
        ("reindex", &[]),
        ("remove", &[&old]),
        ("prune", &["--keep-last", "10"]),
        ("gc", &["--dry-run"]),
        ("gc", &[]),
    ];
    let mut rows = Vec::new();
    for (command, args) in commands {
        let elapsed_s = bench.vmstore(store, command, args)?.elapsed_s;
        let typed = [&[command], args].concat().join(" ");
        rows.push(Row::new(format!("{typed}, thirty nights"), elapsed_s, "s"));
    }
    Ok(rows)
}
