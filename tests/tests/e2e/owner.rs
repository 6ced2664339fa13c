//! Many commands on one store: one process owns it, and all others go through that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};
use tests::devices::tool;
use tests::{Running, Serving, Site, Vmstore, eventually, expect_exit_of, kill, listens, stderr};

const COMMANDS: usize = 50;
const NIGHT: &str = "20261101T020000Z";
/// A user that has no files.
const NOBODY: &str = "65534";

/// A store with one night of `web01`, without an owner.
fn site() -> (Site, Vmstore) {
    let site = Site::new();
    let vmstore = site.store("store");
    let image = site.make("web01.raw", 12, 1);
    let alone = Vmstore::new(vmstore.store());
    alone.run(["ingest", image.to_str().unwrap(), "--image", "web01", "--time", NIGHT]);
    (site, vmstore)
}

/// A command that needs the store's owner, and starts one that stays for as long as the test does.
fn stats(vmstore: &Vmstore) -> Command {
    let mut command = vmstore.command(["stats"]);
    command.env("VMSTORE_IDLE_EXIT", "600");
    command
}

/// Starts an owner by a command, and returns its process.
fn start_owner(vmstore: &Vmstore) -> u32 {
    Running::start(&mut stats(vmstore)).succeed();
    the_owner(vmstore)
}

/// Starts an owner that stays, in the place of one that may be about to leave.
fn start_owner_anew(vmstore: &Vmstore) -> u32 {
    vmstore.owners().into_iter().for_each(kill);
    eventually("a killed owner's end", || vmstore.owners().is_empty());
    start_owner(vmstore)
}

fn the_owner(vmstore: &Vmstore) -> u32 {
    let owners = vmstore.owners();
    let [owner] = owners[..] else { panic!("one owner, and not {owners:?}, should be there") };
    owner
}

/// The process that holds the store, or held it last.
fn holder(vmstore: &Vmstore) -> Option<u32> {
    tests::holder(vmstore.store())
}

#[test]
fn fifty_commands_at_once_share_one_owner() {
    let (site, vmstore) = site();
    let images: Vec<_> = (0..COMMANDS / 5).map(|n| site.make(&format!("image{n}.raw"), 4, 10 + n as u64)).collect();
    let before = holder(&vmstore);
    let mut commands: Vec<_> = (0..COMMANDS)
        .map(|n| {
            let (image, restored) = (images[n / 5].to_str().unwrap(), site.arg(&format!("restored{n}.raw")));
            let name = format!("image{n}");
            Running::start(&mut match n % 5 {
                0 => vmstore.command(["list"]),
                1 => vmstore.command(["ingest", image, "--image", &name]),
                2 => vmstore.command(["show", "web01"]),
                3 => vmstore.command(["stats"]),
                _ => vmstore.command(["restore", "web01", &restored]),
            })
        })
        .collect();
    let mut holders = BTreeSet::new();
    while commands.iter_mut().any(Running::is_running) {
        holders.extend(holder(&vmstore));
    }
    holders.remove(&before.unwrap());
    assert_eq!(holders, BTreeSet::from([the_owner(&vmstore)]));
    for command in commands {
        command.succeed();
    }
    for n in 0..COMMANDS {
        match n % 5 {
            1 => vmstore.assert_holds(&format!("image{n}"), &images[n / 5]),
            4 => tests::images::assert_same(&site.path(&format!("restored{n}.raw")), &site.path("web01.raw")),
            _ => {}
        }
    }
    vmstore.run(["verify"]);
}

/// Work of several users of one store at the same time, and the snapshots acknowledged to them.
struct Crowd {
    site: Site,
    store: Vmstore,
    /// From here it is pushed into the store.
    source: Vmstore,
    /// Here it is pushed to from the store.
    copy: Vmstore,
    acknowledged: Mutex<BTreeMap<String, PathBuf>>,
}

impl Crowd {
    const ROUNDS: u8 = 5;

    fn new() -> Self {
        let (site, store) = site();
        let (source, copy) = (site.store("source"), site.store("copy"));
        let acknowledged = Mutex::new(BTreeMap::from([(format!("web01@{NIGHT}"), site.path("web01.raw"))]));
        Self { site, store, source, copy, acknowledged }
    }

    /// Ingests a night of `image` after the other into a store, and calls `then` after each.
    fn nights(&self, into: &Vmstore, image: &str, seed: u64, then: impl Fn()) {
        let file = |night: u8| format!("{image}-{night}.raw");
        self.site.make(&file(0), 10, seed);
        for night in 1..=Self::ROUNDS {
            let path = self.site.make_next(&file(night), &file(night - 1), seed + u64::from(night));
            let time = format!("202611{night:02}T030000Z");
            into.run(["ingest", path.to_str().unwrap(), "--image", image, "--time", &time]);
            then();
            self.acknowledged.lock().unwrap().insert(format!("{image}@{time}"), path);
        }
    }

