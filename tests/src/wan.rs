//! A long and narrow link in one process: a TCP proxy with a rate and a delay in each direction.
//!
//! All connections through one proxy share its link, as hosts of a site do. In each direction, bytes wait in a short
//! queue, leave it at the link's rate, and arrive half a round trip later; who sends faster is held up by not being
//! read. It is a model of the link and not of TCP on it: there is no loss and no slow start, so what it shows is how
//! well the programs at both ends keep a link busy, and how often they wait for an answer.

mod link;
mod pipe;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size;

use self::link::Lane;
pub use self::link::{Link, Usage};

/// Bytes that the kernel may hold of a connection before the link; more would hide the link's queue from the sender.
const SOCKET_BUFFER_BYTES: usize = 256 << 10;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From who connected to the proxy, to the target.
    Up,
    /// From the target to who connected.
    Down,
}

/// A proxy that listens until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    link: Link,
    up: Lane,
    down: Lane,
    /// Both ends of the connections that were open when they were last looked at.
    open: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
    /// Connections now, and the most there were.
    connections: AtomicUsize,
    most_connections: AtomicUsize,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn start(link: Link, target: SocketAddr) -> io::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), link, target)
    }

    /// Listens on `address` and joins every connection to a new one to `target`.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn listen(address: SocketAddr, link: Link, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        set_socket_recv_buffer_size(&listener, SOCKET_BUFFER_BYTES)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            link,
            up: Lane::new(link),
            down: Lane::new(link),
            open: Mutex::default(),
            stopped: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            most_connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, target, &accepting));
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The traffic of a direction since the start or [`Proxy::count_anew`].
    pub fn usage(&self, direction: Direction) -> Usage {
        self.shared.lane(direction).usage()
    }

    /// Begins to count again.
    pub fn count_anew(&self) {
        self.shared.up.count_anew();
        self.shared.down.count_anew();
    }

    /// The most connections that were open at one time.
    pub fn most_connections(&self) -> usize {
        self.shared.most_connections.load(Ordering::Relaxed)
    }

    /// Cuts all connections there are once so many more bytes have passed in a direction: those pass, no byte more.
    /// Later connections are let through.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.shared.lane(direction).cut_after(bytes);
    }

    /// Cuts all connections there are. Later ones are let through.
    pub fn cut(&self) {
        self.shared.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor; if that fails, it has ended.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.cut();
    }
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn cut(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in open {
            // It may have been closed already, which is as good.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Remembers both ends, so that they can be cut, and forgets those that are closed.
    fn remember(&self, ends: [&TcpStream; 2]) -> io::Result<()> {
        let copies = [ends[0].try_clone()?, ends[1].try_clone()?];
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|stream| stream.peer_addr().is_ok());
        open.extend(copies);
        Ok(())
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((client, _)) => {
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    // An end that refuses or goes away is for the other end to see.
                    let _ = join_ends(client, target, &shared);
                });
            }
            Err(error) => {
                eprintln!("wan: cannot accept: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Carries bytes both ways until both ends have closed.
fn join_ends(client: TcpStream, target: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    // TCP's own handshake takes a round trip; here it was with the proxy and took none.
    thread::sleep(shared.link.rtt);
    let server = TcpStream::connect(target)?;
    set_socket_recv_buffer_size(server.as_fd(), SOCKET_BUFFER_BYTES)?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
    }
    shared.remember([&client, &server])?;
    let connections = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
    shared.most_connections.fetch_max(connections, Ordering::Relaxed);
    let (client, server) = (Arc::new(client), Arc::new(server));
    let up = pipe::start(Arc::clone(&client), Arc::clone(&server), Arc::clone(shared), Direction::Up);
    let down = pipe::start(server, client, Arc::clone(shared), Direction::Down);
    for pipe in [up, down] {
        let _ = pipe.join();
    }
    shared.connections.fetch_sub(1, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests;
