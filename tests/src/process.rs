//! How a child ended, and the most memory that it had.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};

/// The end of a child process.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// The most memory it had resident, in bytes.
    pub peak_bytes: u64,
}

/// A command's standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command, its output thrown away, and measures it.
#[expect(clippy::zombie_processes, reason = "`wait4` waits for it")]
pub fn measured(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut status = 0;
    // SAFETY: `rusage` is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals that outlive the call, and no other thread waits for this child.
    let waited = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
    assert!(waited > 0, "waiting for {command:?}: {}", std::io::Error::last_os_error());
    Ended { status: ExitStatus::from_raw(status), peak_bytes: u64::try_from(usage.ru_maxrss).unwrap() * 1024 }
}
