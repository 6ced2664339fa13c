//! Reading files: every way to read gives the bytes that were ingested.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::SeekFrom;
use tests::images::{self, Rng};

use super::{MIB, Viewed, errno, forget_pages, read_at};

#[test]
fn whole_files_and_any_part_of_them() {
    let viewed = Viewed::of(24, 2);
    for (name, source) in &viewed.snapshots {
        images::assert_same(&viewed.mounted.snapshot(name), source);
    }
    let (file, source) = viewed.first();
    let (file, source) = (File::open(file).unwrap(), fs::read(source).unwrap());
    let size = source.len() as u64;
    let mut rng = Rng::new(1);
    for _ in 0..300 {
        let offset = rng.below(size + 8192);
        let bytes = rng.below(300_000) as usize;
        let end = (offset as usize + bytes).min(source.len());
        let expected = source.get(offset as usize..end).unwrap_or_default();
        assert_eq!(read_at(&file, offset, bytes).unwrap(), expected, "{bytes} bytes at {offset}");
        if rng.below(10) == 0 {
            forget_pages(&file);
        }
    }
    for offset in [size, size + 1, 1 << 40, i64::MAX as u64 - 8192] {
        assert_eq!(read_at(&file, offset, 4096).unwrap(), [0_u8; 0], "{offset}");
    }
}

#[test]
fn sizes_that_are_no_round_numbers() {
    let viewed = Viewed::of(1, 1);
    for (n, bytes) in [0, 1, 511, 4095, 4097, 65_537, 4 * MIB - 1, 4 * MIB + 1, 5_000_001].into_iter().enumerate() {
        let source = viewed.site.path("odd.raw");
        fs::write(&source, Rng::new(bytes).noise(bytes as usize)).unwrap();
        let name = viewed.ingest(&source, "odd", &format!("202611{:02}T000000Z", n + 1));
        let file = viewed.mounted.snapshot(&name);
        assert_eq!(file.metadata().unwrap().len(), bytes);
        images::assert_same(&file, &source);
    }
}

#[test]
fn direct_reads() {
    let viewed = Viewed::of(16, 1);
    let (file, source) = viewed.first();
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file).unwrap();
    let source = fs::read(source).unwrap();
    let mut rng = Rng::new(2);
    for _ in 0..50 {
        let pages = 1 + rng.below(600) as usize;
        let offset = rng.below(source.len() as u64 / 4096) * 4096;
        let mut memory = vec![0; (pages + 1) * 4096];
        let start = memory.as_ptr().align_offset(4096);
        let buf = &mut memory[start..start + pages * 4096];
        let read = file.read_at(buf, offset).unwrap();
        let end = (offset as usize + buf.len()).min(source.len());
        assert_eq!(buf[..read], source[offset as usize..end], "{pages} pages at {offset}");
    }
}

#[test]
fn mapped_memory() {
    let viewed = Viewed::of(16, 1);
    let (path, source) = viewed.first();
    let file = File::open(path).unwrap();
    let source = fs::read(source).unwrap();
    let map = Map::new(&file, source.len());
    let mut rng = Rng::new(3);
    for _ in 0..200 {
        let at = rng.below(source.len() as u64) as usize;
        assert_eq!(map.bytes()[at], source[at], "{at}");
    }
    // A mapping stays readable after the file is closed.
    drop(file);
    assert!(*map.bytes() == source[..]);
}

/// A file in memory, only to be read.
struct Map {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Map {
    fn new(file: &File, bytes: usize) -> Self {
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping, of a file that is never written.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, read, shared, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { at, bytes }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: it is mapped until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.bytes) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nothing borrows it any more.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

#[test]
fn many_readers_at_once() {
    let viewed = Viewed::of(16, 3);
    thread::scope(|scope| {
        for seed in 0..8 {
            let viewed = &viewed;
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..6 {
                    let (name, source) = viewed.snapshots.iter().nth(rng.below(3) as usize).unwrap();
                    let (file, source) = (viewed.mounted.snapshot(name), fs::read(source).unwrap());
                    let file = File::open(file).unwrap();
                    for _ in 0..30 {
                        let offset = rng.below(source.len() as u64 - 70_000);
                        let part = read_at(&file, offset, 70_000).unwrap();
                        assert_eq!(part, source[offset as usize..offset as usize + 70_000], "{name} at {offset}");
                    }
                    forget_pages(&file);
                }
            });
        }
    });
    tests::eventually("the end of all handles", || viewed.mounted.status()["open_files"] == 0);
    assert_eq!(viewed.mounted.status()["requests"]["failures"], 0);
}

