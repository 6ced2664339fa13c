//! The kernel's requests that take more than one step.

use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;

use chunkstore::Result;
use fuser::{Errno, Generation, INodeNo, ReplyAttr, ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyLseek, ReplyWrite};

use crate::attributes::SHORT;
use crate::handles::Handle;
use crate::inodes::Node;
use crate::namespace::{DirectoryEntry, target};
use crate::service::{SYNC, Shared, Task};
use disks::disk::Disk;

impl Shared {
    /// Where a symbolic link leads.
    pub(crate) fn link_target(&self, number: u64) -> Result<String, Errno> {
        let inode = self.inode(number)?;
        let Node::Latest(image) = &*inode.node else { return Err(Errno::EINVAL) };
        let newest = self.namespace.newest(image).map_err(|error| self.failed(&inode.node, &error))?;
        newest.map(|name| target(&name)).ok_or(Errno::ENOENT)
    }

    /// The error of an attempt to change a node's name, owner, mode, times or attributes.
    pub(crate) fn unchangeable(&self, number: u64) -> Errno {
        match self.inode(number).map(|inode| Arc::clone(&inode.node)).as_deref() {
            Ok(Node::Clones | Node::Clone(_)) => Errno::EPERM,
            Ok(_) => Errno::EROFS,
            Err(errno) => *errno,
        }
    }

