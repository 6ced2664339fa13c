//! Small file systems and loop devices, taken down when dropped. They need root.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tempfile::TempDir;

use crate::running::PATIENCE;

/// The page size of the machines that the tests run on, or a part of it.
const PAGE_BYTES: usize = 4096;

/// A file system that is mounted.
#[derive(Debug)]
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    /// An empty file system in memory, as large as said.
    pub fn tmpfs(mib: u64) -> Self {
        let size = format!("size={mib}m");
        Self::of(&["-t", "tmpfs", "-o", &size, "tmpfs"].map(OsStr::new))
    }

    /// The file system on a block device.
    pub fn device(device: &Path) -> Self {
        Self::of(&[device.as_os_str()])
    }

    /// The file system of an image, which is only read.
    pub fn image(file: &Path) -> Self {
        Self::of(&["-o".as_ref(), "loop,ro,noload".as_ref(), file.as_os_str()])
    }

    fn of(what: &[&OsStr]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tool("mount", &[what, &[dir.path().as_os_str()]].concat());
        Self { dir }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills all but `left_bytes` with a file of this name.
    pub fn fill(&self, name: &str, left_bytes: u64) {
        let file = File::create(self.path().join(name)).unwrap();
        let megabyte = vec![0x55; 1 << 20];
        let mut offset = 0;
        while let Some(bytes) = self.free_bytes().checked_sub(left_bytes).filter(|bytes| *bytes > 0) {
            let bytes = bytes.min(megabyte.len() as u64);
            file.write_all_at(&megabyte[..bytes as usize], offset).unwrap();
            offset += bytes;
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        take_down("umount", &[self.path().as_os_str()]);
    }
}

/// A loop device over a file.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Attaches a free loop device.
    pub fn attach(file: &Path) -> Self {
        let device = tool("losetup", &[OsStr::new("--find"), OsStr::new("--show"), file.as_os_str()]);
        Self { device: device.trim().into() }
    }

    /// Such as `/dev/loop0`.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        take_down("losetup", &[OsStr::new("--detach"), self.device.as_os_str()]);
        // Programs that watch for new devices may have it open; until they close it, the file is in use.
        let backing = Path::new("/sys/block").join(self.device.file_name().unwrap()).join("loop/backing_file");
        let limit = Instant::now() + PATIENCE;
        while backing.exists() && Instant::now() < limit {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a tool that must be there and succeed; returns what it printed.
pub fn tool(name: &str, args: &[&OsStr]) -> String {
    let mut command = with_path(name);
    let output = command.args(args).output().unwrap_or_else(|error| panic!("this test needs `{name}`: {error}"));
    let said = super::stderr(&output);
    assert!(output.status.success(), "this test needs root and {command:?}, which failed: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A panic while unwinding would hide the first one: what stays behind is only said.
pub(crate) fn take_down(name: &str, args: &[&OsStr]) {
    let mut command = with_path(name);
    let ended = command.args(args).status();
    if !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
        eprintln!("{command:?} failed: {ended:?}");
    }
}

/// Administration's tools are not on every user's path.
pub(crate) fn with_path(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Bytes of a device that are in the page cache, of `bytes` from its start.
pub fn resident_bytes(device: &File, bytes: usize) -> usize {
    let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: the kernel chooses the place of the mapping, and the mapping is never touched.
    let start = unsafe { mmap(ptr::null_mut(), bytes, read, shared, device, 0) }.unwrap();
    let mut pages = vec![0_u8; bytes / PAGE_BYTES];
    // SAFETY: the mapping has `bytes` bytes, and `pages` one byte for each page of it.
    assert_eq!(unsafe { libc::mincore(start, bytes, pages.as_mut_ptr()) }, 0);
    // SAFETY: nothing refers to the mapping.
    unsafe { munmap(start, bytes) }.unwrap();
    pages.iter().filter(|page| **page & 1 == 1).count() * PAGE_BYTES
}