#[test]
fn holes_are_where_no_data_is() {
    let viewed = Viewed::of(24, 1);
    let (path, source) = viewed.first();
    let source = fs::read(source).unwrap();
    let file = File::open(&path).unwrap();
    let ranges = data_ranges(&file);
    assert!(ranges.len() > 1, "the image has holes");
    let mut at = 0;
    for (start, end) in &ranges {
        assert!(source[at..*start].iter().all(|byte| *byte == 0), "a hole from {at} to {start} has data");
        assert!(at == 0 || at < *start, "two ranges of data touch at {at}");
        at = *end;
    }
    assert!(source[at..].iter().all(|byte| *byte == 0));
    let data_bytes: usize = ranges.iter().map(|(start, end)| end - start).sum();
    assert_eq!(path.metadata().unwrap().blocks(), data_bytes as u64 / 512);
    let ingested = viewed.vmstore.json(["show", "web01"]);
    assert_eq!(ingested["data_bytes"], data_bytes as u64);
}

/// Where a file has data, in its own words.
fn data_ranges(file: &File) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return ranges,
            start => start.unwrap(),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        assert!(start >= at && end > start, "{at} {start} {end}");
        ranges.push((start as usize, end as usize));
        at = end;
    }
}

#[test]
fn seeking_at_the_edges() {
    let viewed = Viewed::of(1, 1);
    let site = &viewed.site;
    File::create(site.path("zeros.raw")).unwrap().set_len(9 * MIB).unwrap();
    fs::write(site.path("full.raw"), Rng::new(4).noise(9 * MIB as usize)).unwrap();
    let zeros = viewed.ingest(&site.path("zeros.raw"), "zeros", "20261101T000000Z");
    let full = viewed.ingest(&site.path("full.raw"), "full", "20261101T000000Z");
    let seek = |name: &str, to| {
        let file = File::open(viewed.mounted.snapshot(name)).unwrap();
        rustix::fs::seek(file, to).map_err(io::Error::from)
    };
    let size = 9 * MIB;
    for at in [0, 5 * MIB, size - 1] {
        assert_eq!(errno(seek(&zeros, SeekFrom::Data(at))), libc::ENXIO);
        assert_eq!(seek(&zeros, SeekFrom::Hole(at)).unwrap(), at);
        assert_eq!(seek(&full, SeekFrom::Data(at)).unwrap(), at);
        assert_eq!(seek(&full, SeekFrom::Hole(at)).unwrap(), size);
    }
    for name in [&zeros, &full] {
        for at in [size, size + 1] {
            assert_eq!(errno(seek(name, SeekFrom::Data(at))), libc::ENXIO);
            assert_eq!(errno(seek(name, SeekFrom::Hole(at))), libc::ENXIO);
        }
        assert_eq!(seek(name, SeekFrom::End(-1)).unwrap(), size - 1);
        assert_eq!(seek(name, SeekFrom::Start(1 << 40)).unwrap(), 1 << 40);
    }
    let blocks = |name: &str| viewed.mounted.snapshot(name).metadata().unwrap().blocks();
    assert_eq!((blocks(&zeros), blocks(&full)), (0, size / 512));
}

#[test]
fn copies_keep_holes() {
    let viewed = Viewed::of(24, 1);
    let (path, source) = viewed.first();
    let copy = viewed.site.path("copy.raw");
    tests::devices::tool("cp", &["--sparse=auto".as_ref(), path.as_os_str(), copy.as_os_str()]);
    images::assert_same(&copy, &source);
    let blocks = |path: &Path| path.metadata().unwrap().blocks();
    assert!(blocks(&copy) <= blocks(&path) + 64, "{} {}", blocks(&copy), blocks(&path));
}
