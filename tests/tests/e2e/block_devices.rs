//! Block devices: one that can't be read, and as destinations. Needs root and loop devices.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use chunkstore::source::{self, OpenOptions, Source};
use tempfile::TempDir;
use tests::devices::{Loop, Mount, resident_bytes, tool};
use tests::images::{self, Rng};
use tests::{Vmstore, expect_exit_of};

const MIB: u64 = 1 << 20;

/// A directory with a store and the files under loop devices.
struct Site {
    dir: TempDir,
    vmstore: Vmstore,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vmstore = Vmstore::init_in(dir.path());
        Self { dir, vmstore }
    }

    /// With the file `image`, of 60 MiB and with holes, as `web01`.
    fn with_image() -> Self {
        let site = Self::new();
        images::make(&site.path("image"), 60 * MIB, 1);
        site.vmstore.run([OsStr::new("ingest"), site.path("image").as_os_str(), "--image".as_ref(), "web01".as_ref()]);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A device full of noise.
    fn device(&self, mib: u64) -> Loop {
        let file = self.path("device");
        fs::write(&file, Rng::new(7).noise((mib * MIB) as usize)).unwrap();
        Loop::attach(&file)
    }

    /// Restores to a device; returns what was said if that ended, as it must, with `code`.
    fn restore(&self, device: &Loop, options: &[&str], code: i32) -> String {
        let args = [&["restore", "web01", device.device().to_str().unwrap()], options].concat();
        let output = self.vmstore.command(&args).output().unwrap();
        if code == 0 {
            assert!(output.status.success(), "{args:?}: {}", tests::stderr(&output));
            return String::new();
        }
        expect_exit_of(&output, code, &format!("{args:?}"))
    }
}

fn bytes_of(device: &Loop) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(device.device()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_device_that_cannot_be_read_is_named_with_the_offset() {
    const READABLE_BYTES: u64 = 40 * MIB;
    let site = Site::new();
    let device = site.device(64);
    // The device keeps its size: reads of what the file no longer has fail with EIO.
    File::options().write(true).open(site.path("device")).unwrap().set_len(READABLE_BYTES).unwrap();
    let name = device.device().to_str().unwrap();
    for threads in ["1", "4"] {
        let said = site.vmstore.expect_exit(1, ["ingest", name, "--image", "web01", "--threads", threads]);
        let offset = said.split_once(&format!("reading {name} at offset ")).and_then(|(_, rest)| rest.split_once(": "));
        let (offset, reason) = offset.unwrap_or_else(|| panic!("{said}"));
        assert!((READABLE_BYTES..64 * MIB).contains(&offset.parse().unwrap()), "{said}");
        assert!(reason.contains("Input/output error"), "{said}");
        assert_eq!(site.vmstore.snapshots(), [""; 0]);
        assert_eq!(site.vmstore.files("packs", ".part"), [""; 0]);
        site.vmstore.run(["verify"]);
    }
}

/// Reads by the library, because the pages of a device go when the last program closes it.
#[test]
fn a_device_is_read_without_a_trace_in_the_page_cache() {
    let bytes = 6 * MIB as usize;
    let site = Site::new();
    let device = site.device(6);
    let source = source::open(device.device().to_str().unwrap(), &OpenOptions::default()).unwrap();
    let Source::Disk(disk) = source else { panic!("a device is a disk") };
    let cached = File::open(device.device()).unwrap();
    rustix::fs::fadvise(&cached, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert_eq!(disk.size_bytes(), 6 * MIB);
    assert_eq!(disk.next_data(4096).unwrap(), Some(4096..6 * MIB));
    let mut content = vec![0; bytes];
    disk.read_exact_at(&mut content, 0).unwrap();
    assert!(content == Rng::new(7).noise(bytes));
    // The system looks at the beginning of a new device to learn what it is.
    let resident_bytes = resident_bytes(&cached, bytes);
    assert!(resident_bytes <= MIB as usize, "{resident_bytes}");
    disk.finish().unwrap();
}

#[test]
fn an_ingested_device_comes_back() {
    let site = Site::new();
    images::make(&site.path("device"), 40 * MIB, 3);
    let device = Loop::attach(&site.path("device"));
    site.vmstore.run(["ingest", device.device().to_str().unwrap(), "--image", "web01"]);
    site.vmstore.assert_holds("web01", &site.path("device"));
}

#[test]
fn restore_to_a_device_needs_force_and_makes_every_zero() {
    let site = Site::with_image();
    let device = site.device(64);
    let before = bytes_of(&device);
    let said = site.restore(&device, &[], 6);
    assert!(said.contains("--force") && said.contains(device.device().to_str().unwrap()), "{said}");
    assert!(bytes_of(&device) == before, "a refused restore wrote to the device");
    site.restore(&device, &["--force"], 0);
    images::assert_same(device.device(), &site.path("image"));
    let (after, image_bytes) = (bytes_of(&device), 60 * MIB as usize);
    assert!(after[image_bytes..] == before[image_bytes..], "what lies behind the image was changed");
}

#[test]
fn a_device_that_is_too_small_is_refused_untouched() {
    let site = Site::with_image();
    let device = site.device(59);
    let before = bytes_of(&device);
    let said = site.restore(&device, &["--force"], 6);
    assert!(said.contains("too few") && said.contains(device.device().to_str().unwrap()), "{said}");
    assert!(bytes_of(&device) == before);
}

#[test]
fn a_device_that_is_mounted_is_refused_untouched() {
    let site = Site::with_image();
    let device = site.device(64);
    tool("mkfs.ext4", &[OsStr::new("-q"), "-F".as_ref(), device.device().as_os_str()]);
    let mount = Mount::device(device.device());
    fs::write(mount.path().join("precious"), "data").unwrap();
    let said = site.restore(&device, &["--force"], 6);
    assert!(said.contains("mounted") && said.contains(device.device().to_str().unwrap()), "{said}");
    drop(mount);
    tool("e2fsck", &[OsStr::new("-fn"), device.device().as_os_str()]);
    let mount = Mount::device(device.device());
    assert_eq!(fs::read_to_string(mount.path().join("precious")).unwrap(), "data");
}
