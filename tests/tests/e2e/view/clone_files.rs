//! Clones as files: what can be done to a disk that can be written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use tests::Mounted;
use tests::images::{self, Rng};

use super::names::list;
use super::refusals::{IN_DIRECTORIES, ON_FILES};
use super::{MIB, Viewed, errno, forget_pages, read_at};

/// A mount with a clone `vm` of a snapshot of so many MiB; and the bytes that it begins with.
fn with_clone(mib: u64) -> (Viewed, PathBuf, Vec<u8>) {
    let viewed = Viewed::of(mib, 1);
    viewed.mounted.vmfs().run(["clone", "create", "vm", "web01"]);
    let (path, bytes) = (viewed.mounted.clone_file("vm"), fs::read(viewed.first().1).unwrap());
    (viewed, path, bytes)
}

fn open(path: &PathBuf) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_clone_is_a_file_that_can_be_written() {
    let (viewed, path, mut expected) = with_clone(8);
    assert_eq!(list(&viewed.mounted.path().join("clones")), ["vm.raw"]);
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.mode(), metadata.nlink(), metadata.len()), (0o100_644, 1, 8 * MIB));
    assert!(metadata.blocks() * 512 <= 8 * MIB);
    assert!(fs::read(&path).unwrap() == expected);
    let mut rng = Rng::new(11);
    for round in 0..4 {
        // Nothing is synced, and it is there when it is opened again.
        let file = open(&path);
        for _ in 0..60 {
            let bytes = 1 + rng.below(100_000) as usize;
            let at = rng.below(expected.len() as u64 - bytes as u64);
            let noise = rng.noise(bytes);
            file.write_all_at(&noise, at).unwrap();
            expected[at as usize..][..bytes].copy_from_slice(&noise);
        }
        forget_pages(&file);
        drop(file);
        assert!(fs::read(&path).unwrap() == expected, "round {round}");
    }
    images::assert_same(&viewed.first().0, &viewed.first().1);
    let Viewed { site: _site, vmstore, mounted, .. } = viewed;
    let mountpoint = mounted.path().to_path_buf();
    mounted.unmount();
    let again = Mounted::start(&vmstore, mountpoint);
    assert!(fs::read(again.clone_file("vm")).unwrap() == expected, "unmounting makes it durable");
    again.unmount();
}

#[test]
fn handles_of_one_clone_see_the_same() {
    let (_viewed, path, expected) = with_clone(4);
    let [first, second] = [open(&path), open(&path)];
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut memory = vec![0; 8192];
    let start = memory.as_ptr().align_offset(4096);
    for round in 0..20_u8 {
        let at = u64::from(round) * 40_000;
        first.write_all_at(&[round; 100], at).unwrap();
        assert_eq!(read_at(&second, at, 100).unwrap(), [round; 100]);
        let page = at / 4096 * 4096;
        direct.read_exact_at(&mut memory[start..start + 4096], page).unwrap();
        assert_eq!(memory[start + (at - page) as usize], round);
        memory[start..start + 4096].fill(round ^ 0xff);
        direct.write_all_at(&memory[start..start + 4096], page).unwrap();
        assert_eq!(read_at(&second, page, 4096).unwrap(), [round ^ 0xff; 4096]);
    }
    // Opening it again does not take away what others have written.
    drop(first);
    assert_eq!(read_at(&open(&path), 0, 4096).unwrap(), [0xff; 4096]);
    assert_eq!(fs::read(&path).unwrap()[3 * MIB as usize..], expected[3 * MIB as usize..]);
}

