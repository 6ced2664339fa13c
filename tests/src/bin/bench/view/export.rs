//! The peer: a qcow2 that QEMU's storage daemon shows as a raw file through FUSE.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Longer than it takes to begin.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// An export, taken down when dropped.
pub(super) struct Export {
    child: Child,
    file: PathBuf,
}

impl Export {
    /// Shows `qcow2`, a disk of `bytes`, as `file`.
    pub(super) fn start(qcow2: &Path, bytes: u64, file: PathBuf) -> Result<Self> {
        File::create(&file)?;
        let (qcow2, at) = (qcow2.display(), file.display());
        // However this program ends, it ends too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-storage-daemon"]);
        command.args(["--blockdev", &format!("driver=file,node-name=file,filename={qcow2},read-only=on")]);
        command.args(["--blockdev", "driver=qcow2,node-name=disk,file=file,read-only=on"]);
        command.args(["--export", &format!("type=fuse,id=export,node-name=disk,mountpoint={at}")]);
        let child = command.stdin(Stdio::null()).spawn().context("cannot run qemu-storage-daemon")?;
        let mut export = Self { child, file };
        let started = Instant::now();
        while export.file.metadata()?.len() != bytes {
            ensure!(export.child.try_wait()?.is_none(), "qemu-storage-daemon ended");
            ensure!(started.elapsed() < START_TIMEOUT, "qemu-storage-daemon does not export");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(export)
    }

    /// The raw file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // Killed, it leaves a dead mount behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("umount").args(["--lazy", "--quiet"]).arg(&self.file).status();
    }
}
