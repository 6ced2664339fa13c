//! Sources of images, accepted and refused: formats, devices, streams, images in use, names.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::Advice;
use serde_json::Value;
use tempfile::TempDir;
use tests::devices::{Loop, tool};
use tests::images::{self, Rng, assert_same};
use tests::{Vmstore, expect_exit_of};

/// A store, and a directory for images next to it.
struct Place {
    dir: TempDir,
    vmstore: Vmstore,
}

impl Place {
    /// On the disk of the build: a file system in memory is its own page cache.
    fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let vmstore = Vmstore::init_in(dir.path());
        Self { dir, vmstore }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The path as an argument.
    fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// An image of 24 MiB.
    fn image(&self, name: &str, seed: u64) -> PathBuf {
        let path = self.path(name);
        images::make(&path, 24 << 20, seed);
        path
    }

    /// Runs qemu-img in the directory; its arguments have no spaces.
    fn qemu_img(&self, args: &str) {
        let mut command = Command::new("qemu-img");
        let output = command.args(args.split(' ')).current_dir(self.dir.path()).output();
        let output = output.unwrap_or_else(|error| panic!("this test needs `qemu-img`: {error}"));
        assert!(output.status.success(), "qemu-img {args}: {}", tests::stderr(&output));
    }

    /// Ingests as `image` and returns the snapshot's root.
    fn root_of(&self, source: &str, image: &str) -> String {
        self.vmstore.run(["ingest", source, "--image", image]);
        self.shown_root(image)
    }

    fn shown_root(&self, image: &str) -> String {
        self.vmstore.json(["show", image])["root"].as_str().unwrap().to_owned()
    }

    /// Fails unless an ingest of the file is refused; returns the reason.
    fn refusal(&self, name: &str, options: &[&str]) -> String {
        let source = self.arg(name);
        let said = self.vmstore.expect_exit(6, [&["ingest", &source, "--image", "web01"], options].concat());
        assert_eq!(self.vmstore.snapshots(), [""; 0], "{said}");
        said
    }

    fn take(&self, name: &str, options: &[&str]) {
        let source = self.arg(name);
        self.vmstore.run([&["ingest", &source, "--image", "web01"], options].concat());
    }
}

#[test]
fn every_kind_of_source_gives_the_same_root() {
    let place = Place::new();
    let nights = ["night1.raw", "night2.raw", "night3.raw"];
    let first = place.image(nights[0], 1);
    images::make_next(&place.path(nights[1]), &first, 2 << 20, 2);
    let raw = place.path(nights[2]);
    images::make_next(&raw, &place.path(nights[1]), 2 << 20, 3);
    place.qemu_img("convert -f raw -O qcow2 night1.raw base.qcow2");
    place.qemu_img("convert -f raw -O qcow2 -B base.qcow2 -F qcow2 night2.raw middle.qcow2");
    place.qemu_img("convert -f raw -O qcow2 -B middle.qcow2 -F qcow2 night3.raw top.qcow2");
    place.qemu_img("convert -f raw -O qcow2 -c night3.raw compressed.qcow2");
    let device = Loop::attach(&raw);

    let root = place.root_of(raw.to_str().unwrap(), "raw");
    assert_eq!(place.root_of(device.device().to_str().unwrap(), "device"), root);
    assert_eq!(place.root_of(&place.arg("top.qcow2"), "chain"), root);
    assert_eq!(place.root_of(&place.arg("compressed.qcow2"), "compressed"), root);
    let piped = ingest_piped(&place.vmstore, fs::read(&raw).unwrap());
    assert!(piped.status.success(), "{}", tests::stderr(&piped));
    assert_eq!(place.shown_root("piped"), root);
    let listed = place.vmstore.json(["list"]);
    let sizes: Vec<_> = listed.as_array().unwrap().iter().map(|line| line["virtual_bytes"].as_u64()).collect();
    assert_eq!(sizes, [Some(24 << 20); 5]);
    place.vmstore.assert_holds("piped", &raw);
}

fn ingest_piped(vmstore: &Vmstore, image: Vec<u8>) -> Output {
    let mut command = vmstore.command(["ingest", "-", "--image", "piped"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&image));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

/// The size goes on changing until the ingest ends, so that it differs between its beginning and its end.
#[test]
fn a_source_that_changes_its_size_is_refused() {
    let place = Place::new();
    let path = place.path("growing.raw");
    for step in [4096_i64, -4096] {
        fs::write(&path, Rng::new(7).noise(256 << 20)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut command = place.vmstore.command(["ingest", path.to_str().unwrap(), "--image", "web01"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            let size_bytes = file.metadata().unwrap().len();
            file.set_len(size_bytes.saturating_add_signed(step)).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        let said = expect_exit_of(&child.wait_with_output().unwrap(), 6, "ingest of a changing file");
        assert!(said.contains("changed size while it was read"), "{said}");
        assert_eq!(place.vmstore.snapshots(), [""; 0]);
    }
    assert_eq!(place.vmstore.json(["verify"])["sound"], true);
}

/// A guest can write any header into its raw disk.
#[test]
fn a_raw_image_that_looks_like_qcow2_is_raw() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 -u -b /etc/passwd -F raw disk.raw 1G");
    let image = File::options().append(true).open(place.path("disk.raw")).unwrap();
    (&image).write_all(&Rng::new(1).noise(300_000)).unwrap();
    place.take("disk.raw", &[]);
    let size_bytes = image.metadata().unwrap().len();
    assert_eq!(place.vmstore.json(["show", "web01"])["virtual_bytes"], size_bytes);
    place.vmstore.assert_holds("web01", &place.path("disk.raw"));
}

/// An image held open for writing, as a running machine does.
struct OpenInQemu(Child);

impl OpenInQemu {
    fn new(format: &str, path: &Path) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("this test needs `qemu-io`: {error}"));
        let mut prompt = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"qemu-io>");
        Self(child)
    }
}

