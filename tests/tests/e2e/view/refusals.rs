//! Operations that fail on the view's files, and their errors: for root, whom permissions do not stop, and for
//! another user.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};
use tests::images;
use tests::{Mounted, Site};

use super::{Viewed, errno};

/// Something done to a path.
pub(crate) type Attempt = fn(&Path) -> io::Result<()>;

/// Operations to try on a file.
pub(crate) const ON_FILES: &[(&str, Attempt)] = &[
    ("open for writing", |path| OpenOptions::new().write(true).open(path).map(drop)),
    ("open for both", |path| OpenOptions::new().read(true).write(true).open(path).map(drop)),
    ("open to append", |path| OpenOptions::new().append(true).open(path).map(drop)),
    ("open to truncate", |path| OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(path).map(drop)),
    ("create", |path| File::create(path).map(drop)),
    ("truncate", |path| truncate(path, 0)),
    ("grow", |path| truncate(path, 1 << 40)),
    ("chmod", |path| fs::set_permissions(path, Permissions::from_mode(0o666))),
    ("chown", |path| std::os::unix::fs::chown(path, Some(1), Some(1))),
    ("touch", |path| File::open(path)?.set_modified(SystemTime::now())),
    ("setxattr", |path| Ok(rustix::fs::setxattr(path, "user.x", b"1", XattrFlags::empty())?)),
    ("removexattr", |path| Ok(rustix::fs::removexattr(path, "user.vmstore.snapshot")?)),
    ("unlink", |path| fs::remove_file(path)),
    ("rename", |path| fs::rename(path, path.with_extension("moved"))),
    ("link", |path| fs::hard_link(path, path.with_extension("linked"))),
];

/// Operations to try in a directory.
pub(crate) const IN_DIRECTORIES: &[(&str, Attempt)] = &[
    ("create", |path| OpenOptions::new().write(true).create_new(true).open(path.join("new.raw")).map(drop)),
    ("mkdir", |path| fs::create_dir(path.join("new"))),
    ("symlink", |path| std::os::unix::fs::symlink("x", path.join("new"))),
    ("mknod", |path| Ok(rustix::fs::mknodat(CWD, path.join("new"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?)),
    ("chmod", |path| fs::set_permissions(path, Permissions::from_mode(0o777))),
];

fn truncate(path: &Path, bytes: i64) -> io::Result<()> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a plain call with a path that ends in a zero.
    if unsafe { libc::truncate(path.as_ptr(), bytes) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn snapshots_are_read_only_also_for_root() {
    let viewed = Viewed::of(2, 1);
    let (path, source) = viewed.first();
    for (what, attempt) in ON_FILES {
        assert_eq!(errno(attempt(&path)), libc::EROFS, "{what}");
    }
    for (what, attempt) in ON_FILES.iter().filter(|(what, _)| *what != "create" && *what != "link") {
        let status = viewed.mounted.path().join(".vmfs/status.json");
        assert_eq!(errno(attempt(&status)), libc::EROFS, "{what} of the status");
    }
    for dir in ["", "snapshots", "snapshots/web01", ".vmfs"] {
        for (what, attempt) in IN_DIRECTORIES {
            assert_eq!(errno(attempt(&viewed.mounted.path().join(dir))), libc::EROFS, "{what} in {dir:?}");
        }
    }
    images::assert_same(&path, &source);
}

#[test]
fn directories_stay_as_they_are() {
    let viewed = Viewed::of(1, 1);
    let root = viewed.mounted.path();
    for dir in ["snapshots", "clones", ".vmfs", "snapshots/web01"] {
        assert_eq!(errno(fs::remove_dir(root.join(dir))), libc::EROFS, "{dir}");
        assert_eq!(errno(fs::rename(root.join(dir), root.join("other"))), libc::EROFS, "{dir}");
        assert_eq!(errno(File::open(root.join(dir)).and_then(|dir| dir.set_len(0))), libc::EINVAL, "{dir}");
        assert_eq!(errno(OpenOptions::new().write(true).open(root.join(dir))), libc::EISDIR, "{dir}");
        File::open(root.join(dir)).unwrap().sync_all().unwrap();
    }
    let latest = root.join("snapshots/web01/latest.raw");
    assert_eq!(errno(fs::remove_file(&latest)), libc::EROFS);
    assert_eq!(errno(OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&latest)), libc::ELOOP);
    assert_eq!(errno(fs::read_link(viewed.first().0)), libc::EINVAL);
    for (what, attempt) in IN_DIRECTORIES.iter().filter(|(what, _)| *what != "chmod") {
        assert_eq!(errno(attempt(&root.join("clones"))), libc::EPERM, "{what} in clones");
    }
    rustix::fs::accessat(CWD, &latest, rustix::fs::Access::READ_OK, AtFlags::empty()).unwrap();
}

#[test]
fn writing_through_a_descriptor_for_reading() {
    let viewed = Viewed::of(1, 1);
    let file = File::open(viewed.first().0).unwrap();
    assert_eq!(errno(rustix::io::pwrite(&file, b"x", 0).map_err(io::Error::from)), libc::EBADF);
    assert_eq!(errno(file.set_len(0)), libc::EINVAL);
    // There is nothing to make durable.
    file.sync_all().unwrap();
    file.sync_data().unwrap();
}

/// The number of a user without rights.
const NOBODY: u32 = 65534;

/// Whether a shell command succeeds as another user.
fn succeeds_as_nobody(script: &str, path: &Path) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(path).uid(NOBODY).gid(NOBODY).current_dir("/");
    command.output().unwrap().status.success()
}

#[test]
fn other_users_are_let_in_only_when_that_was_asked_for() {
    let site = Site::new();
    fs::set_permissions(site.dir(), Permissions::from_mode(0o755)).unwrap();
    let vmstore = site.store("store");
    let (name, source) = site.nights(&vmstore, 1, 1).pop_first().unwrap();
    let closed = Mounted::start(&vmstore, site.path("closed"));
    let open = Mounted::with(&vmstore, site.path("open"), &["--allow-other"]);
    assert!(!succeeds_as_nobody("ls \"$1\"", closed.path()));
    assert!(succeeds_as_nobody("ls \"$1\"", open.path()));
    let path = open.snapshot(&name);
    assert!(succeeds_as_nobody("cat \"$1\" > /dev/null", &path));
    for refused in ["exec 3<> \"$1\"", "exec 3>> \"$1\"", "rm -f \"$1\"", "chmod 666 \"$1\"", "touch \"$1.new\""] {
        assert!(!succeeds_as_nobody(refused, &path), "{refused}");
    }
    images::assert_same(&path, &source);
}
