//! A qcow2 overlay on a snapshot's file in a mount: only the overlay is read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{XattrFlags, setxattr};
use tempfile::TempDir;
use tests::{Vmstore, images};

/// A store, and the file of its one snapshot as a mount would show it, in a directory of its own.
struct Place {
    dir: TempDir,
    mount: TempDir,
    vmstore: Vmstore,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mount = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let vmstore = Vmstore::init_in(dir.path());
        let place = Self { dir, mount, vmstore };
        images::make(&place.shown(), 24 << 20, 1);
        place.vmstore.run([
            "ingest",
            place.shown().to_str().unwrap(),
            "--image",
            "web01",
            "--time",
            "2026-11-20T02:00:00Z",
        ]);
        let root = place.vmstore.json(["show", "web01"])["root"].as_str().unwrap().to_owned();
        tell(&place.shown(), "root", &root);
        tell(&place.shown(), "snapshot", "web01@20261120T020000Z");
        place
    }

    /// The file of the snapshot.
    fn shown(&self) -> PathBuf {
        self.mount.path().join("web01.raw")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an overlay and writes to it. Its content is in `expected.raw`; the snapshot's file is emptied.
    fn make_overlay(&self) -> String {
        let (vm, shown) = (self.path("vm.qcow2"), self.shown());
        let vm = vm.to_str().unwrap();
        qemu(&["qemu-img", "create", "-q", "-f", "qcow2", "-b", shown.to_str().unwrap(), "-F", "raw", vm]);
        qemu(&["qemu-io", "-f", "qcow2", vm, "-c", "write -P 7 1M 100k", "-c", "write -z 9M 2M"]);
        qemu(&["qemu-img", "convert", "-O", "raw", vm, self.path("expected.raw").to_str().unwrap()]);
        File::options().write(true).open(shown).unwrap().set_len(0).unwrap();
        vm.to_owned()
    }
}

fn tell(file: &Path, name: &str, value: &str) {
    setxattr(file, format!("user.vmstore.{name}"), value.as_bytes(), XattrFlags::empty()).unwrap();
}

fn qemu(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("this test needs `{}`: {error}", command[0]));
    assert!(output.status.success(), "{command:?}: {}", tests::stderr(&output));
}

#[test]
fn an_overlay_is_ingested_without_the_file_below_it() {
    let place = Place::new();
    let vm = place.make_overlay();
    let through_owner = place.vmstore.through_owner();
    for (number, vmstore) in [&place.vmstore, &through_owner].into_iter().enumerate() {
        for (image, base) in
            [("web01", None), ("web01", Some("web01@20261120T020000Z")), ("web02", Some("web01@20261120T020000Z"))]
        {
            let time = format!("2026-11-2{}T0{}:00:00Z", number + 1, usize::from(base.is_some()));
            let mut args = vec!["ingest", &vm, "--image", image, "--time", &time];
            args.extend(base.iter().flat_map(|base| ["--base", base]));
            let report = vmstore.json(&args);
            assert_eq!(report["parent"].as_str(), Some("web01@20261120T020000Z"), "{report}");
            vmstore.assert_holds(image, &place.path("expected.raw"));
        }
    }
}

#[test]
fn another_base_or_another_image_is_not_taken_from_an_attribute() {
    let place = Place::new();
    let vm = place.make_overlay();
    let said = place.vmstore.expect_exit(6, ["ingest", &vm, "--image", "web02"]);
    assert!(said.contains("--base web01@20261120T020000Z"), "{said}");

    // It is read as a file then, which must be allowed.
    fs::write(place.path("other.raw"), [1; 9000]).unwrap();
    place.vmstore.run(["ingest", place.path("other.raw").to_str().unwrap(), "--image", "other"]);
    let args = ["ingest", &vm, "--image", "web01", "--base", "other"];
    let said = place.vmstore.expect_exit(6, args);
    assert!(said.contains("differs from the base") && said.contains("--backing-dir"), "{said}");
    let none = place.vmstore.expect_exit(6, ["ingest", &vm, "--image", "web01", "--base", "none"]);
    assert!(none.contains("--backing-dir"), "{none}");
}
