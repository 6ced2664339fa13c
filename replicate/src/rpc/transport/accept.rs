//! The server's ends of connections.
//!
//! Accepting a connection never waits for its client: steps that do, such as TLS, are part of [`Raw::handshake`], whose
//! time and number the server limits.

use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use chunkstore::{Error, Result};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::activation::Inherited;
use super::{SOCKET_FILE, Stream, stdio, tcp, unix};
use crate::rpc::address::{Address, HostPort};
use crate::rpc::tls::ServerTls;

/// The peer of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine, by the kernel's credentials.
    Local {
        /// Its user.
        uid: u32,
        /// Its process id, if the kernel gives it.
        pid: Option<i32>,
    },
    /// A client over TLS.
    Tls {
        /// Its address.
        addr: SocketAddr,
        /// The name in its certificate, signed by an authority that the server accepts.
        client_name: Option<String>,
    },
    /// A client on this machine without encryption; any user.
    Plain {
        /// Its address.
        addr: SocketAddr,
    },
    /// The parent of this process, as with ssh.
    Stdio,
}

impl Peer {
    /// The name in the client's verified certificate.
    pub fn client_name(&self) -> Option<&str> {
        match self {
            Self::Tls { client_name, .. } => client_name.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid: Some(pid) } => write!(f, "process {pid} of user {uid}"),
            Self::Local { uid, pid: None } => write!(f, "a process of user {uid}"),
            Self::Tls { addr, client_name: Some(name) } => write!(f, "{name} ({addr})"),
            Self::Tls { addr, client_name: None } | Self::Plain { addr } => addr.fmt(f),
            Self::Stdio => f.write_str("standard input"),
        }
    }
}

/// Accepts connections at one address.
#[derive(Debug)]
pub struct Acceptor(Listener);

enum Listener {
    Unix(UnixListener),
    Tls(TcpListener, ServerTls),
    Plain(TcpListener),
    /// Yields its one stream once.
    Stdio(Option<Stream>),
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unix(_) => "Unix",
            Self::Tls(..) => "Tls",
            Self::Plain(_) => "Plain",
            Self::Stdio(_) => "Stdio",
        })
    }
}

impl Acceptor {
    /// Listens at the socket in a store's directory. The caller holds the store's lock; a dead owner's socket is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::Refused`] if something else has the socket's name; [`Error::NotFound`] without the directory.
    pub fn unix(dir: &Path) -> Result<Self> {
        unix::bind_at(dir, SOCKET_FILE.as_ref()).map(Listener::Unix).map(Self)
    }

    /// Listens with TLS.
    ///
    /// # Errors
    /// [`Error::Io`] if the host is not this one, or the port is taken.
    pub async fn tls(at: &HostPort, tls: ServerTls) -> Result<Self> {
        Ok(Self(Listener::Tls(tcp::listen(at.host(), at.port()).await?, tls)))
    }

    /// Listens without encryption, for this machine only.
    ///
    /// # Errors
    /// [`Error::Refused`] if others could connect; [`Error::Io`] if the port is taken.
    pub async fn plain(at: &SocketAddr) -> Result<Self> {
        tcp::check_loopback(at)?;
        Ok(Self(Listener::Plain(tcp::listen(&at.ip().to_string(), at.port()).await?)))
    }

    /// Listens at an address that an operator named; one with TLS needs `tls`. A socket without a listener is replaced;
    /// the caller holds the store's lock, but a socket named for two stores belongs to the second.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing can listen there; otherwise as the functions above.
    pub async fn at(address: &Address, tls: Option<&ServerTls>) -> Result<Self> {
        match (address, tls) {
            (Address::Unix(path), _) => {
                let (dir, name) = unix::split(path)?;
                unix::bind_at(dir, name).map(Listener::Unix).map(Self)
            }
            (Address::Tls(at), Some(tls)) => Self::tls(at, tls.clone()).await,
            (Address::Tcp(at), _) => Self::plain(at).await,
            _ => Err(Error::invalid(format!("a server can't listen at {address}"))),
        }
    }

