//! The system's calls fail, one after another: the real program under `strace`, which makes the N-th call of a kind
//! return an error. Whatever fails, the command works all the same or ends with a documented code and a message;
//! afterwards the store is sound, holds what it held, and the command works when it is repeated.
//!
//! Needs `strace` and the right to trace one's own children.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::devices::tool;
use tests::images;
use tests::torture::Torture;
use tests::{Vmstore, stderr};

use super::try_faults;

/// Faults that are tried in the short form.
const SHORT_FAULTS: u64 = 60;
/// A command that takes longer hangs.
const TIME_MAX: Duration = Duration::from_mins(1);
const MIB: u64 = 1 << 20;
const IMAGE_BYTES: u64 = 2 * MIB;
/// Exit codes that a command may end with when the system fails it, other than 0: failed, damage found, not found,
/// refused. An unreadable file may look damaged, and a file that can't be opened may be none of a store's.
const CODES: [i32; 4] = [1, 3, 5, 6];

/// Calls that fail, and how.
const FAULTS: [(&str, &[&str]); 16] = [
    ("openat", &["EIO", "EMFILE", "ENOSPC"]),
    ("read", &["EIO"]),
    ("pread64", &["EIO"]),
    ("write", &["EIO", "ENOSPC", "EDQUOT"]),
    ("pwrite64", &["EIO", "ENOSPC", "EDQUOT"]),
    ("pwritev", &["EIO", "ENOSPC"]),
    ("fsync", &["EIO", "ENOSPC", "EDQUOT"]),
    ("fdatasync", &["EIO", "ENOSPC", "EDQUOT"]),
    ("rename", &["EIO", "ENOSPC"]),
    ("unlink", &["EIO"]),
    ("mkdir", &["EIO", "ENOSPC"]),
    ("ftruncate", &["EIO", "ENOSPC"]),
    ("fallocate", &["EIO", "ENOSPC", "EDQUOT"]),
    ("getdents64", &["EIO"]),
    ("statx", &["EIO"]),
    ("flock", &["EIO"]),
];

/// A command under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Ingest,
    Restore,
    Verify,
    Remove,
    Collect,
    Reindex,
    Push,
}

const TASKS: [Task; 7] =
    [Task::Ingest, Task::Restore, Task::Verify, Task::Remove, Task::Collect, Task::Reindex, Task::Push];

/// A store with nights of `a` and `b`, garbage, and a store to push to.
struct Site {
    dir: TempDir,
    vmstore: Vmstore,
    far: Vmstore,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let vmstore = Vmstore::init_in(dir.path());
        let far = Vmstore::new(path("far"));
        far.run(["init", "--no-reserve"]);
        images::make(&path("a"), IMAGE_BYTES, 1);
        images::make(&path("b"), IMAGE_BYTES, 2);
        images::make_next(&path("a2"), &path("a"), 256 << 10, 3);
        let site = Self { dir, vmstore, far };
        for (file, image, day) in [("a", "a", 19), ("b", "b", 19), ("b", "c", 19), ("a2", "garbage", 19)] {
            site.vmstore.run(site.ingest(file, image, day));
        }
        site.vmstore.run(["remove", "garbage"]);
        for name in ["store", "far"] {
            copy_tree(&site.path(name), &site.path(&format!("{name}.fresh")));
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ingest(&self, file: &str, image: &str, day: u32) -> Vec<String> {
        let path = self.path(file).into_os_string().into_string().unwrap();
        let time = format!("202611{day}T020000Z");
        ["ingest", &path, "--image", image, "--time", &time].map(str::to_owned).to_vec()
    }

    /// Sets both stores back.
    fn renew(&self) {
        for name in ["store", "far"] {
            copy_tree(&self.path(&format!("{name}.fresh")), &self.path(name));
        }
        let _ = fs::remove_file(self.path("restored"));
    }

    fn args(&self, task: Task) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        match task {
            Task::Ingest => self.ingest("a2", "a", 20),
            Task::Restore => words(&["restore", "a@20261119", self.path("restored").to_str().unwrap()]),
            Task::Verify => words(&["verify"]),
            Task::Remove => words(&["remove", "c"]),
            Task::Collect => words(&["gc"]),
            Task::Reindex => words(&["reindex"]),
            Task::Push => words(&["push", self.path("far").to_str().unwrap(), "a"]),
        }
    }

