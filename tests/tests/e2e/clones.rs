//! Writable clones, by their commands and through mounts: made, written, committed, on a full disk, opened twice.
//! Needs root and FUSE.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tests::devices::Mount;
use tests::images;
use tests::{Mounted, Vmfs, Vmstore};

const FIRST: &str = "20261120T020000Z";
const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;

/// A store with an image of [`BLOCKS`] blocks, and a place for mounts.
struct Site {
    // First, because fields are dropped in order.
    vmstore: Vmstore,
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Self { vmstore: Vmstore::init_in(dir.path()).through_owner(), dir };
        site.ingest();
        site
    }

    fn ingest(&self) {
        images::make(&self.image(), BLOCKS * BLOCK as u64, 1);
        let image = self.image().into_os_string().into_string().unwrap();
        self.vmstore.run(["ingest", &image, "--image", "web01", "--time", FIRST]);
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("web01.raw")
    }

    fn vmfs(&self) -> Vmfs {
        Vmfs::beside(&self.vmstore)
    }

    fn mount(&self, name: &str) -> Mounted {
        Mounted::start(&self.vmstore, self.dir.path().join(name))
    }

    /// The one clone as `vmfs clone list` has it.
    fn listed(&self) -> serde_json::Value {
        self.vmfs().json(["clone", "list"])[0].clone()
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

#[test]
fn made_listed_held_and_discarded_without_a_mount() {
    let site = Site::new();
    let vmfs = site.vmfs();
    assert_eq!(vmfs.json(["clone", "list"]), serde_json::json!([]));
    let made = vmfs.json(["clone", "create", "test", "web01"]);
    assert_eq!(made["snapshot"], format!("web01@{FIRST}"));
    let listed = site.listed();
    assert_eq!((&listed["clone"], &listed["size_bytes"]), (&"test".into(), &(BLOCKS * BLOCK as u64).into()));
    assert_eq!((&listed["written_bytes"], &listed["open_by"]), (&0.into(), &serde_json::Value::Null));

    let said = site.vmstore.expect_exit(6, ["remove", "web01"]);
    assert!(said.contains("clone:test"), "{said}");
    site.vmstore.run(["prune", "--keep-daily", "1", "--image", "web01"]);
    assert_eq!(site.vmstore.snapshots().len(), 1);

    let cases = [
        (6, &["create", "test", "web01"][..]),
        (2, &["create", "a/b", "web01"]),
        (5, &["create", "other", "web02"]),
        (5, &["discard", "other"]),
        (5, &["rollback", "other"]),
        (5, &["commit", "other"]),
        (2, &["commit", "test", "--image", "a:b"]),
    ];
    for (code, args) in cases {
        let said = vmfs.expect_exit(code, [&["clone"], args].concat());
        assert!(!said.contains("vmstore:"), "{said}");
    }
    vmfs.run(["clone", "discard", "test"]);
    assert_eq!(vmfs.json(["clone", "list"]), serde_json::json!([]));
    site.vmstore.run(["remove", "web01"]);
}

#[test]
fn written_through_a_mount_committed_while_open_and_rolled_back() {
    let site = Site::new();
    let vmfs = site.vmfs();
    vmfs.run(["clone", "create", "test", "web01"]);
    let mounted = site.mount("mnt");
    let file = open(&mounted.clone_file("test")).unwrap();
    let mut expected = fs::read(site.image()).unwrap();
    for (at, bytes) in [(100, 7), (BLOCK * 9 - 1, 2), (BLOCK * 40, BLOCK * 3)] {
        file.write_all_at(&vec![0xa5; bytes], at as u64).unwrap();
        expected[at..at + bytes].fill(0xa5);
    }
    file.sync_all().unwrap();
    assert_eq!(site.listed()["open_by"], mounted.pid());
    // Nobody else opens or discards it.
    vmfs.expect_exit(4, ["clone", "discard", "test"]);
    vmfs.expect_exit(4, ["clone", "rollback", "test"]);
    let other = site.mount("other");
    assert_eq!(open(&other.clone_file("test")).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert_eq!(fs::metadata(other.clone_file("test")).unwrap().len(), expected.len() as u64);

    let committed = vmfs.json(["clone", "commit", "test", "--label", "state=written"]);
    assert_eq!(committed["labels"]["state"], "written");
    assert_eq!(committed["written_bytes"], 6 * BLOCK);
    let name = committed["snapshot"].as_str().unwrap();
    fs::write(site.dir.path().join("expected.raw"), &expected).unwrap();
    site.vmstore.assert_holds(name, &site.dir.path().join("expected.raw"));
    assert_eq!(site.listed()["snapshot"], name);

    file.write_all_at(b"thrown away", 0).unwrap();
    drop(file);
    mounted.unmount();
    other.unmount();
    vmfs.run(["clone", "rollback", "test"]);
    let mounted = site.mount("mnt");
    assert!(fs::read(mounted.clone_file("test")).unwrap() == expected);
    // Nothing is held but the snapshot that it is of.
    site.vmstore.run(["remove", &format!("web01@{FIRST}")]);
    let said = site.vmstore.expect_exit(6, ["remove", name]);
    assert!(said.contains("clone:test"), "{said}");
}

#[test]
fn on_a_full_disk_the_guest_gets_an_error_and_synced_writes_stay() {
    let disk = Mount::tmpfs(80);
    let dir = TempDir::new().unwrap();
    let vmstore = Vmstore::new(disk.path().join("store"));
    vmstore.run(["init", "--no-reserve"]);
    let site = Site { vmstore: vmstore.through_owner(), dir };
    site.ingest();
    site.vmfs().run(["clone", "create", "test", "web01"]);
    let mounted = site.mount("mnt");
    let file = open(&mounted.clone_file("test")).unwrap();
    let mut expected = fs::read(site.image()).unwrap();
    expected[..BLOCK * 10].fill(1);
    file.write_all_at(&expected[..BLOCK * 10], 0).unwrap();
    file.sync_all().unwrap();

    disk.fill("ballast", 40 * BLOCK as u64);
    let mut full = None;
    for at in (BLOCK * 10..expected.len()).step_by(BLOCK) {
        match file.write_all_at(&[2; BLOCK], at as u64) {
            Ok(()) => expected[at..at + BLOCK].fill(2),
            Err(error) => {
                full = Some(error.kind());
                break;
            }
        }
    }
    assert_eq!(full, Some(io::ErrorKind::StorageFull));
    file.sync_all().unwrap();
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);

    fs::remove_file(disk.path().join("ballast")).unwrap();
    file.write_all_at(&[3; BLOCK], 99 * BLOCK as u64).unwrap();
    expected[99 * BLOCK..100 * BLOCK].fill(3);
    file.sync_all().unwrap();
    mounted.kill();
    drop(file);
    site.vmfs().run(["umount", "--force", mounted.arg()]);
    let again = site.mount("mnt");
    assert!(fs::read(again.clone_file("test")).unwrap() == expected);
    again.unmount();
    // The owner, which has the store open, leaves before the file system can.
    let owner = tests::holder(site.vmstore.store()).unwrap();
    tests::eventually("the owner's end", || !Path::new(&format!("/proc/{owner}")).exists());
}