    /// Accepts connections at a socket that systemd opened; over the network only with TLS.
    ///
    /// # Errors
    /// [`Error::Refused`] if others could connect without encryption.
    pub fn inherited(socket: Inherited, tls: Option<&ServerTls>) -> Result<Self> {
        let failed = |error| Error::io("using", "a socket of systemd's", error);
        match (socket, tls) {
            (Inherited::Unix(socket), _) => Ok(Self(Listener::Unix(UnixListener::from_std(socket).map_err(failed)?))),
            (Inherited::Tcp(socket), Some(tls)) => {
                Ok(Self(Listener::Tls(TcpListener::from_std(socket).map_err(failed)?, tls.clone())))
            }
            (Inherited::Tcp(socket), None) => {
                tcp::check_loopback(&socket.local_addr().map_err(failed)?)?;
                Ok(Self(Listener::Plain(TcpListener::from_std(socket).map_err(failed)?)))
            }
        }
    }

    /// Uses standard input and output as its only connection.
    ///
    /// # Errors
    /// [`Error::Io`] if they are closed.
    pub fn stdio() -> Result<Self> {
        stdio::stream().map(Some).map(Listener::Stdio).map(Self)
    }

    /// The network address at which it listens, if there is one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Listener::Tls(listener, _) | Listener::Plain(listener) => listener.local_addr().ok(),
            Listener::Unix(_) | Listener::Stdio(_) => None,
        }
    }

    /// Waits for the next connection. It may be dropped at any time without losing one.
    ///
    /// # Errors
    /// [`Error::Io`] if accepting failed, most likely because no file descriptors are left; the caller may try again
    /// later.
    pub async fn accept(&mut self) -> Result<Raw> {
        let accepted = match &mut self.0 {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Pending::Unix(stream)),
            Listener::Tls(listener, tls) => {
                accept_tcp(listener).await.map(|(stream, addr)| Pending::Tls(stream, addr, tls.clone()))
            }
            Listener::Plain(listener) => accept_tcp(listener).await.map(|(stream, addr)| Pending::Plain(stream, addr)),
            Listener::Stdio(stream) => match stream.take() {
                Some(stream) => Ok(Pending::Stdio(stream)),
                None => pending().await,
            },
        };
        accepted.map(Raw).map_err(|error| Error::io("accepting", "a connection", error))
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            // The client was gone before its connection was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            accepted => return accepted,
        }
    }
}

/// A connection whose client is not authenticated yet.
pub struct Raw(Pending);

enum Pending {
    Unix(UnixStream),
    Tls(TcpStream, SocketAddr, ServerTls),
    Plain(TcpStream, SocketAddr),
    Stdio(Stream),
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pending::Unix(_) => f.write_str("Raw(Unix)"),
            Pending::Tls(_, addr, _) => write!(f, "Raw(Tls {addr})"),
            Pending::Plain(_, addr) => write!(f, "Raw(Plain {addr})"),
            Pending::Stdio(_) => f.write_str("Raw(Stdio)"),
        }
    }
}

impl Raw {
    /// Authenticates the client. The client determines how long this takes: the caller limits the time.
    ///
    /// # Errors
    /// [`Error::Denied`] if the client's certificate is not accepted; [`Error::Unreachable`] if the connection fails.
    pub async fn handshake(self) -> Result<(Stream, Peer)> {
        let lost = |error: io::Error| Error::unreachable(format!("a connection failed: {error}"));
        match self.0 {
            Pending::Unix(stream) => {
                let process = stream.peer_cred().map_err(lost)?;
                Ok((Box::new(stream), Peer::Local { uid: process.uid(), pid: process.pid() }))
            }
            Pending::Tls(stream, addr, tls) => {
                tcp::tune(&stream).map_err(lost)?;
                let (stream, client_name) = tls.accept(addr, stream).await?;
                Ok((Box::new(stream), Peer::Tls { addr, client_name }))
            }
            Pending::Plain(stream, addr) => {
                tcp::tune(&stream).map_err(lost)?;
                Ok((Box::new(stream), Peer::Plain { addr }))
            }
            Pending::Stdio(stream) => Ok((stream, Peer::Stdio)),
        }
    }
}
