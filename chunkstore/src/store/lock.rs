//! One process opens a store at a time.
//!
//! The lock is `flock` on the file `lock`, so it ends with its holder, however that ends. The holder writes into the
//! file who it is, for messages; the text is meaningless once the lock is free.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const FILE: &str = "lock";
const POLL: Duration = Duration::from_millis(50);
/// Characters of the holder's command line that others are shown.
const COMMAND_CHARS_MAX: usize = 500;
/// More than the holder writes.
const HOLDER_BYTES_MAX: u64 = 4096;

/// Proof that this process owns the store; dropping it releases the lock.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock of the store in `dir`, waiting for at most `wait`.
    ///
    /// # Errors
    /// [`Error::Busy`], with the text of the holder, if it is still taken then.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<Self> {
        let path = dir.join(FILE);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Error::io("opening", &path, error))?;
        let deadline = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(POLL),
                Err(TryLockError::WouldBlock) => return Err(Error::busy("the store", holder(&mut file))),
                Err(TryLockError::Error(error)) => return Err(Error::io("locking", &path, error)),
            }
        }
        // Only information: a full disk must not prevent removing and collecting.
        let _ = write_holder(&mut file);
        Ok(Self { _file: file })
    }
}

/// Writes into a lock's file who this process is.
///
/// # Errors
/// If it can't be written.
pub fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let arguments: Vec<_> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let command: String = arguments.join(" ").chars().take(COMMAND_CHARS_MAX).collect();
    write!(file, "process {} ({command})", std::process::id())
}

/// The text of a lock's holder. It is meaningless once the lock is free.
pub fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(HOLDER_BYTES_MAX).read_to_string(&mut text));
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    if read.is_err() || text.is_empty() { "another process".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StoreLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let Err(Error::Busy { holder, .. }) = StoreLock::acquire(dir.path(), Duration::ZERO) else { panic!() };
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        let waiter = thread::scope(|scope| {
            let waiter = scope.spawn(|| StoreLock::acquire(dir.path(), Duration::from_mins(1)));
            drop(first);
            waiter.join().unwrap()
        });
        waiter.unwrap();
    }
}