    fn push_in(&self) {
        self.source.run(["push", self.store.store().to_str().unwrap(), "--all"]);
    }

    fn push_out(&self) {
        for _ in 0..Self::ROUNDS {
            self.store.run(["push", self.copy.store().to_str().unwrap(), "--image", "web01"]);
            self.copy.run(["remove", "web01"]);
        }
    }

    fn restore(&self) {
        (0..Self::ROUNDS).for_each(|_| self.store.assert_holds("web01", &self.site.path("web01.raw")));
    }

    /// Makes garbage, and has it collected.
    fn collect(&self) {
        let image = self.site.make("scratch.raw", 10, 99);
        for _ in 0..Self::ROUNDS {
            self.store.run(["ingest", image.to_str().unwrap(), "--image", "scratch"]);
            self.store.run(["remove", "scratch"]);
            self.store.run(["gc"]);
        }
    }
}

#[test]
fn ingests_pushes_restores_and_gc_do_not_wait_for_one_another() {
    let crowd = Crowd::new();
    let nothing = || {};
    thread::scope(|scope| {
        scope.spawn(|| crowd.nights(&crowd.store, "db01", 100, nothing));
        scope.spawn(|| crowd.nights(&crowd.store, "db02", 200, nothing));
        scope.spawn(|| crowd.nights(&crowd.source, "app01", 300, || crowd.push_in()));
        scope.spawn(|| crowd.push_out());
        scope.spawn(|| crowd.restore());
        scope.spawn(|| crowd.restore());
        scope.spawn(|| crowd.collect());
    });
    crowd.store.collect_all();
    crowd.store.assert_has_all(&crowd.acknowledged.lock().unwrap());
    let dead = crowd.store.json(["gc"]);
    assert_eq!((&dead["freed_bytes"], &dead["missing_records"]), (&0.into(), &0.into()), "{dead}");
}

#[test]
fn an_idle_owner_leaves_and_its_leftovers_do_not_confuse_the_next() {
    let (_site, vmstore) = site();
    Running::start(vmstore.command(["stats"]).env("VMSTORE_IDLE_EXIT", "1")).succeed();
    eventually("an idle owner's end", || vmstore.owners().is_empty());
    assert!(!listens(vmstore.store()));
    vmstore.run(["stats"]);

    let killed = start_owner_anew(&vmstore);
    kill(killed);
    eventually("a killed owner's end", || vmstore.owners().is_empty());
    assert_eq!(holder(&vmstore), Some(killed), "the lock's text should be left");
    let next = start_owner(&vmstore);
    kill(next);
    eventually("a killed owner's end", || vmstore.owners().is_empty());

    // As above, but of a program that lives: this test.
    let socket = vmstore.store().join("owner.sock");
    fs::remove_file(&socket).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    fs::write(vmstore.store().join("lock"), format!("process {} (vmstore serve)", std::process::id())).unwrap();
    start_owner(&vmstore);
}

#[test]
fn a_command_that_needs_the_store_alone_names_the_owner() {
    let (_site, vmstore) = site();
    let owner = start_owner(&vmstore);
    let said = vmstore.expect_exit(4, ["--standalone", "stats"]);
    assert!(said.contains(&format!("in use by process {owner} ")) && said.contains("serve"), "{said}");
    // An owner that a command started makes way for what needs the store alone.
    vmstore.run(["reindex"]);
    eventually("the end of an owner that was asked to leave", || !vmstore.owners().contains(&owner));

    // It also makes way for a service, which itself stays.
    start_owner(&vmstore);
    let service = Serving::start::<&str>(&vmstore, &[]);
    let process = format!("process {} ", service.pid());
    for (command, holder) in
        [(&["--standalone", "stats"][..], &*process), (&["reindex"], "service"), (&["serve"], "service")]
    {
        let said = vmstore.expect_exit(4, command);
        assert!(said.contains("in use by") && said.contains(holder), "{command:?}: {said}");
    }
    vmstore.run(["stats"]);
    assert_eq!(vmstore.owners(), [service.pid()]);
    assert!(service.terminate().success());
    vmstore.run(["stats"]);
}

/// Where the descriptors of a process lead to.
fn descriptors(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}

