//! Restoring to files, streams and devices.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::format::manifest::{Entry as Line, Leaf, Node};
use crate::format::{Chunk, ChunkId, NodeId};
use crate::store::Store;
use crate::testing::{init, night, noise, open, put};

const OPTIONS: RestoreOptions = RestoreOptions { force: false, sync: true, threads: 2 };
const FORCE: RestoreOptions = RestoreOptions { force: true, ..OPTIONS };

/// Data, zeros within and between segments, repeated content, and an end that is no multiple of anything.
fn image() -> Vec<u8> {
    let mut image = vec![0; (17 << 20) + 1234];
    image[..300_000].copy_from_slice(&noise(300_000, 1));
    image[1 << 20..2 << 20].copy_from_slice(&noise(1 << 20, 2));
    image.copy_within(1 << 20..2 << 20, 3 << 20);
    image.copy_within(1 << 20..2 << 20, 13 << 20);
    image[17 << 20..].fill(7);
    image
}

struct Setup {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    entry: Entry,
}

fn setup(image: &[u8]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("store");
    init(&at);
    let store = open(&at);
    let entry = put(&store, night("a", 0), image).entry().clone();
    Setup { dir, store, entry }
}

impl Setup {
    fn dest(&self) -> PathBuf {
        self.dir.path().join("dest")
    }

    fn restore(&self, options: &RestoreOptions) -> Result<RestoreReport> {
        restore(&*self.store, &self.entry, &self.dest(), options, &Progress::default())
    }

    fn stream(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        restore_to_stream(&*self.store, &self.entry, &mut out, &OPTIONS, &Progress::default())?;
        Ok(out)
    }

    /// Names in the destination's directory.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_file_and_a_stream_get_the_same_bytes_and_a_file_is_sparse() {
    let mut fragments = noise(8 << 20, 5);
    fragments.chunks_mut(32 << 10).for_each(|part| part[8 << 10..24 << 10].fill(0));
    for image in [image(), Vec::new(), vec![0; 9 << 20], vec![5; 1], noise(4 << 20, 9), fragments] {
        let setup = setup(&image);
        for options in [OPTIONS, RestoreOptions { sync: false, ..FORCE }, FORCE] {
            let report = setup.restore(&options).unwrap();
            assert!(fs::read(setup.dest()).unwrap() == image);
            assert_eq!(report.virtual_bytes, image.len() as u64);
            let stored_bytes = fs::metadata(setup.dest()).unwrap().blocks() * 512;
            assert!(stored_bytes <= report.data_bytes + (64 << 10), "{stored_bytes} for {}", report.data_bytes);
            assert_eq!(setup.names(), ["dest", "store"]);
        }
        assert!(setup.stream().unwrap() == image);
    }
}

