//! The log of an owner that a command started: `owner.log` in the store, with one older file beside it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use chunkstore::Error;

use crate::failure::Result;

const FILE: &str = "owner.log";
const OLDER: &str = "owner.log.1";
/// A longer log is put aside.
const BYTES_MAX: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Standard error of this process as a log file that does not grow without bound.
pub(crate) struct OwnerLog {
    dir: PathBuf,
}

impl OwnerLog {
    /// Makes standard error the log in `dir`; whoever read it until now sees its end.
    pub(crate) fn take_over(dir: &Path) -> Result<()> {
        let log = Self { dir: dir.to_path_buf() };
        log.rotate_if_long()?;
        log.open()?;
        thread::spawn(move || {
            loop {
                thread::sleep(LOOK_EVERY);
                // A log is not worth ending for.
                let _ = log.rotate_if_long().and_then(|rotated| if rotated { log.open() } else { Ok(()) });
            }
        });
        Ok(())
    }

    fn open(&self) -> Result<()> {
        let path = self.dir.join(FILE);
        let opened = File::options().append(true).create(true).open(&path);
        let file = match opened {
            Ok(file) => file,
            // On a full disk an owner works without a log.
            Err(_) => {
                File::options().write(true).open("/dev/null").map_err(|error| Error::io("opening", &path, error))?
            }
        };
        rustix::stdio::dup2_stderr(file.as_fd()).map_err(|error| Error::io("opening", &path, error.into()))?;
        Ok(())
    }

    fn rotate_if_long(&self) -> Result<bool> {
        let path = self.dir.join(FILE);
        let is_long = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > BYTES_MAX);
        if is_long {
            fs::rename(&path, self.dir.join(OLDER)).map_err(|error| Error::io("renaming", &path, error))?;
        }
        Ok(is_long)
    }
}