#[test]
fn mapped_memory_is_written_back() {
    let (_viewed, path, mut expected) = with_clone(2);
    let file = open(&path);
    let (both, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping that is used within its size, synced and unmapped before anything else reads it.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), expected.len(), both, shared, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let map = std::slice::from_raw_parts_mut(at.cast::<u8>(), expected.len());
        for page in (0..expected.len()).step_by(50_000) {
            map[page] = 0xa5;
            expected[page] = 0xa5;
        }
        assert_eq!(libc::msync(at, expected.len(), libc::MS_SYNC), 0, "{}", io::Error::last_os_error());
        libc::munmap(at, expected.len());
    }
    drop(file);
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn sizes_change_as_those_of_files_do() {
    let (_viewed, path, mut expected) = with_clone(2);
    let file = open(&path);
    for bytes in [3 * MIB, MIB + 1, 0, 5000, 2 * MIB] {
        file.set_len(bytes).unwrap();
        expected.resize(bytes as usize, 0);
        assert_eq!(file.metadata().unwrap().len(), bytes);
        assert!(fs::read(&path).unwrap() == expected, "{bytes}");
    }
    let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
    appending.write_all(b"at the end").unwrap();
    expected.extend(b"at the end");
    file.write_all_at(b"beyond", 3 * MIB).unwrap();
    expected.resize(3 * MIB as usize, 0);
    expected.extend(b"beyond");
    assert!(fs::read(&path).unwrap() == expected);
    drop((file, appending));
    assert!(fs::read(&path).unwrap() == expected);
    assert_eq!(path.metadata().unwrap().len(), expected.len() as u64);
}

#[test]
fn a_discarded_range_is_a_hole() {
    let (_viewed, path, mut expected) = with_clone(4);
    let file = open(&path);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (offset, bytes) in [(0, 4096), (100_000, 300_000), (MIB, MIB), (4 * MIB - 10, 10)] {
        fallocate(&file, hole, offset, bytes).unwrap();
        expected[offset as usize..(offset + bytes) as usize].fill(0);
        assert!(fs::read(&path).unwrap() == expected, "{bytes} at {offset}");
    }
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(MIB)).unwrap(), MIB);
    fallocate(&file, hole, 4 * MIB - 10, MIB).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 3 * MIB, 2 * MIB).unwrap();
    expected[3 * MIB as usize..].fill(0);
    assert!(fs::read(&path).unwrap() == expected, "nothing grows");
    fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * MIB, 2 * MIB).unwrap();
    expected.resize(5 * MIB as usize, 0);
    assert!(fs::read(&path).unwrap() == expected, "and now it does");
    for promised in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
        assert_eq!(errno(fallocate(&file, promised, 0, MIB).map_err(io::Error::from)), libc::EOPNOTSUPP);
    }
    file.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn refused_operations_on_a_clone() {
    let (viewed, path, expected) = with_clone(1);
    let can_be_done = ["open for writing", "open for both", "open to append", "truncate", "grow"];
    for (what, attempt) in ON_FILES.iter().filter(|(what, _)| !can_be_done.contains(what)) {
        assert_eq!(errno(attempt(&path)), libc::EPERM, "{what}");
    }
    for (what, attempt) in IN_DIRECTORIES {
        assert_eq!(errno(attempt(path.parent().unwrap())), libc::EPERM, "{what}");
    }
    assert!(fs::read(&path).unwrap() == expected);
    // The mount that has it open is told apart from other mounts.
    let held = open(&path);
    let second = Mounted::start(&viewed.vmstore, viewed.site.path("second"));
    assert_eq!(second.clone_file("vm").metadata().unwrap().len(), MIB);
    assert_eq!(errno(File::open(second.clone_file("vm"))), libc::EBUSY);
    drop(held);
    tests::eventually("the clone's end here", || File::open(second.clone_file("vm")).is_ok());
    second.unmount();
}

#[test]
fn clones_come_and_go() {
    let (viewed, path, expected) = with_clone(1);
    open(&path).write_all_at(&[1; 8192], 0).unwrap();
    let vmfs = viewed.mounted.vmfs();
    tests::eventually("the end of its use", || {
        vmfs.command(["clone", "discard", "vm"]).output().unwrap().status.success()
    });
    assert_eq!(errno(path.metadata()), libc::ENOENT);
    assert_eq!(list(path.parent().unwrap()), [""; 0]);
    vmfs.run(["clone", "create", "vm", "web01"]);
    assert!(fs::read(&path).unwrap() == expected, "none of what the other one had");
}
