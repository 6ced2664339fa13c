//! A store that two commands need at once: the second names the holder, or waits; `list` and `show` work meanwhile.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use chunkstore::store::lock::StoreLock;
use tempfile::TempDir;
use tests::images::{self, Rng};
use tests::{Vmstore, stderr};

const MIB: u64 = 1 << 20;

/// A store with a snapshot of `web01`, whose image is `image` in the same directory.
fn site() -> (TempDir, Vmstore) {
    let dir = tempfile::tempdir().unwrap();
    let vmstore = Vmstore::init_in(dir.path());
    let image = dir.path().join("image");
    images::make(&image, 16 * MIB, 1);
    vmstore.run(["ingest", image.to_str().unwrap(), "--image", "web01"]);
    (dir, vmstore)
}

/// An ingest that has the store open and waits for more of its image.
fn ingest_under_way(vmstore: &Vmstore) -> Child {
    let mut command = vmstore.command(["ingest", "-", "--image", "stream"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than a pipe holds: once it is written, the command is reading, and has opened the store.
    child.stdin.as_mut().unwrap().write_all(&Rng::new(2).noise(8 * MIB as usize)).unwrap();
    child
}

#[test]
fn the_second_command_names_the_holder_and_list_and_show_work() {
    let (dir, vmstore) = site();
    let holder = ingest_under_way(&vmstore);
    let path = |name| dir.path().join(name).into_os_string().into_string().unwrap();
    let (image, restored) = (path("image"), path("restored"));
    let commands: &[&[&str]] = &[
        &["ingest", &image, "--image", "other"],
        &["restore", "web01", &restored],
        &["restore", "web01", "-"],
        &["diff", "web01", "web01"],
        &["verify"],
        &["remove", "web01"],
        &["prune", "--keep-last", "1"],
        &["gc"],
        &["gc", "--dry-run"],
        &["stats"],
        &["reindex"],
        &["--wait=1", "verify"],
    ];
    for command in commands {
        let said = vmstore.expect_exit(4, *command);
        assert!(said.contains(&format!("in use by process {} ", holder.id())), "{command:?}: {said}");
        assert!(said.contains("ingest") && said.contains("--wait"), "{command:?}: {said}");
    }
    assert_eq!(vmstore.snapshots().len(), 1);
    vmstore.run(["show", "web01"]);

    let output = holder.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(vmstore.snapshots().len(), 2);
    vmstore.run(["verify"]);
}

/// Without `--standalone` a command first looks for an owner, and starts one, which can't open the store.
#[test]
fn a_command_without_an_owner_names_the_exclusive_holder() {
    let (_dir, vmstore) = site();
    let holder = ingest_under_way(&vmstore);
    let said = vmstore.through_owner().expect_exit(4, ["stats"]);
    assert!(said.contains(&format!("in use by process {} ", holder.id())), "{said}");
    assert!(holder.wait_with_output().unwrap().status.success());
}

#[test]
fn a_waiting_command_gets_the_store_when_it_is_free() {
    let (dir, vmstore) = site();
    let holder = ingest_under_way(&vmstore);
    let image = dir.path().join("image");
    let waiting: Vec<_> = ["a", "b"]
        .map(|name| {
            let mut command = vmstore.command(["--wait", "ingest", image.to_str().unwrap(), "--image", name]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .into();
    std::thread::sleep(Duration::from_millis(200));
    for child in [holder].into_iter().chain(waiting) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(vmstore.snapshots().len(), 4);
    vmstore.assert_holds("b", &image);
}

#[test]
fn the_lock_dies_with_its_holder() {
    let (_dir, vmstore) = site();
    let mut holder = ingest_under_way(&vmstore);
    holder.kill().unwrap();
    holder.wait().unwrap();
    vmstore.run(["verify"]);
    let lock = StoreLock::acquire(vmstore.store(), Duration::ZERO).unwrap();
    let said = vmstore.expect_exit(4, ["verify"]);
    assert!(said.contains(&format!("process {} ", std::process::id())), "{said}");
    drop(lock);
    vmstore.run(["verify"]);
}