    /// The command, and how soon an owner that it starts leaves.
    fn command(&self, task: Task) -> Command {
        let mut command = self.vmstore.command(self.args(task));
        command.env("VMSTORE_IDLE_EXIT", "1");
        command
    }

    fn kill_owners(&self) {
        let owners = || [self.vmstore.owners(), self.far.owners()].concat();
        owners().into_iter().for_each(tests::kill);
        tests::eventually("an end of the owners", || owners().is_empty());
    }

    /// Fails unless what the task was to do is done.
    fn assert_done(&self, task: Task) {
        // Its owner may still be there.
        self.far.run(["--wait", "verify"]);
        match task {
            Task::Ingest => self.vmstore.assert_holds("a@20261120", &self.path("a2")),
            Task::Restore => images::assert_same(&self.path("restored"), &self.path("a")),
            Task::Remove => assert!(!self.vmstore.snapshots().iter().any(|name| name.starts_with("c@"))),
            Task::Push => self.far.assert_holds("a@20261119", &self.path("a")),
            Task::Verify | Task::Collect | Task::Reindex => {}
        }
    }

    /// Fails unless both stores are sound, hold what they held, and the task can be repeated.
    fn assert_sound_after(&self, task: Task, ended: Option<i32>) {
        if ended == Some(0) {
            self.assert_done(task);
        } else {
            let repeated = self.command(task).output().unwrap();
            let said = stderr(&repeated);
            // Only telling of it may have failed.
            let is_done = matches!(repeated.status.code(), Some(5 | 6))
                && matches!(task, Task::Ingest | Task::Remove | Task::Restore);
            assert!(repeated.status.success() || is_done, "repeated: {}: {said}", repeated.status);
            self.assert_done(task);
        }
        for snapshot in ["a@20261119", "b@20261119"] {
            self.vmstore.assert_holds(snapshot, &self.path(&snapshot[..1]));
        }
        self.vmstore.run(["verify"]);
        self.vmstore.run(["gc"]);
        let again = self.vmstore.json(["gc"]);
        for what in ["freed_bytes", "removed_packs", "rewritten_packs"] {
            assert_eq!(again[what], 0, "{again}");
        }
        self.vmstore.run(["verify"]);
        assert_eq!(self.vmstore.files("packs", ".part"), [""; 0]);
        self.vmstore.assert_holds("a@20261119", &self.path("a"));
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

/// Runs a command under `strace` with these options.
fn traced(command: &Command, options: &[&str]) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "--signal=none"]).args(options).arg("--").arg(command.get_program());
    traced.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced
}

/// A command's output, or nothing if it hangs.
fn output_in_time(command: &mut Command) -> Option<Output> {
    let mut child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| out.read_to_end(&mut stdout));
        scope.spawn(|| err.read_to_end(&mut stderr));
        wait(&mut child)
    })
    .map(|status| Output { status, stdout, stderr })
}

fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            // With all that it has started.
            let group = rustix::process::Pid::from_child(child);
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
            child.wait().unwrap();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// How often the task makes each call when nothing fails.
fn count_calls(site: &Site, task: Task) -> Vec<(&'static str, u64)> {
    site.renew();
    let log = site.path("calls");
    let calls: Vec<&str> = FAULTS.iter().map(|(call, _)| *call).collect();
    let filter = format!("trace={}", calls.join(","));
    let mut command = traced(&site.command(task), &["-o", log.to_str().unwrap(), "-e", &filter]);
    let output = output_in_time(&mut command).expect("it ends");
    assert!(output.status.success(), "{task:?} under strace: {}: {}", output.status, stderr(&output));
    let text = fs::read_to_string(&log).unwrap();
    let made = |call: &str| text.lines().filter(|line| line.contains(&format!(" {call}("))).count() as u64;
    calls.into_iter().map(|call| (call, made(call))).filter(|(_, count)| *count > 0).collect()
}

