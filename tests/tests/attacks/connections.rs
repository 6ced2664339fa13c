//! Ten thousand connections whose clients send nothing or only a part of their greeting: others are still served,
//! and memory is bounded.

use std::fs;
use std::io::Write;
use std::net::TcpStream;

use replicate::rpc::wire::{ForStream, Hello};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::{Running, Serving, Site, Vmstore};

const CONNECTIONS: usize = 10_000;
/// For the connections, and all else that this process has open.
const DESCRIPTORS: u64 = CONNECTIONS as u64 + 500;
const SERVER_BYTES_MAX: u64 = 300_000_000;

fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    assert!(hard >= DESCRIPTORS, "this needs {DESCRIPTORS} open files, and {hard} are allowed (ulimit -Hn)");
    let wanted = Rlimit { current: Some(DESCRIPTORS.max(limit.current.unwrap_or(0))), maximum: limit.maximum };
    setrlimit(Resource::Nofile, wanted).unwrap();
}

/// The beginning of what a client says, of any length.
fn beginning(number: usize) -> Vec<u8> {
    let hello = Hello::default().to_bytes();
    let head = [&(hello.len() as u32).to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let mut said = [b"VMSTORE\0\x01\0\x01\0", head.as_slice(), &hello].concat();
    said.truncate(number % said.len());
    said
}

fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn push(near: &Vmstore, address: &str, token: &str, snapshot: &str) {
    let mut command = near.command(["push", address, "--allow-plain", snapshot]);
    Running::start(command.env("VMSTORE_TOKEN", token)).succeed();
}

#[test]
fn silent_clients_do_not_delay_others() {
    allow_descriptors();
    let site = Site::new();
    let (near, far) = (site.store("near"), site.store("far"));
    let nights = site.nights(&near, 8, 2);
    let token = far.run(["token", "add", "site-a", "--role", "push"]);
    let serving = Serving::start(&far, &["--listen", "tcp://127.0.0.1:0", "--allow-plain"]);
    let address = serving.listening()[0].address.clone();
    let socket = address.trim_start_matches("tcp://");
    let mut crowd = Vec::with_capacity(CONNECTIONS);
    let mut snapshots = nights.keys();
    for number in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(socket).unwrap();
        // The server may have dropped the connection to make place for others.
        let _ = stream.write_all(&beginning(number));
        crowd.push(stream);
        if (number + 1) % (CONNECTIONS / 2) == 0 {
            push(&near, &address, token.trim(), snapshots.next().unwrap());
        }
    }
    let peak_bytes = peak_bytes(serving.pid());
    assert!(peak_bytes < SERVER_BYTES_MAX, "the server took {peak_bytes} bytes");
    drop(crowd);
    assert!(serving.terminate().success());
    far.assert_has_all(&nights);
}
