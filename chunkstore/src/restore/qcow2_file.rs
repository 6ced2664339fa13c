//! A qcow2 image as destination: a raw image next to it, which `qemu-img` converts.
//!
//! The destination appears whole and synced, or not at all; the files next to it are always removed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{RestoreOptions, RestoreReport, file};
use crate::error::{Error, Result};
use crate::progress::Progress;

const QEMU_IMG: &str = "qemu-img";
const POLL: Duration = Duration::from_millis(20);

/// Checks that a qcow2 image can be written to `dest`, before anything is restored.
///
/// # Errors
/// [`Error::Refused`] if `dest` is no regular file, or exists and `force` is not set; [`Error::Io`] if `qemu-img` does
/// not run.
pub fn check_qcow2(dest: &Path, force: bool) -> Result<()> {
    let refused = |why: &str| Err(Error::refused(format!("{} {why}", dest.display())));
    match fs::metadata(dest) {
        Ok(found) if !found.is_file() => {
            return refused("is not a regular file; --format raw restores to a block device");
        }
        Ok(_) if !force => return refused("exists; --force replaces it"),
        Err(_) if fs::symlink_metadata(dest).is_ok() => return refused("is a symbolic link to nothing"),
        _ => {}
    }
    let found = Command::new(QEMU_IMG).arg("--version").stdin(Stdio::null()).output();
    found.map(drop).map_err(|error| Error::io("running", QEMU_IMG, error))
}

/// Restores to a qcow2 image: `restore` writes a raw image with the given options, which is then converted.
pub(super) fn write(
    dest: &Path,
    options: &RestoreOptions,
    progress: &Progress,
    restore: impl FnOnce(&Path, &RestoreOptions) -> Result<RestoreReport>,
) -> Result<RestoreReport> {
    let started = Instant::now();
    // The target of a link is replaced, not the link. `qemu-img` never takes an absolute path for a protocol or an
    // option.
    let absolute = fs::canonicalize(dest).or_else(|_| std::path::absolute(dest));
    let dest = absolute.map_err(|error| Error::io("finding", dest, error))?;
    let raw = TempPath::next_to(&dest, "raw");
    let qcow2 = TempPath::next_to(&dest, "qcow2");
    let report = restore(&raw.0, &RestoreOptions { force: false, sync: false, ..*options })?;
    convert(&raw.0, &qcow2.0, progress)?;
    let image = File::open(&qcow2.0).map_err(|error| Error::io("opening", &qcow2.0, error))?;
    file::publish(&image, &qcow2.0, &dest, options.force, options.sync)?;
    Ok(RestoreReport { elapsed_s: started.elapsed().as_secs_f64(), ..report })
}

/// A temporary file in the destination's directory, removed at the end.
struct TempPath(PathBuf);

impl TempPath {
    fn next_to(dest: &Path, suffix: &str) -> Self {
        let mut name = OsString::from(".");
        name.push(dest.file_name().unwrap_or_default());
        name.push(format!(".{}.{suffix}", std::process::id()));
        Self(dest.with_file_name(name))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        // It is gone already if it was renamed into place.
        let _ = fs::remove_file(&self.0);
    }
}

fn convert(raw: &Path, qcow2: &Path, progress: &Progress) -> Result<()> {
    let mut command = Command::new(QEMU_IMG);
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(qcow2);
    // In a process group of its own it does not get the terminal's Ctrl-C: `wait` kills it.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| Error::io("running", QEMU_IMG, error))?;
    if wait(&mut child, progress)? {
        return Ok(());
    }
    let mut complaint = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut complaint);
    }
    let complaint = complaint.trim().replace('\n', "; ");
    Err(Error::io("converting with qemu-img to", qcow2, io::Error::other(complaint)))
}

/// Waits until the child ends, and kills it if the operation is to stop. Returns whether it succeeded.
fn wait(child: &mut Child, progress: &Progress) -> Result<bool> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) => {}
            Err(error) => return Err(Error::io("waiting for", QEMU_IMG, error)),
        }
        if let Err(interrupted) = progress.check() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(interrupted);
        }
        thread::sleep(POLL);
    }
}
