//! One direction of one connection: a thread that reads and lets bytes into the link, one that hands over what arrives.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::link::{Held, Pass};
use super::{Direction, Shared};

/// Bytes on their way.
enum Carried {
    Bytes(Vec<u8>),
    /// The sender has closed its side.
    End,
}

/// A thing on the way and when it arrives.
type Arrival = (Instant, Carried);

/// Carries `from` to `to` until the one ends or the other goes away.
pub(super) fn start(
    from: Arc<TcpStream>,
    to: Arc<TcpStream>,
    shared: Arc<Shared>,
    direction: Direction,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let held = Held::new(shared.link);
        let (sender, receiver) = mpsc::channel();
        let (from, to, shared, held) = (&*from, &*to, &*shared, &held);
        thread::scope(|scope| {
            scope.spawn(move || {
                deliver(&receiver, to, shared, direction, held);
                // Nobody takes what would still be read.
                let _ = from.shutdown(Shutdown::Read);
                held.give_up();
            });
            take_in(from, &sender, shared, direction, held);
            drop(sender);
        });
    })
}

/// Reads as fast as the link takes it. An error is an end, as it is for who receives.
fn take_in(mut from: &TcpStream, sender: &Sender<Arrival>, shared: &Shared, direction: Direction, held: &Held) {
    let lane = shared.lane(direction);
    let mut buffer = vec![0; shared.link.piece_bytes()];
    loop {
        held.wait_for_room();
        lane.wait_for_room();
        let count = read(&mut from, &mut buffer);
        let arrives = lane.enter(count as u64);
        held.add(count as u64);
        let carried = if count == 0 { Carried::End } else { Carried::Bytes(buffer[..count].to_vec()) };
        if sender.send((arrives, carried)).is_err() || count == 0 {
            return;
        }
    }
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> usize {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.unwrap_or(0),
        }
    }
}

/// Hands over what arrives, when it does.
fn deliver(receiver: &Receiver<Arrival>, mut to: &TcpStream, shared: &Shared, direction: Direction, held: &Held) {
    for (arrives, carried) in receiver {
        thread::sleep(arrives.saturating_duration_since(Instant::now()));
        let Carried::Bytes(bytes) = carried else {
            let _ = to.shutdown(Shutdown::Write);
            return;
        };
        let passed = shared.lane(direction).pass(bytes.len() as u64);
        let (bytes, cut) = match passed {
            Pass::All => (&bytes[..], false),
            Pass::ThenCut(count) => (&bytes[..count as usize], true),
        };
        if to.write_all(bytes).is_err() {
            return;
        }
        if cut {
            shared.cut();
            return;
        }
        held.remove(bytes.len() as u64);
    }
}
