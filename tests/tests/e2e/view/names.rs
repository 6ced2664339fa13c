//! Directories, attributes and extended attributes.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tests::images::Rng;

use super::{MIB, Viewed, errno};

/// The names in a directory, sorted.
pub(crate) fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn entries_of_directories() {
    let viewed = Viewed::of(2, 2);
    let root = viewed.mounted.path();
    assert_eq!(list(root), ["clones", "snapshots"]);
    assert_eq!(list(&root.join("snapshots")), ["web01"]);
    let image = root.join("snapshots/web01");
    assert_eq!(list(&image), ["20261101T020000Z.raw", "20261102T020000Z.raw", "latest.raw"]);
    assert_eq!(list(&root.join("clones")), [""; 0]);
    assert_eq!(list(&root.join(".vmfs")), ["status.json"]);
    for entry in fs::read_dir(&image).unwrap().map(Result::unwrap) {
        let (kind, metadata) = (entry.file_type().unwrap(), entry.path().symlink_metadata().unwrap());
        assert_eq!(kind, metadata.file_type(), "{entry:?}");
    }
}

#[test]
fn attributes() {
    let viewed = Viewed::of(3, 2);
    let root = viewed.mounted.path();
    let user = rustix::process::geteuid().as_raw();
    let newest = 1_793_498_400 + 86_400;
    // Path, mode, links, size, seconds of the last change where it is known.
    let cases = [
        ("", 0o040_555, 4, 0, None),
        ("snapshots", 0o040_555, 3, 0, Some(newest)),
        ("clones", 0o040_555, 2, 0, None),
        (".vmfs", 0o040_555, 2, 0, None),
        (".vmfs/status.json", 0o100_444, 1, 0, None),
        ("snapshots/web01", 0o040_555, 2, 0, Some(newest)),
        ("snapshots/web01/20261101T020000Z.raw", 0o100_444, 1, 3 * MIB, Some(newest - 86_400)),
        ("snapshots/web01/20261102T020000Z.raw", 0o100_444, 1, 3 * MIB, Some(newest)),
        ("snapshots/web01/latest.raw", 0o120_777, 1, 20, Some(newest)),
    ];
    for (path, mode, links, size, time) in cases {
        let metadata = root.join(path).symlink_metadata().unwrap();
        let found = (metadata.mode(), metadata.nlink(), metadata.size(), metadata.uid());
        assert_eq!(found, (mode, links, size, user), "{path}");
        if let Some(time) = time {
            assert_eq!((metadata.mtime(), metadata.ctime()), (time, time), "{path}");
        }
    }
    assert_eq!(root.metadata().unwrap().blksize(), 64 << 10);
    assert_eq!(fs::read_link(root.join("snapshots/web01/latest.raw")).unwrap(), Path::new("20261102T020000Z.raw"));
}

#[test]
fn a_file_system_that_says_how_much_room_there_is() {
    let viewed = Viewed::of(1, 1);
    let of = |path: &Path| rustix::fs::statvfs(path).unwrap();
    let (view, store) = (of(viewed.mounted.path()), of(viewed.vmstore.store()));
    assert_eq!((view.f_blocks, view.f_frsize, view.f_namemax), (store.f_blocks, store.f_frsize, 255));
    assert!(view.f_bavail > 0);
}

#[test]
fn names_that_are_not_there() {
    let viewed = Viewed::of(1, 1);
    let root = viewed.mounted.path();
    let long = "x".repeat(255);
    let longer = "x".repeat(256);
    let cases: &[(&str, &[u8], i32)] = &[
        ("", b"snapshot", libc::ENOENT),
        ("", b"status.json", libc::ENOENT),
        ("", b".vmfs ", libc::ENOENT),
        ("snapshots", b"web02", libc::ENOENT),
        ("snapshots", b"web01@20261101T020000Z", libc::ENOENT),
        ("snapshots", b".web01", libc::ENOENT),
        ("snapshots", b"WEB01", libc::ENOENT),
        ("snapshots", b"\xff\xfe", libc::ENOENT),
        ("snapshots", b"web\n01", libc::ENOENT),
        ("snapshots", long.as_bytes(), libc::ENOENT),
        ("snapshots", longer.as_bytes(), libc::ENAMETOOLONG),
        ("snapshots/web01", b"20261101T020000Z", libc::ENOENT),
        ("snapshots/web01", b"20261101t020000z.raw", libc::ENOENT),
        ("snapshots/web01", b"20261101T020000Z.RAW", libc::ENOENT),
        ("snapshots/web01", b"20261101T020000Z.raw.raw", libc::ENOENT),
        ("snapshots/web01", b"20261101T020001Z.raw", libc::ENOENT),
        ("snapshots/web01", b"2026-11-01T02:00:00Z.raw", libc::ENOENT),
        ("snapshots/web01", b"20261301T020000Z.raw", libc::ENOENT),
        ("snapshots/web01", b" 20261101T020000Z.raw", libc::ENOENT),
        ("snapshots/web01", b"latest", libc::ENOENT),
        ("snapshots/web01", b".raw", libc::ENOENT),
        ("snapshots/web01/20261101T020000Z.raw", b"x", libc::ENOTDIR),
        ("snapshots/web01/latest.raw", b"x", libc::ENOTDIR),
        ("clones", b"none.raw", libc::ENOENT),
        ("clones", b"..raw", libc::ENOENT),
        ("clones", b".raw", libc::ENOENT),
        (".vmfs", b"status", libc::ENOENT),
    ];
    for (dir, name, expected) in cases {
        let path = root.join(dir).join(OsStr::from_bytes(name));
        assert_eq!(errno(path.symlink_metadata()), *expected, "{}", path.display());
        assert_eq!(errno(File::open(&path)), *expected, "{}", path.display());
    }
    assert_eq!(viewed.mounted.status()["requests"]["failures"], 0);
}

