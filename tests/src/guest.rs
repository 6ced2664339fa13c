//! A guest: an image's own Debian, kernel and all, in QEMU, from a disk under test.
//!
//! No acceleration by the processor, so that it runs on any machine. The guest's only process is a script, given on a
//! disk of its own; it speaks by its console, and a third disk takes what is too much for that. How long a guest takes
//! is not judged: it fails when its console has been silent for minutes. QEMU ends with the guest, or with the test.

mod kernel;
mod usr;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

pub use self::kernel::Kernel;
pub use self::usr::Sums;
use crate::Running;

/// Longer than a guest may be silent.
const PATIENCE: Duration = Duration::from_mins(5);
/// Begins every line that is a script's and not the kernel's.
const MARK: &str = "vmstore: ";
/// The kernel's last message; early on, QEMU does not end after it.
const PANIC: &str = "Kernel panic";
/// Followed by the seconds since the kernel started.
const REACHED: &str = "user space reached";
const SERVICES_UP: &str = "services up";
/// Size of the disk for results of more than a few lines.
const RESULT_BYTES: u64 = 32 << 20;

/// The disk that a guest runs from.
#[derive(Clone, Debug)]
pub struct Disk(String);

impl Disk {
    /// A raw file that is only read; what the guest writes is lost with it.
    pub fn snapshot(path: &Path) -> Self {
        Self(format!("file={},format=raw,snapshot=on", path.display()))
    }

    /// A raw file to write in, past the host's page cache, as virtual machines usually do.
    pub fn raw(path: &Path) -> Self {
        Self(format!("file={},format=raw,cache=none,discard=unmap", path.display()))
    }

    /// A qcow2 file to write in.
    pub fn qcow2(path: &Path) -> Self {
        Self(format!("file={},format=qcow2", path.display()))
    }
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    qemu: Running,
    keyboard: ChildStdin,
    console: Receiver<String>,
    /// The last lines of the console, for failure messages.
    said: Vec<String>,
    result: PathBuf,
}

impl Guest {
    /// Boots; when the guest's user space is reached, `script` runs as its first process, a shell's script with these
    /// commands more: `tell WORDS...`, `hear` (waits for a line from [`Guest::say`]), `sum_usr`, `power_off`, and
    /// `start_services`, which starts all that the image starts, tells `services up`, and powers off.
    /// Files are made in `dir`, which is this guest's alone.
    pub fn boot(kernel: &Kernel, disk: &Disk, script: &str, dir: &Path) -> Self {
        let (given, result) = (dir.join("script"), dir.join("result"));
        fs::write(&given, in_sectors(&format!("{PRELUDE}{script}\npower_off\n"))).unwrap();
        File::create(&result).unwrap().set_len(RESULT_BYTES).unwrap();
        let mut command = qemu();
        command.args(kernel.args("root=/dev/vda rw quiet fsck.mode=skip init=/bin/sh -- /dev/vdb"));
        command.args(drive("disk", &disk.0));
        command.args(drive("script", &format!("file={},format=raw,read-only=on", given.display())));
        command.args(drive("result", &format!("file={},format=raw", result.display())));
        let mut qemu = Running::start(command.stdin(Stdio::piped()));
        let keyboard = qemu.child().stdin.take().expect("it was piped");
        let console = follow(qemu.child().stdout.take().expect("it was piped"));
        Self { qemu, keyboard, console, said: Vec::new(), result }
    }

    /// Waits until the script runs.
    pub fn reaches_user_space(&mut self) {
        let uptime = self.tells(REACHED);
        println!("user space reached after {uptime} s of the guest's own time");
    }

    /// Waits until all that the image starts is up, after `start_services`.
    pub fn services_are_up(&mut self) {
        self.tells(SERVICES_UP);
    }

    /// Waits until the script tells something that begins with `words`; returns the rest of it.
    pub fn tells(&mut self, words: &str) -> String {
        loop {
            let Ok(line) = self.console.recv_timeout(PATIENCE) else { self.fail(words) };
            self.said.push(line);
            let line = self.said.last().expect("it was just pushed");
            if line.contains(PANIC) {
                self.fail(words);
            }
            // Another writer to the console may not have ended its line.
            let told = line.split_once(MARK).and_then(|(_, told)| told.strip_prefix(words));
            if let Some(rest) = told {
                return rest.trim().to_owned();
            }
        }
    }

    /// Types a line at the guest's console.
    pub fn say(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// Waits until the guest has powered off; returns what it wrote to its third disk.
    pub fn powers_off(mut self) -> String {
        self.tells("power off");
        self.qemu.succeed();
        let bytes = fs::read(&self.result).unwrap();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    fn fail(&mut self, awaited: &str) -> ! {
        let ended = if self.qemu.is_running() { "is silent" } else { "has ended" };
        let last = &self.said[self.said.len().saturating_sub(30)..];
        panic!("the guest {ended}, and has not told {awaited:?}; its last words:\n{}", last.join("\n"));
    }
}

/// The beginning of every script. The kernel's messages would break into the script's lines.
const PRELUDE: &str = r#"export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
dmesg -n 1
tell() { echo "vmstore: $*" > /dev/console; }
hear() { read heard < /dev/console; }
power_off() { sync; tell power off; echo o > /proc/sysrq-trigger; while :; do sleep 60; done; }
sum_usr() {
    cd / && find usr -xdev -type f -print0 | sort -z |
        xargs -0 -n 500 sh -c 'md5sum "$@"; echo "vmstore: $# files read" > /dev/console' sh > /dev/vdc
}
start_services() {
    units=/run/systemd/system
    mkdir -p $units/multi-user.target.wants
    cat > $units/told.service << 'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for word in "services up" "power off"; do echo "vmstore: $$word" > /dev/console; done'
ExecStart=/usr/bin/systemctl --force --force poweroff
END
    ln -s ../told.service $units/multi-user.target.wants/
    exec /sbin/init
}
read seconds rest < /proc/uptime
tell user space reached $seconds
"#;

/// Padded by what a shell skips.
fn in_sectors(script: &str) -> String {
    let length = script.len().next_multiple_of(512);
    format!("{script:\n<length$}")
}

/// The virtual machine without its disks. It dies with the thread that starts it, should that be killed.
fn qemu() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512"]);
    command.args(["-display", "none", "-serial", "stdio"]);
    command
}

fn drive(id: &str, options: &str) -> [String; 4] {
    let device = format!("virtio-blk-pci,drive={id}");
    ["-drive".into(), format!("if=none,id={id},{options}"), "-device".into(), device]
}

/// The console's lines, as they come; the end of QEMU ends them.
fn follow(console: ChildStdout) -> Receiver<String> {
    let (tell, heard) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(console).split(b'\n').map_while(Result::ok);
        let lines = lines.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned());
        // Nobody listens any more once the test has failed.
        lines.take_while(|line| tell.send(line.clone()).is_ok()).for_each(drop);
    });
    heard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_fills_whole_sectors() {
        for length in [0, 1, 511, 512, 513] {
            let padded = in_sectors(&"x".repeat(length));
            assert_eq!(padded.len(), length.next_multiple_of(512));
            assert_eq!(padded.trim_end_matches('\n').len(), length);
        }
    }
}
