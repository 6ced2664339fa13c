//! Shows what a store of many chunks costs: makes one with real records, manifests and index, then marks it and looks
//! ids up, each in a process of its own whose peak memory is printed.
//!
//! Chunks are eight bytes long, so that twenty million of them fit a small disk; index, pack tables and manifests are
//! as many and as large as an ingest of 64 KiB chunks would make them.
//!
//! `scale [--chunks 20000000] [--work DIR] [--json]`; `scale make|mark|lookup STORE [--chunks N]` does one part.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use chunkstore::Progress;
use chunkstore::catalog::{Entry as CatalogEntry, IngestReport, SnapshotTime};
use chunkstore::format::manifest::{Assembler, Entry, Leaf, Node};
use chunkstore::format::{ChunkId, Codec, Kind, NodeId, Record, RecordId};
use chunkstore::maintenance::gc;
use chunkstore::store::{InitOptions, OpenOptions, Store};
use serde_json::json;

/// Chunks listed by one leaf: 4 MiB in chunks of 64 KiB.
const LEAF_CHUNKS: u64 = 64;
/// Chunks of one image: 32 GiB of data in chunks of 64 KiB.
const IMAGE_CHUNKS: u64 = 500_000;
/// Records after which the packs are sealed, so that there are many packs.
const FLUSH_RECORDS: u64 = 20_000;
const LOOKUPS: u64 = 1_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let chunks: u64 = value("--chunks").map_or(Ok(20_000_000), |text| text.parse()).context("--chunks")?;
    match arguments.first().map(String::as_str) {
        Some("make") => generate(Path::new(&arguments[1]), chunks),
        Some("mark") => mark(Path::new(&arguments[1])),
        Some("lookup") => lookup(Path::new(&arguments[1]), chunks),
        _ => {
            let work = value("--work").map_or_else(std::env::temp_dir, PathBuf::from);
            run(&work, chunks, arguments.iter().any(|a| a == "--json"))
        }
    }
}

fn run(work: &Path, chunks: u64, as_json: bool) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("vmstore-scale-").tempdir_in(work)?;
    let store = dir.path().join("store");
    let started = Instant::now();
    generate(&store, chunks)?;
    let made_s = started.elapsed().as_secs_f64();
    let mark = measured("mark", &store, chunks)?;
    let lookup = measured("lookup", &store, chunks)?;
    let result = json!({"chunks": chunks, "made_s": made_s, "mark": mark, "lookup": lookup});
    if as_json {
        println!("{result}");
    } else {
        println!("{chunks} chunks, made in {made_s:.0} s");
        println!("gc's mark   {mark}");
        println!("look-ups    {lookup}");
    }
    Ok(())
}

/// Runs a part in a process of its own, which prints one JSON object.
fn measured(part: &str, store: &Path, chunks: u64) -> Result<serde_json::Value> {
    let output = Command::new(std::env::current_exe()?)
        .arg(part)
        .arg(store)
        .args(["--chunks", &chunks.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("{part} failed: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn content(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

fn chunk_record(number: u64) -> Record {
    let bytes = content(number);
    Record::new(Kind::Chunk, ChunkId::of(&bytes).into(), bytes.len(), Codec::Raw, bytes.to_vec(), None)
}

fn generate(dir: &Path, chunks: u64) -> Result<()> {
    let now = jiff_now();
    Store::init(dir, &InitOptions::default(), [1; 16], now.timestamp())?;
    let store = Arc::new(Store::open(dir, &OpenOptions::default())?);
    let mut first = 0;
    while first < chunks {
        let last = (first + IMAGE_CHUNKS).min(chunks);
        generate_image(&store, first..last, now)?;
        first = last;
    }
    Ok(())
}

fn generate_image(store: &Arc<Store>, chunks: std::ops::Range<u64>, now: SnapshotTime) -> Result<()> {
    let session = store.session(None)?;
    let mut assembler = Assembler::default();
    let image = format!("vm{:04}", chunks.start / IMAGE_CHUNKS);
    let put_node = |node: &Node| -> chunkstore::Result<NodeId> {
        let encoding = node.encode();
        let id = NodeId::of(&encoding);
        session.put(vec![Record::new(Kind::Node, id.into(), encoding.len(), Codec::Raw, encoding, None)])?;
        Ok(id)
    };
    let leaves = (chunks.end - chunks.start).div_ceil(LEAF_CHUNKS);
    for segment in 0..leaves {
        let from = chunks.start + segment * LEAF_CHUNKS;
        let records: Vec<Record> = (from..(from + LEAF_CHUNKS).min(chunks.end)).map(chunk_record).collect();
        session.put(records)?;
        let entry = |number| Entry::Chunk { id: ChunkId::of(&content(number)), bytes: 8 };
        let entries = (from..(from + LEAF_CHUNKS).min(chunks.end)).map(entry).collect();
        let leaf = put_node(&Node::Leaf(Leaf::new(entries).map_err(anyhow::Error::msg)?))?;
        assembler.push(segment, leaf, &mut |node, _| put_node(&node))?;
        if (segment + 1) * LEAF_CHUNKS % FLUSH_RECORDS < LEAF_CHUNKS {
            session.flush()?;
        }
    }
    let virtual_bytes = leaves * chunkstore::format::limits::SEGMENT_BYTES as u64;
    let root = assembler.finish(virtual_bytes, &mut |node, _| put_node(&node))?;
    let entry = CatalogEntry {
        image: image.parse()?,
        time: now,
        root,
        virtual_bytes,
        labels: std::collections::BTreeMap::new(),
        group: None,
        origin: store.config().format.store_id.clone(),
        created: now.timestamp(),
        attachments: std::collections::BTreeMap::new(),
        extra: std::collections::BTreeMap::new(),
    };
    session.publish(entry, IngestReport::default())?;
    Ok(())
}

fn jiff_now() -> SnapshotTime {
    "2026-11-20T02:00:00Z".parse().expect("a valid time")
}

fn mark(dir: &Path) -> Result<()> {
    let store = Arc::new(Store::open(dir, &OpenOptions::default())?);
    let opened_bytes = peak_bytes();
    let threads = std::thread::available_parallelism()?.get();
    let report = gc::collect(&store, true, threads, &Progress::default())?;
    if report.dead_records != 0 || report.missing_records != 0 {
        bail!("every record is needed, yet {report:?}");
    }
    println!(
        "{}",
        json!({"elapsed_s": report.elapsed_s, "live_records": report.live_records,
               "peak_bytes": peak_bytes(), "peak_bytes_after_open": opened_bytes})
    );
    Ok(())
}

fn lookup(dir: &Path, chunks: u64) -> Result<()> {
    let store = Store::open(dir, &OpenOptions::default())?;
    let started = Instant::now();
    let mut found = 0;
    for batch in 0..LOOKUPS / 1000 {
        // Every other id is absent, as in a first ingest.
        let number = |at: u64| (batch * 1000 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (2 * chunks);
        let ids: Vec<RecordId> = (0..1000).map(|at| ChunkId::of(&content(number(at))).into()).collect();
        found += store.locate(&ids)?.iter().flatten().count();
    }
    let elapsed_s = started.elapsed().as_secs_f64();
    println!("{}", json!({"lookups": LOOKUPS, "found": found, "elapsed_s": elapsed_s, "peak_bytes": peak_bytes()}));
    Ok(())
}

/// The most memory this process ever had.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