#[test]
fn the_longest_name() {
    let viewed = Viewed::of(1, 1);
    let image = "x".repeat(128);
    let name = viewed.ingest(&viewed.first().1, &image, "20261101T000000Z");
    assert_eq!(fs::read(viewed.mounted.snapshot(&name)).unwrap(), fs::read(viewed.first().1).unwrap());
    assert!(list(&viewed.mounted.path().join("snapshots")).contains(&image));
}

/// An extended attribute's value.
fn xattr(path: &Path, name: &str, room: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; room];
    let bytes = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(bytes);
    Ok(value)
}

/// How long an extended attribute's value is.
fn xattr_bytes(path: &Path, name: &CStr) -> isize {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a plain call without a place for the value.
    unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) }
}

#[test]
fn extended_attributes() {
    let viewed = Viewed::of(1, 1);
    let source = viewed.site.path("labelled.raw");
    fs::write(&source, Rng::new(5).noise(100_000)).unwrap();
    let ingest = ["ingest", source.to_str().unwrap(), "--image", "db", "--time", "20261101T000000Z"];
    viewed.vmstore.run(ingest.iter().chain(&["--label", "os=debian12", "--label", "note=", "--group", "night 7"]));
    let shown = viewed.vmstore.json(["show", "db"]);
    let path = viewed.mounted.snapshot("db@20261101T000000Z");
    let root = shown["root"].as_str().unwrap();
    let origin = shown["origin"].as_str().unwrap();
    let expected = [
        ("user.vmstore.group", "night 7"),
        ("user.vmstore.label.note", ""),
        ("user.vmstore.label.os", "debian12"),
        ("user.vmstore.origin", origin),
        ("user.vmstore.root", root),
        ("user.vmstore.snapshot", "db@20261101T000000Z"),
    ];
    for is_open in [false, true] {
        let _open = is_open.then(|| File::open(&path).unwrap());
        let mut names = vec![0; 1000];
        let bytes = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let mut names: Vec<_> =
            names[..bytes].split(|byte| *byte == 0).map(|name| std::str::from_utf8(name).unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names[1..], expected.map(|(name, _)| name), "each is ended by a zero");
        for (name, value) in expected {
            assert_eq!(xattr(&path, name, 200).unwrap(), value.as_bytes(), "{name}");
        }
        assert_eq!(errno(xattr(&path, "user.vmstore.group", 3)), libc::ERANGE);
        assert_eq!(xattr_bytes(&path, c"user.vmstore.group"), 7);
        assert_eq!(errno(xattr(&path, "user.vmstore.none", 200)), libc::ENODATA);
        assert_eq!(errno(xattr(&path, "user.other", 200)), libc::ENODATA);
        assert_eq!(errno(xattr(&path, "system.posix_acl_access", 200)), libc::EOPNOTSUPP);
    }
    let dir = viewed.mounted.path().join("snapshots");
    assert_eq!(rustix::fs::llistxattr(&dir, &mut [0_u8; 10][..]).unwrap(), 0);
    let zeros = viewed.site.path("zeros.raw");
    File::create(&zeros).unwrap().set_len(MIB).unwrap();
    let zeros = viewed.ingest(&zeros, "zeros", "20261101T000000Z");
    assert_eq!(xattr(&viewed.mounted.snapshot(&zeros), "user.vmstore.root", 200).unwrap(), b"zeros");
}

#[test]
fn a_directory_can_be_read_again_from_anywhere() {
    let viewed = Viewed::of(1, 1);
    let source = viewed.first().1;
    for second in 0..40 {
        viewed.ingest(&source, "many", &format!("20261101T0000{second:02}Z"));
    }
    let dir = viewed.mounted.path().join("snapshots/many");
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    // SAFETY: plain calls of the C library with a stream that stays open, each entry used before the next is read.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        assert!(!stream.is_null());
        let next = || {
            let entry = libc::readdir(stream);
            (!entry.is_null()).then(|| CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
        };
        for _ in 0..10 {
            next().unwrap();
        }
        let here = libc::telldir(stream);
        let rest: Vec<_> = std::iter::from_fn(next).collect();
        assert_eq!(rest.len(), 2 + 40 + 1 - 10);
        libc::seekdir(stream, here);
        assert_eq!(std::iter::from_fn(next).collect::<Vec<_>>(), rest);
        libc::rewinddir(stream);
        assert_eq!(std::iter::from_fn(next).count(), 43);
        libc::closedir(stream);
    }
}
