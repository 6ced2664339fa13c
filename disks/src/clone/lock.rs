//! The lock by which one process at a time has a clone open.
//!
//! It is `flock` on the file `lock` in the clone's directory, and ends with its holder, however that ends. The holder
//! writes its name into the file for others to read; the text is meaningless once the lock is free.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use chunkstore::store::lock::{holder, write_holder};
use chunkstore::{Error, Result};

const FILE: &str = "lock";
/// Longer than a process that only checks the lock holds it.
const LOOK_TIME_MAX: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(10);

/// Proof that this process has a clone open; gives it up when dropped.
#[derive(Debug)]
pub(super) struct CloneLock {
    _file: File,
}

impl CloneLock {
    /// Takes the lock of the clone in `dir`.
    ///
    /// # Errors
    /// [`Error::Busy`] with the holder's own words; [`Error::NotFound`] if the clone is gone.
    pub(super) fn acquire(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let gone = || Error::not_found(format!("clone {name}"));
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            opened => opened.map_err(|error| Error::io("opening", &path, error))?,
        };
        if !lock(&file).map_err(|error| Error::io("locking", &path, error))? {
            return Err(Error::busy(format!("clone {name}"), holder(&mut file)));
        }
        // It may have been discarded, and made anew, since it was opened.
        let is_same = fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
        if !is_same {
            return Err(gone());
        }
        // Only information: a full disk must not keep anyone from opening and discarding.
        let _ = write_holder(&mut file);
        Ok(Self { _file: file })
    }
}

/// Id of the process that has the clone in `dir` open; 0 if unknown.
pub(super) fn open_by(dir: &Path) -> Option<u32> {
    let mut file = File::open(dir.join(FILE)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(number_of(&holder(&mut file)).unwrap_or(0)),
        _ => None,
    }
}

/// Parses the process id from the text in the lock's file.
pub(super) fn number_of(holder: &str) -> Option<u32> {
    holder.strip_prefix("process ")?.split(' ').next()?.parse().ok()
}

/// Keeps other processes from making and discarding clones in `dir` until it is dropped; waits for that.
pub(super) fn exclude_others(dir: &Path) -> Result<File> {
    let path = dir.join(FILE);
    let opened = File::options().write(true).create(true).truncate(false).open(&path);
    let file = opened.map_err(|error| Error::io("opening", &path, error))?;
    file.lock().map_err(|error| Error::io("locking", &path, error))?;
    Ok(file)
}

fn lock(file: &File) -> io::Result<bool> {
    let until = Instant::now() + LOOK_TIME_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open_by(dir.path()), None);
        let first = CloneLock::acquire(dir.path()).unwrap();
        let Err(Error::Busy { holder, .. }) = CloneLock::acquire(dir.path()) else { panic!("taken twice") };
        assert!(holder.contains(&format!("process {} (", std::process::id())), "{holder}");
        assert_eq!(open_by(dir.path()), Some(std::process::id()));
        drop(first);
        assert_eq!(open_by(dir.path()), None);
        CloneLock::acquire(dir.path()).unwrap();
        assert!(matches!(CloneLock::acquire(&dir.path().join("none")), Err(Error::NotFound { .. })));
    }
}
