//! Ingest of qcow2 images over a snapshot's file: the file is not read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{XattrFlags, setxattr};

use super::*;
use crate::format::limits::SEGMENT_BYTES;
use crate::source::{self, OpenOptions, Overlay};
use crate::testing::{disk, init, night, noise, open, options, put, read_back};

const SIZE_BYTES: usize = 3 * SEGMENT_BYTES + 200 * 1024;

/// A store with a snapshot, its file in a directory of its own, and a place for overlays.
struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    base: Snapshot,
}

impl Place {
    fn new() -> Self {
        let dir = dir_with_attributes();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        init(&dir.path().join("store"));
        let store = open(&dir.path().join("store"));
        let mut bytes = noise(SIZE_BYTES, 1);
        bytes[SEGMENT_BYTES..SEGMENT_BYTES + 3_000_000].fill(0);
        let base = put(&store, night("web01", 1), &bytes);
        fs::write(dir.path().join("below/base.raw"), bytes).unwrap();
        let place = Self { dir, store, base };
        place.tell("root", &place.base.entry().root.unwrap().to_string());
        place.tell("snapshot", &night("web01", 1).to_string());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets an attribute of the base's file, as a mount has it.
    fn tell(&self, name: &str, value: &str) {
        let path = self.path("below/base.raw");
        setxattr(path, format!("user.vmstore.{name}"), value.as_bytes(), XattrFlags::empty()).unwrap();
    }

    fn run(&self, program: &str, args: &[&str]) {
        let output = Command::new(program).args(args).current_dir(self.dir.path()).output().expect(program);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes an overlay of this size and has QEMU do things to it. Returns what it holds then; afterwards the base's
    /// file has nothing any more but its attributes.
    fn overlay(&self, size: &str, commands: &[&str]) -> Vec<u8> {
        self.run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "below/base.raw", "-F", "raw", "vm.qcow2", size]);
        let commands: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        self.run("qemu-io", &[&["-f", "qcow2", "vm.qcow2"][..], &commands].concat());
        self.run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "vm.qcow2", "expected.raw"]);
        File::options().write(true).open(self.path("below/base.raw")).unwrap().set_len(0).unwrap();
        fs::read(self.path("expected.raw")).unwrap()
    }

    fn open(&self) -> Option<Overlay> {
        source::open_overlay(self.path("vm.qcow2").to_str().unwrap(), &OpenOptions::default()).unwrap()
    }

    fn ingest(&self, name: &SnapshotName, overlay: &Overlay, base: Base) -> Result<Snapshot> {
        ingest_overlay(&self.store, overlay, &options(name.clone(), base), &Progress::default())
    }
}

/// A directory on a file system that keeps attributes, which not every one for temporary files does.
fn dir_with_attributes() -> tempfile::TempDir {
    let keeps = |dir: &Path| setxattr(dir, "user.vmstore.test", b"1", XattrFlags::empty()).is_ok();
    let dirs = [tempfile::tempdir(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))];
    dirs.into_iter().flatten().find(|dir| keeps(dir.path())).expect("a file system with attributes")
}

#[test]
fn an_overlay_gives_the_root_of_its_disk() {
    let same = SIZE_BYTES.to_string();
    let cases: &[(&str, &[&str])] = &[
        (&same, &[]),
        (&same, &["write -P 7 1M 100k", "write -P 9 4097k 1k", "write -z 9M 512k", "write -P 0 2M 64k"]),
        (&same, &["write -P 0 0 4M", "write -z 8M 4M", "discard 5M 1M"]),
        ("20M", &["write -P 5 12M 1M"]),
        ("20M", &[]),
        ("5000k", &["write -P 5 4M 100k"]),
    ];
    for (size, commands) in cases {
        let place = Place::new();
        let expected = place.overlay(size, commands);
        let overlay = place.open().unwrap();
        assert_eq!(overlay.below().snapshot, Some(night("web01", 1)));
        assert!(overlay.below().is_allowed);
        let snapshot = place.ingest(&night("web01", 2), &overlay, Base::Snapshot(night("web01", 1))).unwrap();
        assert!(read_back(&*place.store, snapshot.entry()).unwrap() == expected, "{size} {commands:?}");
        let whole = options(night("whole", 1), Base::None);
        let whole = ingest(&place.store, disk(&expected), &whole, &Progress::default()).unwrap();
        assert_eq!(snapshot.entry().root, whole.entry().root, "{size} {commands:?}");
        let data_bytes = |snapshot: Snapshot| snapshot.state.ingest.unwrap().data_bytes;
        assert_eq!(data_bytes(snapshot), data_bytes(whole), "{size} {commands:?}");
    }
}

#[test]
fn a_damaged_base_is_read_chunk_by_chunk() {
    let place = Place::new();
    let expected = place.overlay("20M", &["write -P 7 1M 100k"]);
    // Damage that has nothing to do with it.
    let stray = crate::format::RecordId::from(crate::format::ChunkId::of(b"stray"));
    let bad = crate::store::damaged::BadRecord { pack: place.some_pack(), offset: 0, id: stray, base_lost: false };
    let mut damaged = (*place.store.damaged()).clone();
    damaged.insert(bad);
    place.store.set_damaged(damaged).unwrap();
    let overlay = place.open().unwrap();
    let snapshot = place.ingest(&night("web01", 2), &overlay, Base::Snapshot(night("web01", 1))).unwrap();
    assert!(read_back(&*place.store, snapshot.entry()).unwrap() == expected);
}

impl Place {
    fn some_pack(&self) -> crate::format::PackId {
        let root = crate::format::RecordId::from(self.base.entry().root.unwrap());
        let place = self.store.locate(&[root]).unwrap()[0].unwrap();
        self.store.packs().row(place.pack).unwrap().id
    }
}

#[test]
fn another_base_is_refused() {
    let place = Place::new();
    place.overlay("20M", &[]);
    put(&place.store, night("other", 1), &[1; 9000]);
    let refused = place.ingest(&night("web01", 2), &place.open().unwrap(), Base::Snapshot(night("other", 1)));
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
}

#[test]
fn what_is_no_snapshots_file_is_no_overlay() {
    let place = Place::new();
    place.overlay("20M", &[]);
    place.tell("root", "zeros");
    assert_eq!(place.open().unwrap().below().root, None);
    place.tell("root", "not a root");
    let vm = place.path("vm.qcow2");
    let open = |path: &Path| source::open_overlay(path.to_str().unwrap(), &OpenOptions::default());
    assert!(matches!(open(&vm), Err(Error::Invalid { .. })));
    rustix::fs::removexattr(place.path("below/base.raw"), "user.vmstore.root").unwrap();
    assert!(open(&vm).unwrap().is_none());
    fs::remove_file(place.path("below/base.raw")).unwrap();
    assert!(open(&vm).unwrap().is_none());
    place.run("qemu-img", &["create", "-q", "-f", "qcow2", "alone.qcow2", "1M"]);
    for other in ["alone.qcow2", "expected.raw", "below", "absent.qcow2"] {
        assert!(open(&place.path(other)).unwrap().is_none(), "{other}");
    }
}
