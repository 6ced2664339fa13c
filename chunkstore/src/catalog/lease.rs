//! Leases keep what a live process reads from gc, even if the snapshot is removed.
//!
//! A lease is a file in `leases/` that names manifest roots (FORMAT.md, "Leases"). Its holder keeps it flocked, so it
//! ends with its holder, however that ends, and outlives the store's owner. It is written under a temporary name,
//! locked, then renamed: under its final name it is always whole, and locked while it is valid.
//!
//! gc lists the catalog first and the leases after that. So a reader takes its lease first and then rechecks that the
//! snapshot exists, as [`Lease::of`] does.

use std::fs::{self, DirEntry, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::catalog::name::SnapshotName;
use crate::catalog::{Catalog, Snapshot};
use crate::error::{Error, Result};
use crate::format::NodeId;

/// Directory of the leases in a store.
pub(crate) const DIR: &str = "leases";
const SUFFIX: &str = ".lease";
const ASIDE_SUFFIX: &str = ".lease.tmp";
const HEAD: &str = "vmstore-lease 1\n";
/// Most roots of one lease.
pub(crate) const ROOTS_MAX: usize = 4096;
/// A root's line.
const LINE_BYTES: usize = 64 + 1;
const FILE_BYTES_MAX: usize = HEAD.len() + ROOTS_MAX * LINE_BYTES + "blake3 ".len() + LINE_BYTES;
/// Attempts to take a lease whose temporary file gc removes as a leftover.
const TRIES: u32 = 100;

/// Keeps everything below some manifest roots from gc until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    _file: File,
}

impl Lease {
    /// Takes a lease in the store at `dir`. It is effective once the caller has rechecked that snapshots with these
    /// roots exist.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are too many roots; [`Error::Io`] if the file can't be made.
    pub fn take(dir: &Path, roots: &[NodeId]) -> Result<Self> {
        if roots.len() > ROOTS_MAX {
            return Err(Error::invalid(format!("{} roots are too many for one lease", roots.len())));
        }
        let dir = dir.join(DIR);
        let mut tries = 0;
        loop {
            match Self::try_take(&dir, roots) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    tries += 1;
                    // A copy of a store may lack the directory. This fails if it exists, or if the store is gone.
                    let _ = fs::create_dir(&dir);
                }
                taken => return taken.map_err(|error| Error::io("taking a lease in", &dir, error)),
            }
        }
    }

    fn try_take(dir: &Path, roots: &[NodeId]) -> io::Result<Self> {
        let (aside, mut file) = create_aside(dir)?;
        // If gc holds the lock now, it removes the file as a leftover, and the rename fails.
        let written = file.lock().and_then(|()| file.write_all(render(roots).as_bytes()));
        // No other lease has this name, which is the file's inode number.
        let path = dir.join(format!("{:016x}{SUFFIX}", file.metadata()?.ino()));
        match written.and_then(|()| fs::rename(&aside, &path)) {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(error) => {
                let _ = fs::remove_file(&aside);
                Err(error)
            }
        }
    }

    /// Takes a lease of a snapshot and reads its entry.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such snapshot, or it is removed before the lease is effective.
    pub fn of(dir: &Path, catalog: &Catalog, name: &SnapshotName) -> Result<(Self, Snapshot)> {
        let root = catalog.read(name)?.entry().root;
        let lease = Self::take(dir, root.as_slice())?;
        let snapshot = catalog.read(name)?;
        if snapshot.entry().root == root {
            Ok((lease, snapshot))
        } else {
            Err(Error::not_found(format!("snapshot {name}, which was replaced just now,")))
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn create_aside(dir: &Path) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!("{}-{}{ASIDE_SUFFIX}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = dir.join(name);
        match File::create_new(&path) {
            // Another process of this number, in another container.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|file| (path, file)),
        }
    }
}

pub(crate) fn render(roots: &[NodeId]) -> String {
    let lines = roots.iter().map(ToString::to_string).chain([String::new()]).collect::<Vec<_>>().join("\n");
    let body = format!("{HEAD}{lines}");
    format!("{body}blake3 {}\n", blake3::hash(body.as_bytes()).to_hex())
}

fn parse(text: &str) -> Option<Vec<NodeId>> {
    let body_end = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (body, last) = text.split_at(body_end);
    (last.trim_end() == format!("blake3 {}", blake3::hash(body.as_bytes()).to_hex())).then_some(())?;
    body.strip_prefix(HEAD)?.lines().map(|line| line.parse().ok()).collect()
}

/// The roots of all leases that are held, for gc; removes the others.
///
/// # Errors
/// [`Error::Refused`] if a lease is held and can't be read.
pub(crate) fn roots(dir: &Path) -> Result<Vec<NodeId>> {
    let dir = dir.join(DIR);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| Error::io("listing", &dir, error))?,
    };
    let mut roots = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("listing", &dir, error))?;
        roots.extend(roots_of(&entry).map_err(|detail| {
            let path = entry.path();
            Error::refused(format!(
                "the lease {} is held and can't be read ({detail}): what its holder reads is unknown",
                path.display()
            ))
        })?);
    }
    Ok(roots)
}

