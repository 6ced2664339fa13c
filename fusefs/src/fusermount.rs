//! Mounting and unmounting without root, by the program `fusermount3`, which hands over the connection.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use chunkstore::{Error, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

const PROGRAM: &str = "fusermount3";
/// Tells the program where to send the connection.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Result of an attempt to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone.
    Gone,
    /// It is in use.
    Busy,
}

/// Mounts and returns the connection to the kernel.
///
/// # Errors
/// If there is no such program, or it refuses.
pub(crate) fn mount(mountpoint: &Path, options: &str) -> Result<OwnedFd> {
    let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| Error::io("mounting", mountpoint, error.into()))?;
    let mut command = Command::new(PROGRAM);
    // Its standard input, because the number of any other descriptor would have to survive an exec.
    command.args(["-o", options, "--"]).arg(mountpoint).env(SOCKET_VARIABLE, "0").stdin(its);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|error| missing(&error))?;
    drop(command);
    let connection = receive(&ours);
    let output = child.wait_with_output().map_err(|error| Error::io("running", PROGRAM, error))?;
    match connection {
        Some(connection) if output.status.success() => Ok(connection),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::denied(format!("{PROGRAM} does not mount {}: {}", mountpoint.display(), said.trim())))
        }
    }
}

/// Unmounts; if `lazily`, even while in use.
///
/// # Errors
/// If there is no such program, or it refuses.
pub(crate) fn unmount(mountpoint: &Path, lazily: bool) -> Result<Unmounted> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    let output = command.env("LC_ALL", "C").output().map_err(|error| missing(&error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(Unmounted::Gone)
    } else if said.contains("busy") {
        Ok(Unmounted::Busy)
    } else {
        Err(Error::denied(format!("{PROGRAM} does not unmount {}: {}", mountpoint.display(), said.trim())))
    }
}

fn missing(error: &io::Error) -> Error {
    Error::denied(format!("only root may mount without the program {PROGRAM}, which can't be run ({error})"))
}

fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}
