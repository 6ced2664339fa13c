//! A long and narrow link by hand: the proxy of `tests::wan`, a check of how true it is, and what it takes to run a
//! protocol of standard input and output through it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use tests::wan::{Direction, Link, Proxy, Usage};

/// Seconds of the check of one link.
const CHECK_S: u64 = 3;
/// The link that the check models, in Mbit/s.
const CHECK_MBIT: u64 = 100;

/// A TCP proxy with a rate and a delay.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Passes connections until standard input ends, then says what has passed
    Pass(Pass),
    /// Says what part of the link plain TCP gets through the proxy at 0, 50 and 150 ms
    Check,
    /// Joins standard input and output to a TCP connection
    Connect {
        /// Where to connect to
        address: SocketAddr,
    },
    /// Runs a command for each connection, its standard input and output joined to it, until standard input ends
    Serve {
        /// Where to listen
        address: SocketAddr,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
struct Pass {
    /// Where to listen; port 0 is a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to pass connections on to
    #[arg(long)]
    to: SocketAddr,
    /// Milliseconds there and back
    #[arg(long, default_value_t = 0)]
    rtt_ms: u64,
    /// Mbit/s in each direction; without it there is no limit
    #[arg(long)]
    rate_mbit: Option<u64>,
    /// Cut what is connected when so many bytes have gone to the target
    #[arg(long)]
    cut_after: Option<u64>,
}

fn main() -> Result<()> {
    match Options::parse().command {
        Task::Pass(options) => pass(&options),
        Task::Check => check(),
        Task::Connect { address } => connect(address),
        Task::Serve { address, command } => serve(address, &command),
    }
}

fn pass(options: &Pass) -> Result<()> {
    let rate = options.rate_mbit.map(|mbit| mbit * 125_000);
    let link = Link { rtt: Duration::from_millis(options.rtt_ms), rate };
    let proxy = Proxy::listen(options.listen, link, options.to).context("cannot listen")?;
    if let Some(bytes) = options.cut_after {
        proxy.cut_after(Direction::Up, bytes);
    }
    eprintln!("listening on {}", proxy.address());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    println!("up {}", describe(&proxy.usage(Direction::Up)));
    println!("down {}", describe(&proxy.usage(Direction::Down)));
    Ok(())
}

fn describe(usage: &Usage) -> String {
    let busy = usage.busy().map_or(String::new(), |busy| format!(", busy {:.1} %", busy * 100.0));
    format!("{} bytes{busy}", usage.bytes)
}

fn check() -> Result<()> {
    println!("{CHECK_MBIT} Mbit/s, plain TCP, seconds of the transfer alone:");
    for rtt_ms in [0, 50, 150] {
        let busy = plain_tcp(Link::of(CHECK_MBIT, rtt_ms))?;
        println!("{rtt_ms:4} ms: {:.1} % of the link", busy * 100.0);
    }
    Ok(())
}

/// The share of a link that a stream of zeros gets, as its receiver sees it: from the first byte to the last.
fn plain_tcp(link: Link) -> Result<f64> {
    let rate = link.rate.context("the check needs a rate")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let proxy = Proxy::start(link, listener.local_addr()?)?;
    let bytes = rate * CHECK_S;
    thread::scope(|scope| {
        scope.spawn(|| -> io::Result<u64> {
            io::copy(&mut io::repeat(0).take(bytes), &mut TcpStream::connect(proxy.address())?)
        });
        let (mut stream, _) = listener.accept()?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        let started = std::time::Instant::now();
        let count = io::copy(&mut stream, &mut io::sink())? + 1;
        ensure!(count == bytes, "{count} of {bytes} bytes came through");
        Ok(bytes as f64 / (rate as f64 * started.elapsed().as_secs_f64()))
    })
}

fn connect(address: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let sending = stream.try_clone()?;
    thread::spawn(move || {
        let sent = copy_at_once(&mut io::stdin(), &mut &sending);
        sent.and_then(|()| sending.shutdown(Shutdown::Write))
    });
    // The parent closes this pipe when it no longer reads.
    Ok(copy_at_once(&mut &stream, &mut io::stdout())?)
}

fn serve(address: SocketAddr, command: &[String]) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    eprintln!("listening on {}", listener.local_addr()?);
    let command = command.to_vec();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let command = command.clone();
            thread::spawn(move || serve_one(&stream, &command));
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn serve_one(stream: &TcpStream, command: &[String]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut child =
        Command::new(&command[0]).args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("its input is a pipe")?;
    let mut output = child.stdout.take().context("its output is a pipe")?;
    thread::scope(|scope| {
        scope.spawn(move || copy_at_once(&mut &*stream, &mut input));
        let sent = copy_at_once(&mut output, &mut &*stream);
        // Ends the other thread too, should the child have ended first.
        stream.shutdown(Shutdown::Both)?;
        sent
    })?;
    child.wait()?;
    Ok(())
}

/// Copies until the end, every piece as soon as it is there.
fn copy_at_once(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}
