//! TCP connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use chunkstore::{Error, Result};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::timeout;

/// Keep-alive: idle time before the first probe,
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);
/// the interval of probes,
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// and the number of unanswered probes after which the connection is closed.
const KEEP_ALIVE_PROBES: u32 = 3;

/// # Errors
/// [`Error::Refused`] if the address is not this machine's own.
pub(super) fn check_loopback(socket: &SocketAddr) -> Result<()> {
    if socket.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Error::refused(format!("without encryption only this machine can be used (127.0.0.1 or [::1]), not {socket}")))
}

/// Connects to the first of a host's addresses that answers. Each gets an equal part of `time_max`, so that a silent
/// one does not block the others.
///
/// # Errors
/// [`Error::Unreachable`].
pub(super) async fn connect(host: &str, port: u16, time_max: Duration) -> Result<TcpStream> {
    let found = lookup_host((host, port)).await;
    let addresses: Vec<_> = found.map_err(|error| Error::unreachable(format!("{host}: {error}")))?.collect();
    let mut failure = Error::unreachable(format!("{host} has no address"));
    for address in &addresses {
        let share = time_max / addresses.len() as u32;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                tune(&stream).map_err(|error| Error::unreachable(format!("{host}: {error}")))?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = Error::unreachable(format!("{host} ({address}): {error}")),
            Err(_) => failure = Error::unreachable(format!("{host} ({address}) does not answer")),
        }
    }
    Err(failure)
}

/// Listens at all addresses of a host; usually it is one.
///
/// # Errors
/// [`Error::Unreachable`] if the host has no address; [`Error::Io`] if the port is taken.
pub(super) async fn listen(host: &str, port: u16) -> Result<TcpListener> {
    TcpListener::bind((host, port)).await.map_err(|error| Error::io("listening at", format!("{host}:{port}"), error))
}

/// Frames are written whole, so delaying them (Nagle) gains nothing; and a dead peer must be noticed.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_INTERVAL)?;
    Ok(sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine() {
        for (socket, is_here) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
            ("[::ffff:10.0.0.1]:1", false),
        ] {
            let checked = check_loopback(&socket.parse().unwrap());
            assert_eq!(checked.is_ok(), is_here, "{socket}");
            assert!(is_here || matches!(checked, Err(Error::Refused { .. })));
        }
    }

    #[tokio::test]
    async fn connections_are_watched() {
        let listener = listen("127.0.0.1", 0).await.unwrap();
        let stream = connect("localhost", listener.local_addr().unwrap().port(), Duration::from_mins(1)).await.unwrap();
        assert!(stream.nodelay().unwrap() && sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEP_ALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), KEEP_ALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), KEEP_ALIVE_PROBES);
    }
}