    /// Reads from an open file.
    pub(crate) fn read(self: &Arc<Self>, handle: u64, offset: u64, size: u32, reply: ReplyData) {
        let open = match self.handles.get(handle) {
            Some(Handle::Disk(open, _)) => open,
            Some(Handle::Text(text)) => return reply.data(part(&text, offset, size)),
            _ => return reply.error(Errno::EBADF),
        };
        let end = open.disk.size_bytes().min(offset.saturating_add(u64::from(size)));
        let range = offset.min(end)..end;
        if range.is_empty() {
            return reply.data(&[]);
        }
        self.counters.read(end - offset);
        let disk = open.disk.clone();
        let mut buf = self.buffers.take((range.end - range.start) as usize);
        let work = async move {
            disk.read(&mut buf, offset).await?;
            Ok(buf)
        };
        self.work(&open, Task { verb: "reading", range }, work, move |read| match read {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    /// Writes to a clone.
    pub(crate) fn write(self: &Arc<Self>, handle: u64, offset: u64, data: &[u8], reply: ReplyWrite) {
        let (open, clone) = match self.clone_disk(handle) {
            Ok(open) => open,
            Err(errno) => return reply.error(errno),
        };
        let Some(end) = offset.checked_add(data.len() as u64) else { return reply.error(Errno::EFBIG) };
        self.counters.written(data.len() as u64);
        let data = data.to_vec();
        let work = async move {
            clone.write(&data, offset).await?;
            Ok(data.len() as u32)
        };
        self.work(&open, Task { verb: "writing", range: offset..end }, work, move |written| match written {
            Ok(bytes) => reply.written(bytes),
            Err(errno) => reply.error(errno),
        });
    }

    /// Makes what was written to a clone durable.
    pub(crate) fn sync_disk(self: &Arc<Self>, handle: u64, reply: ReplyEmpty) {
        match self.clone_disk(handle) {
            Ok((open, clone)) => {
                let range = 0..clone.size_bytes();
                self.work(&open, Task { verb: SYNC, range }, async move { clone.sync().await }, done(reply));
            }
            Err(Errno::EROFS) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// Closes a handle. A clone is synced before its disk is dropped, because part of its map is only in memory until
    /// then and the next open must see it. Meanwhile, an open gets the same disk.
    pub(crate) fn close(self: &Arc<Self>, handle: u64, then: impl FnOnce() + Send + 'static) {
        let Ok((open, clone)) = self.clone_disk(handle) else {
            self.handles.remove(handle);
            return then();
        };
        let (shared, range) = (Arc::clone(self), 0..clone.size_bytes());
        self.work(&open, Task { verb: SYNC, range }, async move { clone.sync().await }, move |_| {
            // A failure was logged; no caller waits for it.
            shared.handles.remove(handle);
            then();
        });
    }

    /// Punches a hole into a clone, or makes a range of it zeros.
    pub(crate) fn allocate(self: &Arc<Self>, handle: u64, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let (open, clone) = match self.clone_disk(handle) {
            Ok(open) => open,
            Err(errno) => return reply.error(errno),
        };
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE if keeps_size => {}
            libc::FALLOC_FL_ZERO_RANGE => {}
            // Space is taken when data is written; none can be reserved before.
            _ => return reply.error(Errno::EOPNOTSUPP),
        }
        let work = async move {
            if !keeps_size && end > clone.size_bytes() {
                clone.set_size(end).await?;
            }
            let end = end.min(clone.size_bytes());
            if offset < end { clone.discard(offset..end).await } else { Ok(()) }
        };
        self.work(&open, Task { verb: "discarding", range: offset..end }, work, done(reply));
    }

    /// Changes a clone's size.
    pub(crate) fn set_size(self: &Arc<Self>, number: u64, bytes: u64, reply: ReplyAttr) {
        let opened = self.inode(number).and_then(|inode| match &*inode.node {
            // Also by name alone, without a handle.
            Node::Clone(_) => self.open(number, libc::O_RDWR),
            _ => Err(self.unchangeable(number)),
        });
        let handle = match opened {
            Ok(opened) => opened.handle,
            Err(errno) => return reply.error(errno),
        };
        let (open, clone) = self.clone_disk(handle).expect("it was just opened");
        let shared = Arc::clone(self);
        let work = async move { clone.set_size(bytes).await };
        self.work(&open, Task { verb: "resizing", range: 0..bytes }, work, move |resized| {
            let attributes = resized.and_then(|()| shared.attributes(number));
            shared.close(handle, move || match attributes {
                Ok(attributes) => reply.attr(&attributes.attr_ttl, &attributes.attr),
                Err(errno) => reply.error(errno),
            });
        });
    }

    /// Finds data or a hole.
    pub(crate) fn seek(self: &Arc<Self>, handle: u64, offset: i64, whence: i32, reply: ReplyLseek) {
        let open = match self.disk(handle) {
            Ok(open) => open,
            Err(errno) => return reply.error(errno),
        };
        let size = open.disk.size_bytes();
        let Some(offset) = u64::try_from(offset).ok().filter(|offset| *offset < size) else {
            return reply.error(Errno::ENXIO);
        };
        let disk = open.disk.clone();
        let work = async move {
            match whence {
                libc::SEEK_DATA => Ok(disk.next_data(offset).await?.map(|data| data.start)),
                _ => next_hole(&disk, offset).await.map(|hole| Some(hole.min(size))),
            }
        };
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return reply.error(Errno::EINVAL);
        }
        self.work(&open, Task { verb: "seeking in", range: offset..size }, work, move |found| match found {
            Ok(Some(found)) if found < size || whence == libc::SEEK_HOLE => reply.offset(found as i64),
            Ok(_) => reply.error(Errno::ENXIO),
            Err(errno) => reply.error(errno),
        });
    }

    /// Goes on with a directory's listing.
    pub(crate) fn read_directory(&self, number: u64, handle: u64, offset: u64, mut reply: ReplyDirectoryPlus) {
        let inode = match self.inode(number) {
            Ok(inode) => inode,
            Err(errno) => return reply.error(errno),
        };
        let Some(Handle::Directory(listing)) = self.handles.get(handle) else { return reply.error(Errno::EBADF) };
        let mut listing = listing.lock();
        if offset == 0 {
            match self.namespace.list(&inode.node) {
                Ok(listed) => *listing = listed,
                Err(error) => return reply.error(self.failed(&inode.node, &error)),
            }
        }
        self.fill(&inode, offset, &listing, &mut reply);
        reply.ok();
    }

    /// Adds what has room. `.` and `..` come first; an entry's offset is where to go on after it.
    fn fill(
        &self,
        inode: &crate::inodes::Inode,
        offset: u64,
        listing: &[DirectoryEntry],
        reply: &mut ReplyDirectoryPlus,
    ) {
        for (at, name) in [".", ".."].into_iter().enumerate().skip(offset as usize) {
            // The kernel keeps no look-ups for these two.
            let Ok(own) = self.namespace.attributes(inode) else { return };
            if reply.add(INodeNo(inode.number), at as u64 + 1, name, &SHORT, &own.attr, Generation(0)) {
                return;
            }
        }
        for (at, listed) in listing.iter().enumerate().skip((offset as usize).saturating_sub(2)) {
            if self.add(listed, at as u64 + 3, reply) == Added::Full {
                return;
            }
        }
    }

    fn add(&self, listed: &DirectoryEntry, next: u64, reply: &mut ReplyDirectoryPlus) -> Added {
        let Some(node) = self.namespace.resolve(listed) else { return Added::Skipped };
        let child = self.inodes.told(node);
        let full = self.namespace.attributes(&child).map(|attributes| {
            let ttl = attributes.entry_ttl.min(attributes.attr_ttl);
            reply.add(INodeNo(child.number), next, &listed.name, &ttl, &attributes.attr, Generation(0))
        });
        match full {
            Ok(false) => return Added::Listed,
            Ok(true) | Err(_) => self.inodes.forget(child.number, 1),
        }
        if full.is_ok() { Added::Full } else { Added::Skipped }
    }

    /// An extended attribute's value.
    pub(crate) fn xattr(&self, number: u64, name: &OsStr) -> Result<String, Errno> {
        let Some(name) = name.to_str().filter(|name| name.starts_with("user.")) else {
            // The kernel asks for capabilities; programs need not ask for the rest again.
            let is_asked_again = name.to_str().is_some_and(|name| name.starts_with("security."));
            return Err(if is_asked_again { Errno::ENODATA } else { Errno::EOPNOTSUPP });
        };
        let inode = self.inode(number)?;
        let xattrs = self.namespace.xattrs(&inode).map_err(|error| self.failed(&inode.node, &error))?;
        xattrs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value).ok_or(Errno::ENODATA)
    }

    /// The names of all extended attributes, each ended by a zero byte.
    pub(crate) fn xattr_names(&self, number: u64) -> Result<Vec<u8>, Errno> {
        let inode = self.inode(number)?;
        let xattrs = self.namespace.xattrs(&inode).map_err(|error| self.failed(&inode.node, &error))?;
        Ok(xattrs.into_iter().flat_map(|(name, _)| name.into_bytes().into_iter().chain([0])).collect())
    }
}

/// Result of adding an entry to a reply.
#[derive(PartialEq, Eq)]
enum Added {
    Listed,
    /// It has gone.
    Skipped,
    /// It has no room.
    Full,
}

fn done(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send + 'static {
    move |done| match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn part(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    &text[start..text.len().min(start.saturating_add(size as usize))]
}

/// Where the data that covers `offset` ends; `offset` itself if it is in a hole.
async fn next_hole(disk: &Disk, offset: u64) -> Result<u64> {
    let mut hole = offset;
    while let Some(Range { start, end }) = disk.next_data(hole).await? {
        if start > hole {
            break;
        }
        hole = end;
    }
    Ok(hole)
}
