//! Files for and of the measurements: warming, sizes, copies, holes and edits.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use chunkstore::testing::Rng;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The ranges of a file that are not holes.
pub(crate) fn data_ranges(file: &File) -> Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut position = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(ranges),
            Err(error) => return Err(error).context("cannot find a file's data"),
        };
        position = seek(file, SeekFrom::Hole(start))?;
        ranges.push(start..position);
    }
}

/// Brings a file into the page cache, its holes too: tools that read them would else pay for finding pages for zeros.
pub(crate) fn warm(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_range(&file, 0..file.metadata()?.len())
}

/// Brings a file's data into the page cache, leaving its holes alone.
pub(crate) fn warm_data(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    data_ranges(&file)?.into_iter().try_for_each(|range| read_range(&file, range))
}

fn read_range(file: &File, range: Range<u64>) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut position = range.start;
    while position < range.end {
        let length = buffer.len().min((range.end - position) as usize);
        file.read_exact_at(&mut buffer[..length], position)?;
        position += length as u64;
    }
    Ok(())
}

/// Warms all files below a directory.
pub(crate) fn warm_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { warm_tree(&path)? } else { warm(&path)? }
    }
    Ok(())
}

/// Sum of the sizes of the files below a directory.
pub(crate) fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { tree_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// The size of a vmstore store: its packs and its catalog.
pub(crate) fn stored_bytes(store: &Path) -> Result<u64> {
    Ok(tree_bytes(&store.join("packs"))? + tree_bytes(&store.join("catalog"))?)
}

/// Makes `to` the same file as `from`, by a hard link where that is possible.
pub(crate) fn link(from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    if fs::hard_link(from, to).is_ok() { Ok(()) } else { copy_sparse(from, to) }
}

/// Copies a file with its holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["--sparse=always", "--reflink=auto", "--"]).args([from, to]).status()?;
    ensure!(status.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Whether two files have the same bytes, judged by `cmp`.
pub(crate) fn ensure_same(left: &Path, right: &Path) -> Result<()> {
    let status = Command::new("cmp").args([left, right]).status().context("cannot run cmp")?;
    ensure!(status.success(), "{} differs from {}", left.display(), right.display());
    Ok(())
}

/// Bytes of a file that lie in blocks of 4 KiB that are not all zero.
pub(crate) fn nonzero_bytes(path: &Path) -> Result<u64> {
    const BLOCK: usize = 4096;
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0; 256 * BLOCK];
    let mut bytes = 0;
    for range in data_ranges(&file)? {
        for position in range.clone().step_by(buffer.len()) {
            let length = buffer.len().min((range.end - position) as usize);
            file.read_exact_at(&mut buffer[..length], position)?;
            let blocks = buffer[..length].chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0));
            bytes += blocks.map(|block| block.len() as u64).sum::<u64>();
        }
    }
    Ok(bytes)
}

/// Bytes that nothing compresses.
pub(crate) fn random_bytes(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Overwrites `count` blocks of 4 KiB of a file's data; which ones follows from `seed`.
pub(crate) fn edit(path: &Path, count: usize, seed: u64) -> Result<()> {
    const BLOCK: u64 = 4096;
    let file = File::options().read(true).write(true).open(path)?;
    let ranges = data_ranges(&file)?;
    let blocks: u64 = ranges.iter().map(|range| (range.end - range.start) / BLOCK).sum();
    ensure!(blocks > 0, "{} has no data to edit", path.display());
    let noise = random_bytes(count * BLOCK as usize)?;
    let mut rng = Rng::new(seed);
    for bytes in noise.chunks_exact(BLOCK as usize) {
        file.write_all_at(bytes, nth_block(&ranges, rng.below(blocks), BLOCK))?;
    }
    Ok(())
}

/// Where the `n`th block of a file's data is.
pub(crate) fn nth_block(ranges: &[Range<u64>], mut n: u64, block: u64) -> u64 {
    for range in ranges {
        let count = (range.end - range.start) / block;
        if n < count {
            return range.start + n * block;
        }
        n -= count;
    }
    0
}
