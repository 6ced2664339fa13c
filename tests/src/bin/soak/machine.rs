//! A machine's disk: what changes on it from night to night, and the hashes of its parts.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blake3::Hash;
use tests::Site;
use tests::images::Rng;

pub(crate) const MIB: u64 = 1 << 20;
const FIRST_MIB: u64 = 20;
const MIB_MAX: u64 = 32;
const PAGE_BYTES: u64 = 4096;

/// A disk in a file.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    rng: Rng,
}

impl Machine {
    pub(crate) fn new(site: &Site, name: &str, seed: u64) -> Self {
        let path = site.make(&format!("{name}.raw"), FIRST_MIB, seed);
        Self { name: name.to_owned(), path, rng: Rng::new(seed) }
    }

    /// A day's work: pages here and there, a file's worth in one place, every 15th night some growth, every 25th a
    /// third of all anew.
    pub(crate) fn change(&mut self) {
        let file = File::options().write(true).open(&self.path).unwrap();
        let mut bytes = file.metadata().unwrap().len();
        if self.rng.below(15) == 0 && bytes < MIB_MAX * MIB {
            bytes += MIB;
            file.set_len(bytes).unwrap();
        }
        let write = |length: u64, rng: &mut Rng| {
            let page = rng.below((bytes - length) / PAGE_BYTES);
            file.write_all_at(&rng.noise(length as usize), page * PAGE_BYTES).unwrap();
        };
        for _ in 0..bytes / PAGE_BYTES / 100 {
            write(PAGE_BYTES, &mut self.rng);
        }
        write(256 << 10, &mut self.rng);
        if self.rng.below(25) == 0 {
            write(bytes / 3, &mut self.rng);
        }
    }
}

/// The hash of each mebibyte of a file; the last may be shorter.
pub(crate) fn digests(path: &Path) -> Vec<Hash> {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut digests = Vec::new();
    let mut part = Vec::with_capacity(MIB as usize);
    loop {
        part.clear();
        (&mut file).take(MIB).read_to_end(&mut part).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if part.is_empty() {
            return digests;
        }
        digests.push(blake3::hash(&part));
    }
}
