//! Sockets that systemd has opened for a service (`sd_listen_fds(3)`).

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use chunkstore::{Error, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// The first descriptor that systemd passes.
const FIRST: RawFd = 3;
/// More than a unit file would name.
const SOCKETS_MAX: u32 = 64;
const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A listening socket from systemd.
#[derive(Debug)]
pub enum Inherited {
    /// On this machine.
    Unix(UnixListener),
    /// Of the network.
    Tcp(TcpListener),
}

/// Takes the sockets that systemd passed to this process, and removes the variables that describe them: children must
/// not use them, and a second call returns none. Without the variables there are none.
///
/// # Safety
/// No other thread may be running, as the environment is changed; so it belongs at the beginning of `main`.
///
/// # Errors
/// [`Error::Invalid`] if systemd passed anything but listening sockets.
pub unsafe fn take_inherited() -> Result<Vec<Inherited>> {
    let [pid, count, _] = VARIABLES.map(|name| env::var(name).ok());
    for name in VARIABLES {
        // SAFETY: no other thread uses the environment, as the caller makes sure.
        unsafe { env::remove_var(name) };
    }
    let count = meant_for(std::process::id(), pid.as_deref(), count.as_deref())?;
    let fds = (FIRST..).take(count as usize);
    // SAFETY: the parent process says that it has opened these for this one, and as the variables are removed now, they
    // are not taken twice.
    fds.map(|fd| inherit(unsafe { OwnedFd::from_raw_fd(fd) })).collect()
}

/// The number of sockets that systemd passed to this process.
fn meant_for(own_pid: u32, pid: Option<&str>, count: Option<&str>) -> Result<u32> {
    if pid.and_then(|pid| pid.parse().ok()) != Some(own_pid) {
        return Ok(0);
    }
    let count = count.unwrap_or("0");
    let parsed = count.parse().ok().filter(|count| *count <= SOCKETS_MAX);
    parsed.ok_or_else(|| Error::invalid(format!("LISTEN_FDS is {count:?}, not a number up to {SOCKETS_MAX}")))
}

fn inherit(fd: OwnedFd) -> Result<Inherited> {
    kind_of(fd).map_err(|error| {
        Error::invalid(format!(
            "a file descriptor that was handed over is no listening socket of a known kind: {error}"
        ))
    })
}

fn kind_of(fd: OwnedFd) -> io::Result<Inherited> {
    if sockopt::socket_type(&fd)? != SocketType::STREAM || !sockopt::socket_acceptconn(&fd)? {
        return Err(io::Error::other("it does not listen for streams"));
    }
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    match sockopt::socket_domain(&fd)? {
        AddressFamily::UNIX => Ok(Inherited::Unix(fd.into())),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Inherited::Tcp(fd.into())),
        other => Err(io::Error::other(format!("its address family is {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_variables_name_this_process() {
        let cases = [
            (None, None, Some(0)),
            (None, Some("1"), Some(0)),
            (Some("8"), Some("1"), Some(0)),
            (Some("7"), Some("2"), Some(2)),
            (Some("7"), None, Some(0)),
            (Some("7"), Some("-1"), None),
            (Some("7"), Some("1000000"), None),
        ];
        for (pid, count, expected) in cases {
            assert_eq!(meant_for(7, pid, count).ok(), expected, "{pid:?} {count:?}");
        }
    }

    #[test]
    fn kinds_of_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(matches!(inherit(unix.into()), Ok(Inherited::Unix(_))));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let Ok(Inherited::Tcp(tcp)) = inherit(tcp.into()) else { panic!() };
        assert_eq!(tcp.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let connected = std::net::TcpStream::connect(address).unwrap();
        let file = tempfile::tempfile().unwrap();
        for other in [UdpSocket::bind("127.0.0.1:0").unwrap().into(), connected.into(), OwnedFd::from(file)] {
            assert!(matches!(inherit(other), Err(Error::Invalid { .. })));
        }
    }
}
