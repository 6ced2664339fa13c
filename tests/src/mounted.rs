//! A store that is mounted with `vmfs`, and unmounted when dropped, whatever became of the test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::{Vmstore, kill, stderr};

/// Missing on a machine without FUSE.
const DEVICE: &str = "/dev/fuse";
/// How `vmfs umount` ends where files are open.
const BUSY: i32 = 4;

/// A mount in the background.
#[derive(Debug)]
pub struct Mounted {
    vmfs: Vmfs,
    mountpoint: PathBuf,
    pid: u32,
}

/// The program `vmfs` and a store for it.
#[derive(Clone, Debug)]
pub struct Vmfs {
    program: PathBuf,
    store: PathBuf,
}

impl Vmfs {
    /// For the store of `vmstore`, and of the same build.
    pub fn beside(vmstore: &Vmstore) -> Self {
        assert!(Path::new(DEVICE).exists(), "{DEVICE} is missing: these tests need root and FUSE (`modprobe fuse`)");
        Self { program: vmstore.program().with_file_name("vmfs"), store: vmstore.store().to_path_buf() }
    }

    /// The command `vmfs --store STORE ARGS...`, with nothing on standard input.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--store").arg(&self.store).args(args).stdin(Stdio::null());
        for variable in ["VMSTORE_STORE", "VMSTORE_LOG", "VMSTORE_TOKEN", "VMSTORE_STANDALONE", "NO_COLOR"] {
            command.env_remove(variable);
        }
        command.env("VMSTORE_IDLE_EXIT", crate::IDLE_EXIT_S);
        command
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let mut command = self.command(args);
        let output = command.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command:?} ended with {}: {}{printed}", output.status, stderr(&output));
        printed
    }

    /// Runs a command that must end with `code` and say why; returns what it said.
    pub fn expect_exit<A: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = A>) -> String {
        let mut command = self.command(args);
        let output = command.output().unwrap();
        crate::expect_exit_of(&output, code, &format!("{command:?}"))
    }

    /// The JSON that a command prints, however it ends.
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let mut command = self.command(args);
        let output = command.arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{command:?}: {error}: {output:?}"))
    }
}

impl Mounted {
    /// Mounts the store of `vmstore` at `mountpoint`, which is made if it is not there.
    pub fn start(vmstore: &Vmstore, mountpoint: impl Into<PathBuf>) -> Self {
        Self::with::<&str>(vmstore, mountpoint, &[])
    }

    /// The same with further arguments.
    pub fn with<A: AsRef<OsStr>>(vmstore: &Vmstore, mountpoint: impl Into<PathBuf>, args: &[A]) -> Self {
        Self::try_with(vmstore, mountpoint, args)
            .unwrap_or_else(|output| panic!("vmfs mount ended with {}: {}", output.status, stderr(&output)))
    }

    /// The same where `vmfs mount` may fail.
    ///
    /// # Errors
    /// How it ended and what it said.
    pub fn try_with<A: AsRef<OsStr>>(
        vmstore: &Vmstore,
        mountpoint: impl Into<PathBuf>,
        args: &[A],
    ) -> Result<Self, Output> {
        let (vmfs, mountpoint) = (Vmfs::beside(vmstore), mountpoint.into());
        fs::create_dir_all(&mountpoint).unwrap();
        let args = args.iter().map(AsRef::as_ref);
        let mut mount = vmfs.command([OsStr::new("mount"), mountpoint.as_os_str()].into_iter().chain(args));
        let output = mount.output().unwrap();
        if !output.status.success() {
            return Err(output);
        }
        let mut mounted = Self { vmfs, mountpoint, pid: 0 };
        mounted.pid = mounted.status()["pid"].as_u64().unwrap().try_into().unwrap();
        Ok(mounted)
    }

    /// The program.
    pub fn vmfs(&self) -> &Vmfs {
        &self.vmfs
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The mount point as an argument.
    pub fn arg(&self) -> &str {
        self.mountpoint.to_str().unwrap()
    }

    /// The process that serves it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file of a snapshot, such as `web01@20261120T020000Z`.
    pub fn snapshot(&self, name: &str) -> PathBuf {
        let (image, time) = name.split_once('@').unwrap();
        self.mountpoint.join(format!("snapshots/{image}/{time}.raw"))
    }

    /// The file of a clone.
    pub fn clone_file(&self, name: &str) -> PathBuf {
        self.mountpoint.join(format!("clones/{name}.raw"))
    }

    /// The mount's own status.
    pub fn status(&self) -> Value {
        let text = fs::read_to_string(self.mountpoint.join(".vmfs/status.json")).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Whether it is mounted.
    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.mountpoint)
    }

    /// Whether its process lives.
    pub fn is_served(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid)).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Unmounts it; it must not be in use.
    pub fn unmount(self) {
        // A program that another test has just started holds files that are open here, too, until it has its own image.
        crate::eventually("the unmount", || {
            let output = self.vmfs.command(["umount", self.arg()]).output().unwrap();
            assert!(output.status.success() || output.status.code() == Some(BUSY), "{output:?}");
            output.status.success()
        });
        assert!(!self.is_mounted(), "{self:?}");
        crate::eventually("the end of vmfs", || !self.is_served());
    }

    /// Kills the process, and leaves the mount behind as that does.
    pub fn kill(&self) {
        kill(self.pid);
        crate::eventually("the end of vmfs", || !self.is_served());
        // Its last thread lets go of the kernel's queue.
        crate::eventually("the end of the connection", || is_disconnected(&self.mountpoint));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted() {
            // A panic while unwinding would hide the first one.
            let _ = self.vmfs.command(["umount", "--force", self.arg()]).output();
        }
        if self.is_served() {
            kill(self.pid);
        }
    }
}

/// Whether the process behind a mount is gone.
fn is_disconnected(mountpoint: &Path) -> bool {
    rustix::fs::statvfs(mountpoint).err() == Some(rustix::io::Errno::NOTCONN)
}

/// Whether something is mounted on a directory itself.
pub fn is_mounted(path: &Path) -> bool {
    let path = path.parent().unwrap().canonicalize().unwrap().join(path.file_name().unwrap());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