impl Drop for OpenInQemu {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_qemu_writes_to_needs_live() {
    for format in ["raw", "qcow2"] {
        let place = Place::new();
        let name = format!("disk.{format}");
        place.qemu_img(&format!("create -q -f {format} {name} 8M"));
        let machine = OpenInQemu::new(format, &place.path(&name));
        let said = place.refusal(&name, &[]);
        for hint in ["open for writing in QEMU", "virsh snapshot-create-as", "--live"] {
            assert!(said.contains(hint), "{said}");
        }
        place.take(&name, &["--live", "--time", "2026-11-19"]);
        drop(machine);
        place.take(&name, &["--time", "2026-11-20"]);
        assert_eq!(place.vmstore.snapshots().len(), 2);
    }
}

#[test]
fn a_backing_file_needs_a_recorded_format_and_an_allowed_place() {
    let place = Place::new();
    let outside = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = outside.path().join("base.raw");
    images::make(&base, 2 << 20, 5);
    let directory = outside.path().to_str().unwrap();
    place.qemu_img(&format!("create -q -f qcow2 -b {} -F raw disk.qcow2", base.display()));
    let said = place.refusal("disk.qcow2", &[]);
    assert!(said.contains("--backing-dir") && said.contains("base.raw"), "{said}");

    let recorded = fs::read(place.path("disk.qcow2")).unwrap();
    forget_backing_format(&place.path("disk.qcow2"));
    let said = place.refusal("disk.qcow2", &["--backing-dir", directory]);
    assert!(said.contains("qemu-img rebase -u -f qcow2 -F FORMAT"), "{said}");

    fs::write(place.path("disk.qcow2"), recorded).unwrap();
    place.take("disk.qcow2", &["--backing-dir", directory]);
    place.vmstore.assert_holds("web01", &base);
}

/// Today's qemu-img always records it: turns the record into one of an unknown kind.
fn forget_backing_format(path: &Path) {
    let mut image = fs::read(path).unwrap();
    let record = image.windows(4).position(|word| word == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    image[record..record + 4].copy_from_slice(b"none");
    fs::write(path, image).unwrap();
}

#[test]
fn names_that_are_no_names_are_refused_and_leave_nothing() {
    let place = Place::new();
    fs::write(place.path("disk.raw"), b"an image").unwrap();
    let before = everything_below(place.dir.path());
    let (long, source, dest) = ("a".repeat(300), place.arg("disk.raw"), place.arg("restored.raw"));
    for bad in ["a/b", "/etc/x", "..", ".", "../web01", "web01\nweb02", "", "-", "web 01", "web01\u{1}", &long] {
        place.vmstore.expect_exit(2, ["ingest", &source, &format!("--image={bad}")]);
        place.vmstore.expect_exit(2, ["show", "--", bad]);
        place.vmstore.expect_exit(2, ["restore", "--", bad, &dest]);
        place.vmstore.expect_exit(2, ["remove", "--", bad]);
        place.vmstore.expect_exit(2, ["hold", "--", bad]);
        place.vmstore.expect_exit(2, ["list", "--", bad]);
    }
    place.vmstore.expect_exit(2, ["ingest", &source, "--image", "web01", "--time", "../2026"]);
    assert_eq!(everything_below(place.dir.path()), before);
}

/// The paths below a directory, sorted; but not the index's, whose files come and go.
fn everything_below(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("index") {
            paths.extend(everything_below(&path));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

#[test]
fn eight_tebibytes_of_holes_cost_nothing() {
    const SIZE_BYTES: u64 = 8 << 40;
    const CHANGED_AT: u64 = (5 << 40) + (3 << 20);
    let place = Place::new();
    let path = place.path("disk.raw");
    let image = File::create(&path).unwrap();
    image.set_len(SIZE_BYTES).expect("this test needs a file system with files of 8 TiB");
    place.take("disk.raw", &["--time", "2026-11-19"]);
    image.write_all_at(&[0x5a; 4096], CHANGED_AT).unwrap();
    place.take("disk.raw", &["--time", "2026-11-20"]);

    let listed = place.vmstore.json(["list"]);
    let fields = |field: &str| [&listed[0][field], &listed[1][field]].map(|value| value.as_u64().unwrap());
    assert_eq!(fields("virtual_bytes"), [SIZE_BYTES; 2]);
    assert_eq!(fields("data_bytes"), [0, 4096]);
    assert!(fields("stored_bytes").iter().all(|bytes| *bytes < 64 << 10), "{listed}");
    assert_eq!(place.vmstore.json(["show", "web01@20261119"])["root"], Value::Null);
    let diff = place.vmstore.json(["diff", "web01@20261119", "web01"]);
    let range = &diff["ranges"][0];
    assert_eq!((diff["ranges"].as_array().unwrap().len(), &diff["changed_bytes"]), (1, &range["bytes"]));
    let offset = range["offset"].as_u64().unwrap();
    assert!((offset..offset + range["bytes"].as_u64().unwrap()).contains(&CHANGED_AT), "{diff}");

    for night in ["web01@20261119", "web01@20261120"] {
        let restored = place.path(night);
        place.vmstore.run(["restore", night, restored.to_str().unwrap()]);
        let metadata = restored.metadata().unwrap();
        assert_eq!(metadata.len(), SIZE_BYTES);
        assert!(metadata.blocks() * 512 < 1 << 20, "{night} has {} blocks", metadata.blocks());
    }
    let mut block = vec![0; 3 * 4096];
    File::open(place.path("web01@20261120")).unwrap().read_exact_at(&mut block, CHANGED_AT - 4096).unwrap();
    assert_eq!(block, [vec![0; 4096], vec![0x5a; 4096], vec![0; 4096]].concat());
    assert_eq!(place.vmstore.json(["verify"])["sound"], true);
}

#[test]
fn the_disks_of_a_machine_share_group_time_and_labels() {
    let place = Place::new();
    for (disk, seed) in [("vda.raw", 1), ("vdb.raw", 2)] {
        images::make(&place.path(disk), 3 << 20, seed);
    }
    let (vda, vdb) = (place.arg("vda.raw"), place.arg("vdb.raw"));
    let labels = ["--label", "os=debian12", "--label", "app=mysql"];
    let images = ["--image", "db1-vda", "--image", "db1-vdb", "--group", "db1"];
    let printed = place.vmstore.run([&["ingest", &vda, &vdb, "--json"], &images[..], &labels].concat());
    let printed: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed.len(), 2);
    assert_eq!(printed[0]["time"], printed[1]["time"]);
    for (report, image) in printed.iter().zip(["db1-vda", "db1-vdb"]) {
        assert_eq!((&report["image"], &report["group"]), (&image.into(), &"db1".into()));
        assert_eq!(report["labels"], serde_json::json!({"os": "debian12", "app": "mysql"}));
    }
    place.vmstore.run(["ingest", &vda, "--image", "web01", "--label", "os=debian12"]);

    let count = |filter: &[&str]| place.vmstore.json([&["list"], filter].concat()).as_array().unwrap().len();
    assert_eq!(count(&["--label", "os=debian12"]), 3);
    assert_eq!(count(&["--label", "os=debian12", "--label", "app=mysql"]), 2);
    assert_eq!(count(&["--label", "os=debian11"]), 0);
    assert_eq!(count(&["web01", "--label", "app=mysql"]), 0);
    place.vmstore.assert_holds("db1-vda", &place.path("vda.raw"));
    place.vmstore.assert_holds("db1-vdb", &place.path("vdb.raw"));
    place.vmstore.expect_exit(2, ["ingest", &vda, &vdb, "--image", "one"]);
    place.vmstore.expect_exit(2, ["ingest", &vda, &vdb, "--image", "one", "--image", "one"]);
}

#[test]
fn an_ingest_leaves_the_page_cache_as_it_was() {
    let place = Place::new();
    let path = place.path("disk.raw");
    fs::write(&path, Rng::new(9).noise(32 << 20)).unwrap();
    let image = File::open(&path).unwrap();
    image.sync_all().unwrap();
    rustix::fs::fadvise(&image, 0, None, Advice::DontNeed).unwrap();
    assert_eq!(resident_bytes(&path), 0, "the test could not empty the cache");
    place.take("disk.raw", &["--time", "2026-11-18"]);
    assert_eq!(resident_bytes(&path), 0);

    fs::read(&path).unwrap();
    assert_eq!(resident_bytes(&path), 32 << 20, "the test could not fill the cache");
    place.take("disk.raw", &["--time", "2026-11-19"]);
    assert_eq!(resident_bytes(&path), 32 << 20);
    let restored = place.path("restored.raw");
    place.vmstore.run(["restore", "web01@20261118", restored.to_str().unwrap()]);
    assert_same(&restored, &path);
}

/// How much of a file is in the page cache.
fn resident_bytes(path: &Path) -> u64 {
    let args = ["--bytes", "--noheadings", "--raw", "--output", "RES"].map(OsStr::new);
    tool("fincore", &[&args[..], &[path.as_os_str()]].concat()).trim().parse().unwrap()
}
