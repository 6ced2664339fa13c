//! Network namespaces on one bridge: machines of their own, as far as the network goes. They need root.
//!
//! Their names hold this process's id. The next process that makes a network removes what a killed one left.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::devices::{take_down, tool, with_path};

const PREFIX: &str = "vmstore-";
const NAMES_DIR: &str = "/run/netns";
/// A last byte of the addresses is a machine's number and one.
const MACHINES_MAX: u8 = 100;

/// Machines that reach each other, and nothing else.
#[derive(Debug)]
pub struct Network {
    names: Vec<String>,
}

impl Network {
    /// Makes `machines` of them, each with an address; the bridge is on the first.
    pub fn new(machines: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!((1..=MACHINES_MAX).contains(&machines), "a network has 1 to {MACHINES_MAX} machines");
        take_down_abandoned();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |machine| format!("{PREFIX}{}-{count}-{machine}", std::process::id());
        // Owned before they are made, so that a failure half-way takes down what is there.
        let mut network = Self { names: Vec::new() };
        for machine in 0..machines {
            ip(&format!("netns add {}", name(machine)));
            network.names.push(name(machine));
            network.ip_in(machine, "link set lo up");
            if machine == 0 {
                network.ip_in(0, "link add eth0 type bridge");
            } else {
                network.join_bridge(machine);
            }
            network.ip_in(machine, &format!("address add {}/24 dev eth0", network.address(machine)));
            network.ip_in(machine, "link set eth0 up");
        }
        network
    }

    fn join_bridge(&self, machine: u8) {
        let name = self.name(machine);
        self.ip_in(0, &format!("link add port{machine} type veth peer name eth0 netns {name}"));
        self.ip_in(0, &format!("link set port{machine} master eth0 up"));
    }

    fn ip_in(&self, machine: u8, args: &str) {
        ip(&format!("-n {} {args}", self.name(machine)));
    }

    fn name(&self, machine: u8) -> &str {
        &self.names[usize::from(machine)]
    }

    /// A machine's address, by which the others reach it.
    pub fn address(&self, machine: u8) -> Ipv4Addr {
        assert!(usize::from(machine) < self.names.len(), "no machine {machine}");
        Ipv4Addr::new(10, 213, 0, machine + 1)
    }

    /// A command that runs on a machine.
    pub fn command(&self, machine: u8, program: impl AsRef<OsStr>) -> Command {
        let mut command = with_path("ip");
        command.args(["netns", "exec", self.name(machine)]).arg(program);
        command
    }

    /// The same command on a machine.
    pub fn on(&self, machine: u8, command: &Command) -> Command {
        let mut there = self.command(machine, command.get_program());
        there.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        there
    }

    /// Runs a function on a machine: sockets that it opens stay there, those of threads that it starts are there too.
    pub fn within<T: Send>(&self, machine: u8, function: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(Path::new(NAMES_DIR).join(self.name(machine))).unwrap();
        let inside = move || {
            // Of this thread only, which ends with the function.
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).unwrap();
            function()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            delete(name);
        }
    }
}

fn ip(args: &str) {
    tool("ip", &args.split(' ').map(OsStr::new).collect::<Vec<_>>());
}

fn delete(name: &str) {
    take_down("ip", &["netns", "delete", name].map(OsStr::new));
}

/// Removes networks of processes that have ended.
fn take_down_abandoned() {
    for name in abandoned(Path::new(NAMES_DIR)) {
        delete(&name);
    }
}

fn abandoned(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| owner(name).is_some_and(|process| !process.exists())).collect()
}

/// The directory below /proc of the process that made a network.
fn owner(name: &str) -> Option<PathBuf> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let pid: u32 = pid.parse().ok()?;
    Some(Path::new("/proc").join(pid.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn machines_reach_each_other_and_are_taken_down() {
        let network = Network::new(3);
        let address = network.address(0);
        let listener = network.within(0, || TcpListener::bind((address, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        for machine in 1..3 {
            let say = format!("exec 3<>/dev/tcp/{address}/{port}; echo {machine} >&3");
            assert!(network.command(machine, "bash").args(["-c", &say]).status().unwrap().success());
            let mut said = String::new();
            let (mut stream, peer) = listener.accept().unwrap();
            stream.read_to_string(&mut said).unwrap();
            assert_eq!((said.trim(), peer.ip()), (machine.to_string().as_str(), network.address(machine).into()));
        }
        assert!(TcpStream::connect((address, port)).is_err(), "the network is not one of its own");
        let names = network.names.clone();
        drop(network);
        assert!(names.iter().all(|name| !Path::new(NAMES_DIR).join(name).exists()));
    }

    #[test]
    fn what_a_killed_process_left_is_abandoned_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let left = format!("{PREFIX}{}-0-1", child.id());
        for name in [&left, &format!("{PREFIX}{}-0-0", std::process::id()), "vmstore-x-0", "vmstore", "other-1-1"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(abandoned(dir.path()), [left]);
        assert!(abandoned(&dir.path().join("missing")).is_empty());
    }
}
