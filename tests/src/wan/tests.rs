//! The proxy changes no byte, counts bytes, limits the rate, and cuts connections on demand.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;

use super::*;
use crate::images::Rng;

/// A server that echoes each connection until it ends.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream).map(|_| stream.shutdown(Shutdown::Write)));
        }
    });
    address
}

/// A server that takes one connection and hands it over.
fn taker() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(listener.accept().unwrap().0));
    (address, receiver)
}

fn send_and_read_back(proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        (&stream).read_to_end(&mut back).unwrap();
    });
    back
}

#[test]
fn bytes_come_through_unchanged_and_are_counted() {
    for link in [Link::free(), Link::of(1000, 0), Link::of(400, 20), Link { rtt: Duration::from_millis(3), rate: None }]
    {
        let proxy = Proxy::start(link, echo()).unwrap();
        let bytes = Rng::new(1).noise(3_000_001);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert!(send_and_read_back(&proxy, &bytes) == bytes, "{link:?}"));
            }
        });
        let count = |direction| proxy.usage(direction).bytes;
        assert_eq!([count(Direction::Up), count(Direction::Down)], [9_000_003; 2], "{link:?}");
        assert!((1..=3).contains(&proxy.most_connections()));
        proxy.count_anew();
        assert_eq!(count(Direction::Up), 0);
    }
}

#[test]
fn it_is_never_busier_than_all_the_time() {
    let proxy = Proxy::start(Link::of(80, 10), echo()).unwrap();
    send_and_read_back(&proxy, &vec![7; 2_000_000]);
    let usage = proxy.usage(Direction::Up);
    // 2 MB at 10 MB/s can't take less than 200 ms, whatever the machine does; a piece may be counted at its end.
    assert!(usage.busy().unwrap() <= 1.01, "{usage:?}");
}

#[test]
fn a_connection_is_cut_after_so_many_bytes_and_the_next_is_not() {
    let (target, taken) = taker();
    let proxy = Proxy::start(Link::of(800, 2), target).unwrap();
    proxy.cut_after(Direction::Up, 1_000_003);
    let bytes = Rng::new(2).noise(4 << 20);
    let client = TcpStream::connect(proxy.address()).unwrap();
    thread::scope(|scope| {
        // It fails sooner or later, or is all in the kernel's buffers by then.
        scope.spawn(|| (&client).write_all(&bytes));
        let mut arrived = Vec::new();
        let _ = taken.recv().unwrap().read_to_end(&mut arrived);
        assert!(arrived == bytes[..1_000_003], "{} bytes", arrived.len());
    });
    assert_eq!((&client).read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(proxy.usage(Direction::Up).bytes, 1_000_003);
    drop(proxy);

    let proxy = Proxy::start(Link::free(), echo()).unwrap();
    let client = TcpStream::connect(proxy.address()).unwrap();
    (&client).write_all(b"x").unwrap();
    (&client).read_exact(&mut [0]).unwrap();
    proxy.cut();
    assert_eq!((&client).read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(send_and_read_back(&proxy, b"again"), b"again");
}

#[test]
fn a_sender_without_a_reader_is_held_up() {
    let (target, taken) = taker();
    let proxy = Proxy::start(Link::of(8000, 0), target).unwrap();
    let client = TcpStream::connect(proxy.address()).unwrap();
    let server = taken.recv().unwrap();
    client.set_nonblocking(true).unwrap();
    let piece = vec![0; 1 << 20];
    let (mut taken_bytes, mut refusals) = (0, 0);
    while refusals < 50 {
        match (&client).write(&piece) {
            Ok(count) => (taken_bytes, refusals) = (taken_bytes + count, 0),
            Err(_) => refusals += 1,
        }
        thread::sleep(Duration::from_millis(2));
        assert!(taken_bytes < 256 << 20, "it reads without end");
    }
    drop(server);
}
