//! Streams between a client and a store's owner: they carry the protocol and authenticate the peer.
//!
//! [`connect`] gives the client's end for any [`Address`]; [`Acceptor`] gives the server's ends, each with the [`Peer`]
//! that the kernel or TLS vouches for. Nothing here knows the protocol.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use chunkstore::metrics::Counter;
use chunkstore::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use self::counted::CountedStream;
use crate::rpc::address::{Address, HostPort};
use crate::rpc::tls::{Fingerprint, TlsClient};

mod accept;
mod activation;
mod counted;
mod rate;
mod ssh;
mod stdio;
mod tcp;
#[cfg(test)]
mod tests;
mod unix;

pub use accept::{Acceptor, Peer, Raw};
pub use activation::{Inherited, take_inherited};
pub use rate::RateLimit;
pub use unix::SOCKET_FILE;

/// Time limit for connecting.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);

/// A stream to the other side.
pub type Stream = Box<dyn Transport>;

/// The traits that the protocol needs of a stream.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Transport for S {}

/// How to connect, and which server to trust.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The only key that a TLS server may present.
    pub pin: Option<Fingerprint>,
    /// A PEM file of authorities, of which one must have signed a TLS server's certificate, unless there is a pin.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's certificate and its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Whether `tcp://`, without encryption, may be used; to this machine only.
    pub allow_plain: bool,
    /// Time limit for connecting. ssh has none, because it may ask its user for input.
    pub timeout: Duration,
    /// The ssh program, and its options after spaces.
    pub ssh_command: String,
    /// The program at the other side of ssh, as its shell understands it.
    pub remote_program: String,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            pin: None,
            ca: None,
            client_cert: None,
            allow_plain: false,
            timeout: CONNECT_TIME_MAX,
            ssh_command: "ssh".into(),
            remote_program: "vmstore".into(),
        }
    }
}

impl ConnectOptions {
    /// The defaults, with `VMSTORE_SSH` and `VMSTORE_REMOTE_PROGRAM` from the environment.
    pub fn from_env() -> Self {
        let mut options = Self::default();
        let set = |option: &mut String, name| {
            if let Some(value) = std::env::var(name).ok().filter(|value| !value.trim().is_empty()) {
                *option = value;
            }
        };
        set(&mut options.ssh_command, "VMSTORE_SSH");
        set(&mut options.remote_program, "VMSTORE_REMOTE_PROGRAM");
        options
    }
}

/// A new connection.
pub struct Connected {
    /// For the protocol.
    pub stream: Stream,
    /// The peer's address, for messages.
    pub peer: String,
    /// Bytes sent after encryption; 0 without encryption.
    pub tls_bytes_sent: Counter,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Connects to the owner at an address. For ssh this only starts the program: whether it reaches the other side shows
/// when the stream is used.
///
/// # Errors
/// [`Error::Unreachable`] if there is no answer; [`Error::Denied`] if it is another server, there is neither pin nor
/// authority, or its socket is not for this user; [`Error::Refused`] if the connection would be unprotected;
/// [`Error::NotFound`] if there is no such store here, or no ssh.
pub async fn connect(address: &Address, options: &ConnectOptions) -> Result<Connected> {
    let tls_bytes_sent = Counter::default();
    let connecting = open(address, options, &tls_bytes_sent);
    let stream = timeout(options.timeout, connecting).await.map_err(|_| {
        Error::unreachable(format!("{address} did not answer within {} s", options.timeout.as_secs_f32()))
    })??;
    Ok(Connected { stream, peer: address.to_string(), tls_bytes_sent })
}

async fn open(address: &Address, options: &ConnectOptions, tls_bytes_sent: &Counter) -> Result<Stream> {
    match address {
        Address::Path(dir) => Ok(Box::new(unix::connect(dir, SOCKET_FILE.as_ref()).await?)),
        Address::Unix(path) => {
            let (dir, name) = unix::split(path)?;
            Ok(Box::new(unix::connect(dir, name).await?))
        }
        Address::Ssh(ssh) => Ok(Box::new(ssh::start(ssh, &options.ssh_command, &options.remote_program)?)),
        Address::Tls(server) => open_tls(server, options, tls_bytes_sent).await,
        Address::Tcp(socket) => {
            if !options.allow_plain {
                return Err(Error::refused(format!(
                    "{address} is not encrypted; --allow-plain allows it on this machine"
                )));
            }
            tcp::check_loopback(socket)?;
            Ok(Box::new(tcp::connect(&socket.ip().to_string(), socket.port(), options.timeout).await?))
        }
    }
}

async fn open_tls(server: &HostPort, options: &ConnectOptions, tls_bytes_sent: &Counter) -> Result<Stream> {
    // Its files are read first: an error in them needs no network.
    let tls = TlsClient::new(options.pin, options.ca.as_deref(), options.client_cert.as_ref())?;
    let stream = tcp::connect(server.host(), server.port(), options.timeout).await?;
    Ok(Box::new(tls.connect(server.host(), CountedStream::new(stream, tls_bytes_sent.clone())).await?))
}
