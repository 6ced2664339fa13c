//! The log of a process that a command started: `owner.log` or `vmfs.log` in the store, and one older file.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use chunkstore::Error;

use crate::failure::Result;

/// The log of an owner.
pub(crate) const OWNER: &str = "owner.log";
/// The log of all mounts of a store.
pub(crate) const VMFS: &str = "vmfs.log";
/// The suffix of a rotated log.
const OLDER: &str = "1";
/// A longer log is rotated.
const BYTES_MAX: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Standard error of this process as a log file that does not grow without bound. Several processes may write one.
pub(crate) struct LogFile {
    path: PathBuf,
}

impl LogFile {
    /// Makes standard error a log in `dir`; a reader of the old standard error sees its end.
    pub(crate) fn take_over(dir: &Path, name: &str) -> Result<()> {
        let log = Self { path: dir.join(name) };
        log.rotate_if_long()?;
        log.open()?;
        thread::spawn(move || {
            loop {
                thread::sleep(LOOK_EVERY);
                // The process goes on without a log.
                let _ = log.rotate_if_long().and_then(|()| if log.is_open() { Ok(()) } else { log.open() });
            }
        });
        Ok(())
    }

    fn open(&self) -> Result<()> {
        let opened = File::options().append(true).create(true).open(&self.path);
        let file = match opened {
            Ok(file) => file,
            // On a full disk an owner works without a log.
            Err(_) => File::options()
                .write(true)
                .open("/dev/null")
                .map_err(|error| Error::io("opening", &self.path, error))?,
        };
        rustix::stdio::dup2_stderr(file.as_fd()).map_err(|error| Error::io("opening", &self.path, error.into()))?;
        Ok(())
    }

    /// Whether standard error is the file of this name, which another process may have rotated.
    fn is_open(&self) -> bool {
        let open = rustix::fs::fstat(std::io::stderr()).map(|stat| (stat.st_dev, stat.st_ino));
        let named = fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        matches!((open, named), (Ok(open), Ok(named)) if open == named)
    }

    fn rotate_if_long(&self) -> Result<()> {
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() > BYTES_MAX) {
            let older = self.path.with_added_extension(OLDER);
            fs::rename(&self.path, older).map_err(|error| Error::io("renaming", &self.path, error))?;
        }
        Ok(())
    }
}
