//! A file that holds space back, to be given up when the disk is full, so that remove and gc still run.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};

const FILE: &str = "reserve";
/// Size of the reserve.
pub const RESERVE_BYTES: u64 = 256 << 20;
/// With less than this free, operations that free space give the reserve up first.
const LOW_BYTES: u64 = 128 << 20;

/// Creates the reserve, or fills it up again.
///
/// # Errors
/// [`Error::OutOfSpace`] if there is no room for it; then there is none left behind.
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

/// Gives the reserve up if the file system is nearly full. Tells whether it did.
pub fn give_up_if_low(dir: &Path) -> bool {
    let path = dir.join(FILE);
    if free_bytes(dir).is_some_and(|free| free < LOW_BYTES) && fs::remove_file(&path).is_ok() {
        tracing::warn!("the disk is nearly full: gave up the store's reserve of {} MiB", RESERVE_BYTES >> 20);
        return true;
    }
    false
}

/// Puts a reserve back that had been given up, once there is room for several of it.
pub fn restore(dir: &Path) {
    let room = free_bytes(dir).is_some_and(|free| free > 4 * RESERVE_BYTES);
    if room && !dir.join(FILE).exists() && create(dir).is_ok() {
        tracing::info!("put the store's reserve back");
    }
}

fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}
