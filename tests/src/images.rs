//! Images made from a seed: parts that compress well, badly and not at all, zeros, and holes. And where real ones are.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use chunkstore::testing::Rng;

use crate::devices::tool;

/// The unit in which an image changes its character.
const PART_BYTES: u64 = 1 << 20;
/// Bytes of a part that compresses badly that are written once and then repeated.
const REPEATED_BYTES: usize = 64;

/// Makes an image of `bytes` in a new file. Of ten parts, seven are data: most of it compresses to about a half.
pub fn make(path: &Path, bytes: u64, seed: u64) {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    let mut rng = Rng::new(seed);
    for start in (0..bytes).step_by(PART_BYTES as usize) {
        let part = part(&mut rng, (bytes - start).min(PART_BYTES) as usize);
        if let Some(part) = part {
            file.write_all_at(&part, start).unwrap();
        }
    }
}

/// Makes the next night of an image in a new file: pages overwritten here and there, about one in `every` bytes.
pub fn make_next(path: &Path, before: &Path, every_bytes: u64, seed: u64) {
    std::fs::copy(before, path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    let mut rng = Rng::new(seed);
    let pages = file.metadata().unwrap().len() / 4096;
    for _ in 0..pages * 4096 / every_bytes {
        file.write_all_at(&rng.noise(4096), rng.below(pages) * 4096).unwrap();
    }
}

/// One part, or a hole.
fn part(rng: &mut Rng, bytes: usize) -> Option<Vec<u8>> {
    match rng.below(10) {
        0 | 1 => None,
        2 => Some(vec![0; bytes]),
        3 => Some(rng.noise(bytes)),
        _ => Some(repetitive(rng, bytes)),
    }
}

/// Every run of noise comes twice.
fn repetitive(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    let mut part = Vec::with_capacity(bytes + 2 * REPEATED_BYTES);
    while part.len() < bytes {
        let noise = rng.noise(REPEATED_BYTES);
        part.extend(&noise);
        part.extend(&noise);
    }
    part.truncate(bytes);
    part
}

/// Where the real images of a kind are, made by `tests/make-images` unless they are there.
pub fn real(kind: &str) -> PathBuf {
    let dir = env::var_os("VMSTORE_IMAGES").map_or_else(|| cache().join("vmstore/images"), PathBuf::from);
    tool(concat!(env!("CARGO_MANIFEST_DIR"), "/make-images"), &[OsStr::new(kind), dir.as_os_str()]);
    dir
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").expect("VMSTORE_IMAGES or HOME says where the images are"));
    env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from)
}

/// The BLAKE3 hash of a file's bytes.
pub fn digest(path: &Path) -> blake3::Hash {
    try_digest(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The same of a file that may fail to be read.
///
/// # Errors
/// The error of opening or reading it.
pub fn try_digest(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize())
}

/// Fails unless both files (or devices, as far as `expected` goes) have the same bytes.
pub fn assert_same(path: &Path, expected: &Path) {
    let (left, right) = (File::open(path).unwrap(), File::open(expected).unwrap());
    let is_file = left.metadata().unwrap().is_file();
    if is_file {
        assert_eq!(left.metadata().unwrap().len(), right.metadata().unwrap().len(), "size of {}", path.display());
    }
    let mut offset = 0;
    loop {
        let [one, other] = [&left, &right].map(|file| window(file, offset));
        let one = &one[..one.len().min(other.len())];
        assert!(*one == other[..], "{} and {} differ after {offset}", path.display(), expected.display());
        if other.is_empty() {
            return;
        }
        offset += other.len() as u64;
    }
}

fn window(file: &File, offset: u64) -> Vec<u8> {
    let mut window = Vec::new();
    let mut at = file;
    std::io::Seek::seek(&mut at, std::io::SeekFrom::Start(offset)).unwrap();
    at.take(PART_BYTES).read_to_end(&mut window).unwrap();
    window
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_image_with_holes() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().unwrap();
        let [one, two, next] = ["one", "two", "next"].map(|name| dir.path().join(name));
        make(&one, 20 << 20, 1);
        make(&two, 20 << 20, 1);
        assert_same(&one, &two);
        assert!(one.metadata().unwrap().blocks() * 512 < 20 << 20);
        make_next(&next, &one, 1 << 20, 2);
        assert!(std::panic::catch_unwind(|| assert_same(&one, &next)).is_err());
    }
}
