//! Writing qcow2: a raw image beside the destination, which `qemu-img` converts.
//!
//! The destination appears whole and synced, or not at all; what lies beside it is removed whatever happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use chunkstore::Error;
use chunkstore::progress::Progress;
use chunkstore::restore::{RestoreOptions, RestoreReport};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::failure::{Failure, Result};

const QEMU_IMG: &str = "qemu-img";
const POLL: Duration = Duration::from_millis(20);

/// Whether a qcow2 image can be written to `dest`: said before anything is restored.
pub(crate) fn check(dest: &Path, force: bool) -> Result<()> {
    match fs::metadata(dest) {
        Ok(there) if !there.is_file() => {
            return Err(Failure::refused(format!("{} is not a regular file", dest.display()))
                .hint("restore to a block device with --format raw"));
        }
        Ok(_) if !force => {
            return Err(Failure::refused(format!("{} exists", dest.display())).hint("--force replaces it"));
        }
        Err(_) if fs::symlink_metadata(dest).is_ok() => {
            return Err(Failure::refused(format!("{} is a symbolic link to nothing", dest.display())));
        }
        _ => {}
    }
    let found = Command::new(QEMU_IMG).arg("--version").stdin(Stdio::null()).output();
    found.map(drop).map_err(|error| {
        Failure::io("running", QEMU_IMG, error)
            .hint("writing qcow2 needs `qemu-img` (in Debian: apt install qemu-utils); --format raw does without")
    })
}

/// Lets `restore` write a raw image, and makes the qcow2 image `dest` of it.
pub(crate) fn write(
    dest: &Path,
    options: &RestoreOptions,
    progress: &Progress,
    restore: impl FnOnce(&Path) -> chunkstore::Result<RestoreReport>,
) -> Result<RestoreReport> {
    let started = Instant::now();
    // What a link names is replaced, not the link. An absolute path is never taken for a protocol or an option.
    let absolute = fs::canonicalize(dest).or_else(|_| std::path::absolute(dest));
    let dest = absolute.map_err(|error| Failure::io("finding", dest, error))?;
    let raw = Aside::of(&dest, "raw");
    let qcow2 = Aside::of(&dest, "qcow2");
    let report = restore(&raw.0)?;
    convert(&raw.0, &qcow2.0, progress)?;
    publish(&qcow2.0, &dest, options).map_err(|error| Failure::io("writing", &dest, error))?;
    Ok(RestoreReport { elapsed_s: started.elapsed().as_secs_f64(), ..report })
}

/// A file beside the destination, removed at the end.
struct Aside(PathBuf);

impl Aside {
    fn of(dest: &Path, suffix: &str) -> Self {
        let mut name = OsString::from(".");
        name.push(dest.file_name().unwrap_or_default());
        name.push(format!(".{}.{suffix}", std::process::id()));
        Self(dest.with_file_name(name))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Gone already if it was renamed into place.
        let _ = fs::remove_file(&self.0);
    }
}

fn convert(raw: &Path, qcow2: &Path, progress: &Progress) -> Result<()> {
    let mut command = Command::new(QEMU_IMG);
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(qcow2);
    // In a group of its own it does not get the terminal's Ctrl-C, which we pass on in our own words.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| Failure::io("running", QEMU_IMG, error))?;
    let mut complaint = String::new();
    let succeeded = wait(&mut child, progress)?;
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut complaint);
    }
    if succeeded {
        return Ok(());
    }
    let complaint = complaint.trim().replace('\n', "; ");
    Err(Failure::io("converting with qemu-img to", qcow2, io::Error::other(complaint)))
}

/// Waits for the child's end, and brings it about if the user asked to stop.
fn wait(child: &mut Child, progress: &Progress) -> Result<bool> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if progress.check().is_err() => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Interrupted.into());
            }
            Ok(None) => thread::sleep(POLL),
            Err(error) => return Err(Failure::io("waiting for", QEMU_IMG, error)),
        }
    }
}

/// Gives the image its name. Its bytes are synced before and its name after that, unless that was not asked for.
fn publish(qcow2: &Path, dest: &Path, options: &RestoreOptions) -> io::Result<()> {
    let file = File::open(qcow2)?;
    if let Ok(old) = fs::metadata(dest) {
        // As far as this user may set them.
        let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
        let _ = file.set_permissions(old.permissions());
    }
    if options.sync {
        file.sync_all()?;
    }
    let flags = if options.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, qcow2, CWD, dest, flags)?;
    if options.sync { File::open(dest.parent().unwrap_or(dest))?.sync_all() } else { Ok(()) }
}
