//! Processes that may have only so much memory, all together and with the page cache that they fill: a control group,
//! of either version. They need root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{eventually, kill};

/// Where administrators mount control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// A group of processes. Dropped, it ends with all that are left in it.
#[derive(Debug)]
pub struct MemoryLimit {
    dir: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The file with the limit, that with the limit of memory and swap or of swap alone, and that which counts kills.
    fn files(self) -> [&'static str; 3] {
        match self {
            Self::One => ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"],
            Self::Two => ["memory.max", "memory.swap.max", "memory.events"],
        }
    }
}

impl MemoryLimit {
    /// An empty group whose processes may have so many bytes.
    ///
    /// # Errors
    /// Why this machine has no such groups.
    pub fn new(bytes: u64) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmstore-test-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let memory = Path::new(ROOT).join("memory");
        let (parent, version) =
            if memory.is_dir() { (memory, Version::One) } else { (PathBuf::from(ROOT), Version::Two) };
        if let Version::Two = version {
            // It may be allowed already, and then need not be.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let dir = parent.join(name);
        fs::create_dir(&dir).map_err(|error| format!("no control group {}: {error}", dir.display()))?;
        let limit = Self { dir, version };
        let [max, swap, _] = version.files();
        limit.write(max, bytes)?;
        if limit.dir.join(swap).exists() {
            limit.write(swap, if let Version::One = version { bytes } else { 0 })?;
        }
        Ok(limit)
    }

    fn write(&self, file: &str, bytes: u64) -> Result<(), String> {
        let path = self.dir.join(file);
        fs::write(&path, bytes.to_string()).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The same command, run in the group, with all that it starts.
    pub fn command(&self, command: &Command) -> Command {
        let mut limited = Command::new("sh");
        limited.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.dir.join("cgroup.procs"));
        limited.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        limited
    }

    /// How many processes the kernel has killed because the group had no memory left.
    pub fn kills(&self) -> u64 {
        let [.., counts] = self.version.files();
        let text = fs::read_to_string(self.dir.join(counts)).unwrap();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.unwrap_or_else(|| panic!("the kernel does not count: {text}")).parse().unwrap()
    }

    fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills all that are left in the group, and waits for their end.
    pub fn end(&self) {
        eventually("the end of a group's processes", || {
            let processes = self.processes();
            let is_over = processes.is_empty();
            processes.into_iter().for_each(kill);
            is_over
        });
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        self.processes().into_iter().for_each(kill);
        for _ in 0..200 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("{} stays behind", self.dir.display());
    }
}