/// The N-th call of a kind in each thread fails, once or from then on.
#[derive(Clone, Debug)]
struct Fault {
    task: Task,
    call: &'static str,
    error: &'static str,
    nth: u64,
    lasts: bool,
}

impl Fault {
    /// The command's exit code: none, if it was killed because an event did not wake it.
    fn try_on(&self, site: &Site) -> Option<i32> {
        site.renew();
        let when = format!("{}{}", self.nth, if self.lasts { "+" } else { "" });
        let inject = format!("inject={}:error={}:when={when}", self.call, self.error);
        let trace = format!("trace={}", self.call);
        let log = site.path("calls");
        let options = ["-y", "-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
        let output = output_in_time(&mut traced(&site.command(self.task), &options));
        let Some(output) = output else {
            let is_excused = self.call == "write" && fails_an_event(&fs::read_to_string(&log).unwrap());
            assert!(is_excused, "{self:?}: it hangs");
            site.kill_owners();
            return None;
        };
        // `verify` prints its findings as its output.
        let said = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
        let code = output.status.code();
        // The same, where the command told of it.
        if self.call == "write" && said.contains("failed to wake I/O driver") {
            return code;
        }
        assert!(!said.contains("panicked"), "{self:?}: {said}");
        // Before `main`, the loader ends with 127, and the runtime of the language may abort.
        let is_before_main = code == Some(127) && said.contains("error while loading shared libraries");
        let is_told = code.is_some_and(|code| CODES.contains(&code)) && (!said.is_empty() || self.call == "write");
        assert!(code == Some(0) || is_before_main || is_told, "{self:?}: {}: {said:?}", output.status);
        code
    }
}

/// Whether one of the calls that failed was to write an event, by which threads wake each other: no kernel fails that
/// for these reasons, and whom it does not wake waits for ever.
fn fails_an_event(log: &str) -> bool {
    let lines: Vec<&str> = log.lines().collect();
    lines.iter().enumerate().filter(|(_, line)| line.contains("(INJECTED)")).any(|(at, line)| {
        let is_by_its_thread = |before: &&&str| before.split(' ').next() == line.split(' ').next();
        let is_whole = !line.contains(" resumed>");
        let begun = if is_whole { Some(line) } else { lines[..at].iter().rev().find(is_by_its_thread) };
        begun.is_some_and(|line| line.contains("<anon_inode:[eventfd]>"))
    })
}

/// All faults of all tasks in turn.
fn all_faults(site: &Site) -> Vec<Fault> {
    let mut faults = Vec::new();
    for task in TASKS {
        for (call, made) in count_calls(site, task) {
            let errors = FAULTS.iter().find(|(name, _)| *name == call).expect("it was counted").1;
            for error in errors {
                // A push has threads that wake each other by writes, which fail in no other way than this.
                let lasting: &[bool] = if (task, call) == (Task::Push, "write") { &[false] } else { &[false, true] };
                for nth in 1..=made {
                    faults.extend(lasting.iter().map(|lasts| Fault { task, call, error, nth, lasts: *lasts }));
                }
            }
        }
    }
    faults
}

#[test]
fn after_any_failed_system_call_the_store_is_sound_and_work_goes_on() {
    let torture = Torture::begin("system faults");
    let site = Site::new();
    try_faults(torture, SHORT_FAULTS, 10, all_faults(&site), |fault| {
        let code = fault.try_on(&site);
        println!("{fault:?}: {code:?}");
        site.assert_sound_after(fault.task, code);
        code.is_some_and(|code| code != 0)
    });
}
