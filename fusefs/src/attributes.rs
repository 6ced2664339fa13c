//! Attributes of nodes, for `stat` and `getxattr`.

use std::time::{Duration, SystemTime};

use chunkstore::catalog::{ImageName, Snapshot, SnapshotTime};
use chunkstore::{Error, Result};
use fuser::{FileAttr, FileType, INodeNo};

use crate::inodes::{Inode, Node, SnapshotFile};
use crate::namespace::{Namespace, target};

/// Time to live of what does not change.
const LONG: Duration = Duration::from_hours(1);
/// How long the kernel may show what has changed since.
pub(crate) const SHORT: Duration = Duration::from_secs(1);
/// Block size of `stat`.
const BLOCK_BYTES: u64 = 512;
/// Preferred size of reads.
const PREFERRED_BYTES: u32 = 64 << 10;
const XATTR_PREFIX: &str = "user.vmstore.";

/// Attributes, and how long the kernel may keep them.
pub(crate) struct Attributes {
    pub(crate) attr: FileAttr,
    pub(crate) attr_ttl: Duration,
    pub(crate) entry_ttl: Duration,
}

/// Attributes that differ between nodes.
struct Shape {
    kind: FileType,
    perm: u16,
    bytes: u64,
    data_bytes: u64,
    links: u32,
    mtime: SystemTime,
    attr_ttl: Duration,
    entry_ttl: Duration,
}

impl Namespace {
    /// The attributes of a node.
    ///
    /// # Errors
    /// If the node is gone, or what it shows can't be read.
    pub(crate) fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        let shape = self.shape(inode)?;
        let attr = FileAttr {
            ino: INodeNo(inode.number),
            size: shape.bytes,
            blocks: shape.data_bytes.div_ceil(BLOCK_BYTES),
            atime: shape.mtime,
            mtime: shape.mtime,
            ctime: shape.mtime,
            crtime: shape.mtime,
            kind: shape.kind,
            perm: shape.perm,
            nlink: shape.links,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: PREFERRED_BYTES,
            flags: 0,
        };
        Ok(Attributes { attr, attr_ttl: shape.attr_ttl, entry_ttl: shape.entry_ttl })
    }

    fn shape(&self, inode: &Inode) -> Result<Shape> {
        match &*inode.node {
            Node::Root => Ok(directory(2, self.started)),
            Node::Snapshots => self.snapshots_shape(),
            Node::Clones | Node::Hidden => Ok(directory(0, self.started)),
            Node::Image(image) => Ok(directory(0, self.newest_time(image)?)),
            Node::Latest(image) => self.latest_shape(image),
            Node::Snapshot(file) => Ok(snapshot_shape(file)),
            Node::Unreadable(name) => Ok(Shape { perm: 0, ..file(0, 0, time(name.time), Duration::ZERO) }),
            Node::Clone(name) => self.clone_shape(inode, name),
            Node::Status => Ok(Shape { perm: 0o444, ..file(0, 0, SystemTime::now(), Duration::ZERO) }),
        }
    }

    fn snapshots_shape(&self) -> Result<Shape> {
        let images = self.names.images()?;
        let newest = images.iter().filter_map(|image| self.newest(image).ok().flatten()).map(|name| name.time).max();
        Ok(directory(images.len() as u32, newest.map_or(self.started, time)))
    }

    fn newest_time(&self, image: &ImageName) -> Result<SystemTime> {
        let newest = self.newest(image)?.ok_or_else(|| Error::not_found(format!("image {image}")))?;
        Ok(time(newest.time))
    }

    fn latest_shape(&self, image: &ImageName) -> Result<Shape> {
        let newest = self.newest(image)?.ok_or_else(|| Error::not_found(format!("image {image}")))?;
        let kind = FileType::Symlink;
        let bytes = target(&newest).len() as u64;
        Ok(Shape { kind, perm: 0o777, entry_ttl: Duration::ZERO, ..file(bytes, 0, time(newest.time), Duration::ZERO) })
    }

    fn clone_shape(&self, inode: &Inode, name: &str) -> Result<Shape> {
        let info = self.clones.info(name)?;
        let open = inode.lock_disk().upgrade();
        let bytes = open.map_or(info.size_bytes, |open| open.disk.size_bytes());
        // Exactly would need the whole manifest. What was written may lie where the snapshot has data, too.
        let below = self.names.read(&info.snapshot).ok().and_then(|snapshot| snapshot.state.ingest);
        let data_bytes = below.map_or(bytes, |report| (report.data_bytes + info.written_bytes).min(bytes));
        let shape = file(bytes, data_bytes, info.modified, Duration::ZERO);
        Ok(Shape { perm: 0o644, entry_ttl: Duration::ZERO, ..shape })
    }

    /// The names and values of a snapshot's extended attributes; none of any other node.
    ///
    /// # Errors
    /// If the snapshot is gone and not open.
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<Vec<(String, String)>> {
        let Node::Snapshot(file) = &*inode.node else { return Ok(Vec::new()) };
        let open = inode.lock_disk().upgrade();
        if let Some(opened) = open.as_ref().and_then(|open| open.opened.as_ref()) {
            return Ok(xattrs_of(&opened.snapshot));
        }
        let snapshot = self.names.read(&file.name)?;
        if snapshot.entry_id() != file.entry_id {
            return Err(Error::not_found(format!("the snapshot that {} was", file.name)));
        }
        Ok(xattrs_of(&snapshot))
    }
}

fn directory(subdirectories: u32, mtime: SystemTime) -> Shape {
    let file = file(0, 0, mtime, SHORT);
    Shape { kind: FileType::Directory, perm: 0o555, links: 2 + subdirectories, ..file }
}

fn file(bytes: u64, data_bytes: u64, mtime: SystemTime, attr_ttl: Duration) -> Shape {
    let kind = FileType::RegularFile;
    Shape { kind, perm: 0o444, bytes, data_bytes, links: 1, mtime, attr_ttl, entry_ttl: SHORT }
}

fn snapshot_shape(snapshot: &SnapshotFile) -> Shape {
    let counted = snapshot.data_bytes.get();
    let attr_ttl = if counted.is_some() { LONG } else { SHORT };
    let data_bytes = counted.copied().unwrap_or(snapshot.size_bytes);
    file(snapshot.size_bytes, data_bytes, time(snapshot.name.time), attr_ttl)
}

fn time(time: SnapshotTime) -> SystemTime {
    SystemTime::from(time.timestamp())
}

fn xattrs_of(snapshot: &Snapshot) -> Vec<(String, String)> {
    let entry = snapshot.entry();
    let root = entry.root.map_or_else(|| "zeros".to_owned(), |root| root.to_string());
    let mut xattrs = vec![("snapshot".to_owned(), snapshot.name().to_string()), ("root".to_owned(), root)];
    xattrs.extend(entry.labels.iter().map(|(key, value)| (format!("label.{key}"), value.clone())));
    xattrs.extend(entry.group.iter().map(|group| ("group".to_owned(), group.clone())));
    xattrs.push(("origin".to_owned(), entry.origin.clone()));
    xattrs.extend(snapshot.state.partial.then(|| ("partial".to_owned(), "true".to_owned())));
    xattrs.into_iter().map(|(name, value)| (format!("{XATTR_PREFIX}{name}"), value)).collect()
}