#[test]
fn a_file_is_replaced_only_by_force_and_keeps_its_mode() {
    let setup = setup(&image());
    fs::write(setup.dest(), "precious").unwrap();
    fs::set_permissions(setup.dest(), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(setup.restore(&OPTIONS), Err(Error::Refused { .. })));
    assert_eq!(fs::read(setup.dest()).unwrap(), b"precious");
    setup.restore(&FORCE).unwrap();
    assert!(fs::read(setup.dest()).unwrap() == image());
    assert_eq!(fs::metadata(setup.dest()).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn what_an_interrupted_restore_left_is_used_up_and_a_running_one_is_not_disturbed() {
    let setup = setup(&image());
    let part = setup.dir.path().join(".dest.vmstore-part");
    fs::write(&part, vec![9; 20 << 20]).unwrap();
    setup.restore(&OPTIONS).unwrap();
    assert!(fs::read(setup.dest()).unwrap() == image());
    fs::write(&part, "another's").unwrap();
    let other = fs::File::open(&part).unwrap();
    other.lock().unwrap();
    assert!(matches!(setup.restore(&FORCE), Err(Error::Refused { .. })));
    assert_eq!(fs::read(&part).unwrap(), b"another's");
}

#[test]
fn a_link_is_followed_and_other_things_are_refused() {
    let setup = setup(&image());
    let real = setup.dir.path().join("real");
    std::os::unix::fs::symlink(&real, setup.dest()).unwrap();
    assert!(setup.restore(&FORCE).unwrap_err().to_string().contains("link to nothing"));
    fs::write(&real, "").unwrap();
    setup.restore(&FORCE).unwrap();
    assert!(fs::read(&real).unwrap() == image() && setup.dest().is_symlink());
    for dest in ["/dev/null", "/", "."] {
        let refused = restore(&*setup.store, &setup.entry, Path::new(dest), &FORCE, &Progress::default());
        assert!(matches!(refused, Err(Error::Refused { .. })), "{dest}");
    }
    let nowhere = setup.dir.path().join("no/where");
    let error = restore(&*setup.store, &setup.entry, &nowhere, &OPTIONS, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("no/.where.vmstore-part"), "{error}");
}

#[test]
fn damage_is_named_and_leaves_no_file() {
    let setup = setup(&image());
    let row = setup.store.packs().rows().into_iter().find(|row| row.class == crate::pack::Class::Data).unwrap();
    let path = setup.store.dir().join(crate::pack::path(row.id));
    let mut pack = fs::read(&path).unwrap();
    pack[5000] ^= 1;
    fs::write(&path, pack).unwrap();
    let message = setup.restore(&OPTIONS).unwrap_err().to_string();
    assert!(message.contains("chunk ") && message.contains(&row.id.to_string()), "{message}");
    assert_eq!(setup.names(), ["store"]);
    assert!(matches!(setup.stream(), Err(Error::Damaged { .. })));
}

#[test]
fn a_request_to_stop_is_heard() {
    let setup = setup(&image());
    let progress = Progress::default();
    progress.stop();
    let stopped = restore(&*setup.store, &setup.entry, &setup.dest(), &OPTIONS, &progress);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(setup.names(), ["store"]);
    let stopped = restore_to_stream(&*setup.store, &setup.entry, &mut Vec::new(), &OPTIONS, &progress);
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn a_reader_that_went_away_is_named() {
    let setup = setup(&image());
    let (reader, mut writer) = io::pipe().unwrap();
    drop(reader);
    let error = restore_to_stream(&*setup.store, &setup.entry, &mut writer, &OPTIONS, &Progress::default());
    assert!(error.unwrap_err().to_string().contains("broken pipe"));
}

/// A source that has one leaf, whatever it is asked for, and these chunks; the first instead of any other.
struct Made {
    leaf: Leaf,
    chunks: Vec<Chunk>,
}

impl ChunkSource for Made {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        let chunk = |id: &ChunkId| self.chunks.iter().find(|chunk| chunk.id() == *id).unwrap_or(&self.chunks[0]);
        ids.iter().enumerate().try_for_each(|(at, id)| each(at, Ok(chunk(id).clone())))
    }

    fn node(&self, _: NodeId) -> Result<Node> {
        Ok(Node::Leaf(self.leaf.clone()))
    }
}

#[test]
fn a_manifest_that_does_not_fit_the_image_is_damage() {
    let setup = setup(&[1; 5000]);
    let chunk = Chunk::hash(vec![3; 4000]);
    for bytes in [3999, 4001, 6000] {
        let leaf = Leaf::new(vec![Line::Chunk { id: chunk.id(), bytes }]).unwrap();
        let made = Made { leaf, chunks: vec![chunk.clone()] };
        let told = restore(&made, &setup.entry, &setup.dest(), &OPTIONS, &Progress::default());
        assert!(matches!(told, Err(Error::Damaged { .. })), "{bytes}");
        let told = restore_to_stream(&made, &setup.entry, &mut Vec::new(), &OPTIONS, &Progress::default());
        assert!(matches!(told, Err(Error::Damaged { .. })), "{bytes}");
    }
    assert_eq!(setup.names(), ["store"]);
}

#[test]
fn runs_that_begin_and_end_within_blocks_are_written_right() {
    let parts = [noise(70_001, 1), noise(100_000, 2), noise(66_000, 3)];
    let mut image = Vec::new();
    let mut lines = Vec::new();
    for part in &parts {
        lines.push(Line::Chunk { id: ChunkId::of(part), bytes: part.len() as u32 });
        lines.push(Line::Zero { bytes: 4096 });
        image.extend_from_slice(part);
        image.extend_from_slice(&[0; 4096]);
    }
    lines.pop();
    image.resize(256 << 10, 0);
    let setup = setup(&image);
    let made = Made { leaf: Leaf::new(lines).unwrap(), chunks: parts.into_iter().map(Chunk::hash).collect() };
    restore(&made, &setup.entry, &setup.dest(), &OPTIONS, &Progress::default()).unwrap();
    assert!(fs::read(setup.dest()).unwrap() == image);
}

/// A loop device, where this user may make one.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        made.status.success().then(|| Self(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_device_gets_every_byte_of_the_image_and_none_more() {
    let image = image();
    let setup = setup(&image);
    let disk = setup.dir.path().join("disk");
    for (disk_bytes, fits) in [(18 << 20, true), (16 << 20, false)] {
        fs::write(&disk, vec![0xff; disk_bytes]).unwrap();
        let Some(device) = Loop::over(&disk) else {
            eprintln!("no loop devices here: not tested");
            return;
        };
        let onto = |options| restore(&*setup.store, &setup.entry, &device.0, &options, &Progress::default());
        assert!(matches!(onto(OPTIONS), Err(Error::Refused { .. })));
        if fits {
            onto(FORCE).unwrap();
            let found = fs::read(&device.0).unwrap();
            assert!(found[..image.len()] == image && found[image.len()..].iter().all(|byte| *byte == 0xff));
            let _holder = rustix::fs::open(&device.0, rustix::fs::OFlags::EXCL, rustix::fs::Mode::empty()).unwrap();
            assert!(onto(FORCE).unwrap_err().to_string().contains("in use"));
        } else {
            let message = onto(FORCE).unwrap_err().to_string();
            assert!(message.contains("16777216") && message.contains(&image.len().to_string()), "{message}");
        }
    }
}

#[test]
fn a_qcow2_image_appears_whole_or_not_at_all() {
    let image = image();
    let setup = setup(&image);
    let (dest, raw) = (setup.dest(), setup.dir.path().join("raw"));
    let to_qcow2 = |options: &RestoreOptions, progress: &Progress| {
        restore_to_qcow2(&*setup.store, &setup.entry, &dest, options, progress)
    };
    let stopped = Progress::default();
    stopped.stop();
    assert!(matches!(to_qcow2(&OPTIONS, &stopped), Err(Error::Interrupted)));
    assert_eq!(setup.names(), ["store"]);

    check_qcow2(&dest, false).unwrap();
    to_qcow2(&OPTIONS, &Progress::default()).unwrap();
    assert_eq!(setup.names(), ["dest", "store"]);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&dest).arg(&raw);
    assert!(convert.status().unwrap().success());
    assert!(fs::read(raw).unwrap()[..image.len()] == image);

    assert!(matches!(check_qcow2(&dest, false), Err(Error::Refused { .. })));
    assert!(to_qcow2(&OPTIONS, &Progress::default()).is_err(), "it exists");
    check_qcow2(&dest, true).unwrap();
    fs::set_permissions(&dest, fs::Permissions::from_mode(0o640)).unwrap();
    to_qcow2(&FORCE, &Progress::default()).unwrap();
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o777, 0o640, "the replaced file's mode");
    assert!(matches!(check_qcow2(setup.dir.path(), true), Err(Error::Refused { .. })), "a directory");
}
