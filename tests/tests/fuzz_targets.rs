//! Runs every fuzz target for a moment: over its corpus, and over mutations of it that a seed makes.
//!
//! A failure prints the seed; `VMSTORE_FUZZ_SEED=N` runs that one alone, `VMSTORE_FUZZ_RUNS=N` more than are usual.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tests::fuzz::mutate::mutate;
use tests::fuzz::{TARGETS, Target, Verdict};

/// Mutations of each target.
const RUNS: u64 = 4000;
/// Most that a decoder may ask for at once: the limits of the formats are below, lies in small inputs above.
const ALLOCATION_BYTES_MAX: usize = 16 << 20;

/// Remembers the largest allocation.
struct Watched;

static LARGEST_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST_BYTES.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST_BYTES.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        LARGEST_BYTES.fetch_max(new_bytes, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, new_bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// Names in a directory, without suffixes.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let dir = fuzz_dir().join("corpus").join(target.name);
    names(&dir).iter().map(|name| fs::read(dir.join(name)).unwrap()).collect()
}

/// Says on a panic how to come to it again.
struct Repeat<'a>(&'a str, u64);

impl Drop for Repeat<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{} failed; repeat it with VMSTORE_FUZZ_SEED={}", self.0, self.1);
        }
    }
}

fn seeds() -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("VMSTORE_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VMSTORE_FUZZ_RUNS").unwrap_or(RUNS),
    }
}

fn decode(target: &Target, bytes: &[u8]) -> Verdict {
    LARGEST_BYTES.store(0, Ordering::Relaxed);
    let verdict = (target.decode)(bytes);
    let largest = LARGEST_BYTES.load(Ordering::Relaxed);
    assert!(largest <= ALLOCATION_BYTES_MAX, "{} bytes made {} allocate {largest}", bytes.len(), target.name);
    verdict
}

#[test]
fn no_mutation_of_the_corpus_makes_a_decoder_fail_otherwise_than_by_an_error() {
    let seeds = seeds();
    println!("seeds {seeds:?}");
    for target in TARGETS {
        let corpus = corpus_of(target);
        for bytes in &corpus {
            decode(target, bytes);
        }
        let mut accepted = 0;
        for seed in seeds.clone() {
            let _repeat = Repeat(target.name, seed);
            accepted += u64::from(decode(target, &mutate(&corpus, seed)) == Verdict::Accepted);
        }
        println!("{}: {accepted} of {} mutations were accepted", target.name, seeds.end - seeds.start);
    }
}

#[test]
fn every_target_has_a_corpus_that_it_accepts() {
    for target in TARGETS {
        let dir = fuzz_dir().join("corpus").join(target.name);
        for (name, bytes) in (target.examples)() {
            assert_eq!((target.decode)(&bytes), Verdict::Accepted, "{} as it is made now", dir.join(name).display());
            let file = fs::read(dir.join(name));
            let committed = file.unwrap_or_else(|_| panic!("run `fuzz-corpus`: {name} of {} is missing", target.name));
            assert_eq!((target.decode)(&committed), Verdict::Accepted, "{}", dir.join(name).display());
        }
    }
}

#[test]
fn every_target_has_a_program_and_no_other_has() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names(&fuzz_dir().join("corpus")), targets);
    assert_eq!(names(&fuzz_dir().join("fuzz_targets")), targets);
    let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
    for name in &targets {
        let program = fs::read_to_string(fuzz_dir().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("tests::fuzz::{name}(")), "the program {name} runs another target");
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml lacks {name}");
    }
}
