//! Sockets on this machine.
//!
//! A socket's path may have 108 bytes at most, and a store's may be longer: the directory is opened, and the socket is
//! reached through `/proc/self/fd`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chunkstore::{Error, Result};
use rustix::fs::{Mode, OFlags, fchmod, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

/// The name of the owner's socket in a store's directory.
pub const SOCKET_FILE: &str = "owner.sock";
/// Backlog of connections.
const BACKLOG: i32 = 1024;
/// Only the store's user, and root, may connect.
const SOCKET_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Delay before another attempt when the backlog is full.
const RETRY: Duration = Duration::from_millis(20);

/// The directory and the name of a socket.
pub(super) fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| Error::invalid(format!("{} can't be a socket", path.display())))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir, name))
}

/// A path that is short however long the directory's is; it holds while the descriptor is open.
fn short_path(dir: &Path, name: &OsStr) -> Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(dir, flags, Mode::empty()).map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::NotFound => Error::not_found(format!("directory {}", dir.display())),
        error => Error::io("opening", dir, error),
    })?;
    let path = Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()).join(name);
    Ok((fd, path))
}

/// Connects to a socket in a directory.
///
/// # Errors
/// [`Error::NotFound`] if there is no such directory; [`Error::Unreachable`] if there is no listener; [`Error::Denied`]
/// if it is not for this user.
pub(super) async fn connect(dir: &Path, name: &OsStr) -> Result<UnixStream> {
    let (_open, path) = short_path(dir, name)?;
    loop {
        let shown = dir.join(name);
        let failed = |reason: &str| Error::unreachable(format!("{reason} at {}", shown.display()));
        match UnixStream::connect(&path).await {
            Ok(stream) => return Ok(stream),
            // The caller limits the time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => failed("no server listens"),
                    // It ended before it accepted the connection.
                    io::ErrorKind::ConnectionReset => failed("the server stopped listening"),
                    io::ErrorKind::PermissionDenied => Error::denied(format!("{} is another user's", shown.display())),
                    _ => Error::io("connecting to", &shown, error),
                });
            }
        }
    }
}

/// Listens at a socket in a directory. The caller holds a lock that excludes other listeners: a dead listener's socket
/// is removed.
///
/// # Errors
/// [`Error::Refused`] if something else has that name; [`Error::Io`].
pub(super) fn bind_at(dir: &Path, name: &OsStr) -> Result<UnixListener> {
    let (_open, path) = short_path(dir, name)?;
    let shown = dir.join(name);
    remove_stale(&path, &shown)?;
    listen_at(&path).map_err(|error| Error::io("listening at", shown, error))
}

fn remove_stale(path: &Path, shown: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(|error| Error::io("removing", shown, error))
        }
        Ok(_) => Err(Error::refused(format!("{} exists and is no socket", shown.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("looking at", shown, error)),
    }
}

/// The mode is set before the name exists (Linux takes it from the unbound socket), so that others can never connect.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, SOCKET_MODE)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}