/// The roots that a file in the directory protects; none if it is not held.
fn roots_of(entry: &DirEntry) -> Result<Vec<NodeId>, String> {
    let name = entry.file_name().to_string_lossy().into_owned();
    let is_aside = name.ends_with(ASIDE_SUFFIX);
    let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
    if !is_file || !(is_aside || name.ends_with(SUFFIX)) {
        return Ok(Vec::new());
    }
    let path = entry.path();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(|error| error.to_string())?,
    };
    match file.try_lock() {
        // A process that has not renamed its lease yet reads the catalog after gc did.
        Err(TryLockError::WouldBlock) if is_aside => Ok(Vec::new()),
        Err(TryLockError::WouldBlock) => read(&file),
        Err(TryLockError::Error(error)) => Err(error.to_string()),
        Ok(()) => {
            let _ = fs::remove_file(&path);
            Ok(Vec::new())
        }
    }
}

/// The roots that a lease's file names.
pub(crate) fn read(file: impl Read) -> Result<Vec<NodeId>, String> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() > FILE_BYTES_MAX {
        return Err("it is over the limit".into());
    }
    parse(&text).ok_or_else(|| "its checksum does not match".into())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn store_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(DIR)).unwrap();
        dir
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir.join(DIR)).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn root(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    #[test]
    fn a_copy_of_a_store_needs_no_directory_of_leases() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::take(dir.path(), &[root(1)]).unwrap();
        assert_eq!(roots(dir.path()).unwrap(), [root(1)]);
        drop(lease);
        assert!(Lease::take(&dir.path().join("gone"), &[root(1)]).is_err());
    }

    #[test]
    fn the_worked_example_of_the_format() {
        let text = render(&[root(0xab)]);
        assert_eq!(
            text,
            format!(
                "vmstore-lease 1\n{}\nblake3 d8ee2252d03a39026728cd9a876bfd9a143273317dd78717ae8a7d44ee6ee016\n",
                "ab".repeat(32)
            )
        );
        assert_eq!(parse(&text), Some(vec![root(0xab)]));
        for at in 0..text.len() {
            let mut flipped = text.clone().into_bytes();
            flipped[at] ^= 1;
            assert_eq!(parse(std::str::from_utf8(&flipped).unwrap()), None, "byte {at}");
            assert_eq!(parse(&text[..at]), None, "only {at} bytes");
        }
    }

    #[test]
    fn held_leases_count_and_others_go() {
        let dir = store_dir();
        let first = Lease::take(dir.path(), &[root(1), root(2)]).unwrap();
        let second = Lease::take(dir.path(), &[root(3)]).unwrap();
        for leftover in ["0123.lease", "7-7.lease.tmp"] {
            fs::write(dir.path().join(DIR).join(leftover), render(&[root(9)])).unwrap();
        }
        let mut found = roots(dir.path()).unwrap();
        found.sort_unstable();
        assert_eq!(found, [root(1), root(2), root(3)]);
        assert_eq!(files(dir.path()).len(), 2, "what nobody holds is gone");
        drop(first);
        assert_eq!(roots(dir.path()).unwrap(), [root(3)]);
        drop(second);
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn one_that_is_held_and_garbled_stops_gc() {
        let garbled: [&[u8]; 4] = [b"", b"no lease", b"\xff\xfe\n", &[b'x'; FILE_BYTES_MAX + 1]];
        for bytes in garbled {
            let dir = store_dir();
            let path = dir.path().join(DIR).join("1.lease");
            fs::write(&path, bytes).unwrap();
            let holder = File::open(&path).unwrap();
            holder.lock().unwrap();
            let Err(Error::Refused { what }) = roots(dir.path()) else { panic!("{bytes:?}") };
            assert!(what.contains("1.lease"), "{what}");
            drop(holder);
            // A program that another test has just started holds it, too, until it has its own image.
            let released = (0..1000).any(|_| {
                thread::sleep(Duration::from_millis(1));
                roots(dir.path()).is_ok_and(|roots| roots.is_empty())
            });
            assert!(released, "{bytes:?}");
        }
    }

    #[test]
    fn strangers_are_left_alone() {
        let dir = store_dir();
        let leases = dir.path().join(DIR);
        fs::write(leases.join("README"), "").unwrap();
        fs::create_dir(leases.join("2.lease")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", leases.join("3.lease")).unwrap();
        assert_eq!(roots(dir.path()).unwrap(), []);
        assert_eq!(files(dir.path()).len(), 3);
    }
}
