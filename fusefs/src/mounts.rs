//! The mounts of this machine, from `/proc/self/mountinfo`: asking a mount itself could block for ever.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chunkstore::{Error, Result};
use rustix::mount::UnmountFlags;

use crate::fusermount;
pub use crate::fusermount::Unmounted;

/// The type of a mounted view in `/proc/self/mountinfo`.
pub const TYPE: &str = "fuse.vmfs";
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// Symbolic links that a path may go through at its end.
const LINKS_MAX: usize = 16;

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its device number, as `0:53`.
    pub device: String,
    /// The kind of file system.
    pub kind: String,
    /// The source: a view's store.
    pub source: PathBuf,
}

impl Mount {
    /// Unmounts, unless it is in use.
    ///
    /// # Errors
    /// If that is not allowed, or fails.
    pub fn unmount(&self) -> Result<Unmounted> {
        // Another one may have taken its place.
        if !self.is_there()? {
            return Ok(Unmounted::Gone);
        }
        match rustix::mount::unmount(&self.mountpoint, UnmountFlags::NOFOLLOW) {
            // Also if it was unmounted meanwhile.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(Unmounted::Gone),
            Err(rustix::io::Errno::BUSY) => Ok(Unmounted::Busy),
            Err(rustix::io::Errno::PERM) => fusermount::unmount(&self.mountpoint, false),
            Err(error) => Err(Error::io("unmounting", &self.mountpoint, error.into())),
        }
    }

    /// Unmounts even while in use: pending requests fail, and the directory is free at once.
    ///
    /// # Errors
    /// If that is not allowed, or fails.
    pub fn force(&self) -> Result<()> {
        self.abort();
        if !self.is_there()? {
            return Ok(());
        }
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(&self.mountpoint, flags) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(rustix::io::Errno::PERM) => fusermount::unmount(&self.mountpoint, true).map(drop),
            Err(error) => Err(Error::io("unmounting", &self.mountpoint, error.into())),
        }
    }

    fn is_there(&self) -> Result<bool> {
        Ok(at(&self.mountpoint)?.is_some_and(|mount| mount.device == self.device))
    }

    /// Ends the connection to the process that serves it, which its user may do without being root.
    fn abort(&self) {
        let Some((_, minor)) = self.device.split_once(':') else { return };
        let path = format!("/sys/fs/fuse/connections/{minor}/abort");
        if let Err(error) = fs::write(&path, "1") {
            tracing::debug!("{path}: {error}");
        }
    }
}

/// All mounts, in the order in which they were made.
///
/// # Errors
/// If they can't be read.
pub fn all() -> Result<Vec<Mount>> {
    let text = fs::read(MOUNTINFO).map_err(|error| Error::io("reading", MOUNTINFO, error))?;
    Ok(read(&text))
}

/// The mounts that a text as in [`MOUNTINFO`] tells of.
pub(crate) fn read(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// The mounted views, in the order in which they were mounted.
///
/// # Errors
/// If the mounts can't be read.
pub fn views() -> Result<Vec<Mount>> {
    Ok(all()?.into_iter().filter(|mount| mount.kind == TYPE).collect())
}

/// The topmost mount on `path` itself.
///
/// # Errors
/// If the path or the mounts can't be read.
pub fn at(path: &Path) -> Result<Option<Mount>> {
    let path = locate(path)?;
    Ok(all()?.into_iter().rev().find(|mount| mount.mountpoint == path))
}

/// Where a path is, without asking what is mounted there.
///
/// # Errors
/// If its directory does not exist.
pub(crate) fn locate(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::io("finding", path, error);
    let mut path_now = std::path::absolute(path).map_err(failed)?;
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path_now.parent(), path_now.file_name()) else {
            // It ends in `..`, or is the root.
            return fs::canonicalize(&path_now).map_err(failed);
        };
        let parent = fs::canonicalize(parent).map_err(failed)?;
        let located = parent.join(name);
        match fs::read_link(&located) {
            Ok(target) => path_now = parent.join(target),
            Err(_) => return Ok(located),
        }
    }
    Err(Error::invalid(format!("{} leads through too many symbolic links", path.display())))
}

/// Fails if `path`, which is `what`, lies on a mounted view: serving one from what another shows would wait for itself.
///
/// # Errors
/// [`Error::Refused`].
pub fn refuse_on_view(path: &Path, what: &str) -> Result<()> {
    // A path that does not exist yet belongs to its first existing parent.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let Some(metadata) = absolute.ancestors().find_map(|path| fs::metadata(path).ok()) else { return Ok(()) };
    let device = format!("{}:{}", rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    match views()?.into_iter().find(|mount| mount.device == device) {
        Some(mount) => {
            let (path, mountpoint) = (path.display(), mount.mountpoint.display());
            Err(Error::refused(format!(
                "{what} {path} lies on the vmfs mount {mountpoint}, which could wait for itself"
            )))
        }
        None => Ok(()),
    }
}

/// A line: number, parent, device, root, mount point, options, further fields, `-`, type, source, options.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mountpoint = path(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(rest.next()?.to_vec()).ok()?;
    Some(Mount { mountpoint, device, kind, source: path(rest.next()?) })
}

/// A path, in which the kernel has written spaces and such as `\040`.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let octal = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = b"536 29 0:53 / /mnt/a\\040b\\134c rw,nosuid,nodev shared:7 master:2 - fuse.vmfs /srv/my\\040store rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(mount.source, Path::new("/srv/my store"));
        assert_eq!((&*mount.device, &*mount.kind), ("0:53", TYPE));
        let plain = parse(b"22 1 8:1 / / rw - ext4 /dev/sda1 rw").unwrap();
        assert_eq!((plain.mountpoint, &*plain.kind), (PathBuf::from("/"), "ext4"));
        for bad in ["", "1 2", "1 2 0:1 / /x rw shared:1", "1 2 0:1 / /x rw - "] {
            assert_eq!(
                parse(bad.as_bytes()).map(|mount| mount.source),
                None.or(parse(bad.as_bytes()).map(|_| PathBuf::new()))
            );
        }
        assert_eq!(path(b"\\0"), Path::new("\\0"), "no number");
    }

    #[test]
    fn paths_are_found_without_looking_into_them() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::create_dir(real.join("mnt")).unwrap();
        std::os::unix::fs::symlink("mnt", real.join("link")).unwrap();
        std::os::unix::fs::symlink("around", real.join("around")).unwrap();
        for name in ["mnt", "./mnt", "link", "mnt/", "mnt/../mnt"] {
            assert_eq!(locate(&dir.path().join(name)).unwrap(), real.join("mnt"), "{name}");
        }
        assert!(locate(&dir.path().join("around")).is_err());
        assert!(locate(&dir.path().join("none/mnt")).is_err());
        assert_eq!(locate(Path::new("/")).unwrap(), Path::new("/"));
    }
}