#[test]
fn an_owner_holds_nothing_of_the_command_that_started_it() {
    let (site, vmstore) = site();
    let stats = format!("{} --store {} stats", vmstore.program().display(), vmstore.store().display());
    // As a command run by ssh: its end is the end of its pipes. Descriptor 7 is unknown to the command.
    let script = format!("exec 7>{}; {stats} | cat", site.arg("leaked"));
    let shell = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).env("VMSTORE_IDLE_EXIT", "600").env_remove("VMSTORE_STANDALONE").process_group(0);
        command
    };
    let mut piped = Running::start(&mut shell("sh", &["-c", &script]));
    let group = Pid::from_child(piped.child());
    piped.succeed();
    let owner = the_owner(&vmstore);
    let foreign: Vec<_> = descriptors(owner)
        .into_iter()
        .filter(|path| path.starts_with(site.path("leaked")) || path.to_string_lossy().starts_with("pipe:"))
        .collect();
    assert_eq!(foreign, [""; 0].map(PathBuf::from));
    // All of the group have ended, or this ends them.
    let _ = kill_process_group(group, Signal::KILL);
    vmstore.run(["stats"]);
    assert_eq!(the_owner(&vmstore), owner);
    kill(owner);
    eventually("a killed owner's end", || vmstore.owners().is_empty());

    // A terminal that is hung up when the command has ended.
    let output = shell("script", &["--quiet", "--return", "--command", &stats, "/dev/null"]).output();
    let output = output.expect("this test needs `script`");
    assert!(output.status.success(), "{}", stderr(&output));
    let owner = the_owner(&vmstore);
    let terminals = descriptors(owner).into_iter().filter(|path| path.starts_with("/dev/pts"));
    assert_eq!(terminals.count(), 0);
    vmstore.run(["stats"]);
    assert_eq!(the_owner(&vmstore), owner);
}

#[test]
fn long_and_relative_paths() {
    let site = Site::new();
    // A socket's path ends at 108 bytes.
    let deep = format!("{0}/{0}/store", "d".repeat(120));
    fs::create_dir_all(site.path(&deep).parent().unwrap()).unwrap();
    let vmstore = site.store(&deep);
    let image = site.make("web01.raw", 4, 1);
    vmstore.run(["ingest", image.to_str().unwrap(), "--image", "web01"]);
    vmstore.assert_holds("web01", &image);
    let owner = start_owner_anew(&vmstore);
    for (cwd, store) in
        [(site.dir().to_path_buf(), deep.as_str()), (site.path(&deep), "."), (site.path(&deep), "../store")]
    {
        let relative = Vmstore::new(store).through_owner();
        Running::start(stats(&relative).current_dir(&cwd)).succeed();
        assert_eq!(the_owner(&vmstore), owner, "{store} in {}", cwd.display());
    }
    kill(owner);
    // One that is started by a relative path serves the whole one as well.
    let relative = Vmstore::new(&deep).through_owner();
    Running::start(stats(&relative).current_dir(site.dir())).succeed();
    let copy = site.store("copy");
    Running::start(copy.command(["push", &deep, "--all"]).current_dir(site.dir())).succeed();
    Running::start(relative.command(["push", "./copy", "--all"]).current_dir(site.dir())).succeed();
    copy.assert_holds("web01", &image);
    let left = fs::read_to_string(vmstore.store().join("lock")).unwrap();
    kill(left.split(' ').nth(1).unwrap().parse().unwrap());
}

#[test]
fn another_user_is_denied_with_a_message() {
    let (site, vmstore) = site();
    tool("setpriv", &["--reuid", NOBODY, "--clear-groups", "true"].map(std::ffi::OsStr::new));
    start_owner(&vmstore);
    // Other users can't run programs in root's directories.
    let program = site.path("vmstore");
    // By another process: one that a test has just started would hold a file of this one open for writing.
    tool("cp", &[vmstore.program().as_os_str(), program.as_os_str()]);
    let let_in = |dir: &Path| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let_in(site.dir());
    let vmstore = vmstore.with_program(program);
    let refused = |command: &Command, what: &str| {
        let mut refused = Command::new("setpriv");
        refused.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(command.get_program());
        refused.args(command.get_args()).env_remove("VMSTORE_STANDALONE").current_dir("/");
        let said = expect_exit_of(&refused.output().unwrap(), 8, &format!("{refused:?} {what}"));
        assert!(said.contains("user"), "{said}");
    };
    let (list, stats) = (vmstore.command(["list"]), vmstore.command(["stats"]));
    refused(&stats, "of a store as it was made");
    refused(&list, "of a store as it was made");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(vmstore.store()), 0o700);
    let_in(vmstore.store());
    for dir in ["packs", "catalog", "catalog/web01"] {
        assert_eq!(mode(&vmstore.store().join(dir)), 0o700, "{dir}");
    }
    refused(&list, "of a store that others may look into");
    let socket = vmstore.store().join("owner.sock");
    assert_eq!(mode(&socket), 0o600);
    // The second is a socket whose mode was changed: the owner checks the peer's user.
    for mode in [0o600, 0o666] {
        fs::set_permissions(&socket, fs::Permissions::from_mode(mode)).unwrap();
        refused(&stats, &format!("with mode {mode:o}"));
    }
    vmstore.run(["stats"]);
}
