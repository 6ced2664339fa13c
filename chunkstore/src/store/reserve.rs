//! A file that reserves space and is emptied when the disk is full, so that remove and gc still work.
//!
//! A used reserve is an empty file, which distinguishes this store from one that never had a reserve.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use crate::error::{Error, Result};

const FILE: &str = "reserve";
/// Size of the reserve.
pub const RESERVE_BYTES: u64 = 256 << 20;
/// With less free space than this, operations that free space use up the reserve first.
const LOW_BYTES: u64 = 128 << 20;

/// Creates the reserve, or fills it again.
///
/// # Errors
/// [`Error::OutOfSpace`] if the disk has no space for it; nothing is left behind then.
pub fn create(dir: &Path) -> Result<()> {
    let path = dir.join(FILE);
    let file = File::create(&path).map_err(|error| Error::io("creating", &path, error))?;
    let allocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES);
    if let Err(error) = allocated {
        let _ = fs::remove_file(&path);
        return Err(Error::io("reserving", &path, error.into()));
    }
    file.sync_all().map_err(|error| Error::io("syncing", &path, error))
}

/// Empties the reserve if the file system is nearly full. Returns whether it did.
pub fn give_up_if_low(dir: &Path) -> bool {
    if free_bytes(dir).is_some_and(|free| free < LOW_BYTES) && state(dir) == State::Full && empty(dir) {
        tracing::warn!("the disk is nearly full: gave up the store's reserve of {} MiB", RESERVE_BYTES >> 20);
        return true;
    }
    false
}

/// Fills a used reserve again once several times its size is free.
pub fn restore(dir: &Path) {
    let room = free_bytes(dir).is_some_and(|free| free > 4 * RESERVE_BYTES);
    if room && state(dir) == State::GivenUp {
        match create(dir) {
            Ok(()) => tracing::info!("put the store's reserve back"),
            Err(error) => {
                tracing::warn!("the store's reserve can't be put back: {error}");
                let _ = File::create(dir.join(FILE));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    None,
    GivenUp,
    Full,
}

fn state(dir: &Path) -> State {
    match fs::metadata(dir.join(FILE)) {
        Err(_) => State::None,
        Ok(file) if file.len() == 0 => State::GivenUp,
        Ok(_) => State::Full,
    }
}

fn empty(dir: &Path) -> bool {
    OpenOptions::new().write(true).open(dir.join(FILE)).and_then(|file| file.set_len(0)).is_ok()
}

fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_up_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        restore(dir.path());
        assert_eq!(state(dir.path()), State::None);
        create(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().len(), RESERVE_BYTES);
        assert!(empty(dir.path()));
        assert_eq!(state(dir.path()), State::GivenUp);
        restore(dir.path());
        let has_room = free_bytes(dir.path()).unwrap() > 4 * RESERVE_BYTES;
        assert_eq!(state(dir.path()), if has_room { State::Full } else { State::GivenUp });
    }
}
