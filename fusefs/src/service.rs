//! The operations of a mount: finds nodes, opens them, reads and writes disks.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use chunkstore::metrics::Metrics;
use chunkstore::{Error, Result};
use fuser::{Errno, FopenFlags};
use tokio::runtime::Handle as Runtime;
use tokio::sync::Semaphore;

use crate::attributes::Attributes;
use crate::buffers::Buffers;
use crate::counters::Counters;
use crate::handles::{Handle, Handles};
use crate::inodes::{Inode, Inodes, Node};
use crate::namespace::Namespace;
use crate::open_disk::OpenDisk;
use crate::reply;
use crate::status::Status;
use disks::chunk_cache::ChunkCache;
use disks::clone::{CloneDisk, Clones};
use disks::disk::Disk;
use disks::errno::{Of, errno};
use disks::names::Names;

/// Longest name that a file system usually has.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// A waiting request fails this long after the operation that it waits for should have failed itself.
const GRACE: Duration = Duration::from_secs(5);

/// Adds fields to the status file.
pub type MoreStatus = Box<dyn Fn() -> serde_json::Map<String, serde_json::Value> + Send + Sync>;

/// How often, and how soon, a clone that is in use is tried again.
const REOPEN_TRIES: u32 = 5;
const REOPEN_PAUSE: Duration = Duration::from_millis(2);

/// The parts of a mount.
pub struct Parts {
    /// Which snapshots there are.
    pub names: Arc<dyn Names>,
    /// The store's clones.
    pub clones: Arc<Clones>,
    /// Where disks get their chunks.
    pub cache: Arc<ChunkCache>,
    /// Drives waiting requests.
    pub runtime: Runtime,
    /// The store's directory.
    pub store: PathBuf,
    /// How long a read may wait for what can't be reached.
    pub read_timeout: Duration,
    /// Adds fields to the status file, such as the progress of background work.
    pub more_status: MoreStatus,
    /// Registry of its counters.
    pub metrics: Metrics,
}

/// A view that can be mounted.
#[derive(Clone)]
pub struct MountService(pub(crate) Arc<Shared>);

/// The state that all threads of a mount share.
pub(crate) struct Shared {
    pub(crate) namespace: Namespace,
    pub(crate) inodes: Inodes,
    pub(crate) handles: Handles,
    pub(crate) counters: Counters,
    pub(crate) buffers: Arc<Buffers>,
    /// Of the snapshots whose data is counted, one at a time.
    counting: Arc<Semaphore>,
    runtime: Runtime,
    read_timeout: Duration,
    more_status: MoreStatus,
}

/// The reply to an open.
pub(crate) struct OpenedFile {
    pub(crate) handle: u64,
    pub(crate) flags: FopenFlags,
}

impl MountService {
    /// Makes one.
    pub fn new(parts: Parts) -> Self {
        let Parts { names, clones, cache, runtime, store, read_timeout, more_status, metrics } = parts;
        let namespace = Namespace { names, clones, cache, store, started: SystemTime::now() };
        let (inodes, handles, buffers) = <(Inodes, Handles, Arc<Buffers>)>::default();
        let counters = Counters::registered(&metrics);
        let counting = Arc::new(Semaphore::new(1));
        Self(Arc::new(Shared {
            namespace,
            inodes,
            handles,
            counters,
            buffers,
            counting,
            runtime,
            read_timeout,
            more_status,
        }))
    }

    /// The content of the status file.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Makes what was written to clones durable: to those that are still open, or being closed, when the mount is gone.
    ///
    /// # Errors
    /// If one can't be synced; all are tried.
    pub fn sync(&self) -> Result<()> {
        let mut result = Ok(());
        for open in self.0.handles.disks() {
            if let Disk::Clone(clone) = &open.disk
                && let Err(error) = self.0.runtime.block_on(clone.sync())
            {
                tracing::error!("{}: {error}", open.name);
                result = Err(error);
            }
        }
        result
    }
}

impl Shared {
    /// The inode of a number that the kernel knows.
    pub(crate) fn inode(&self, number: u64) -> Result<Arc<Inode>, Errno> {
        self.inodes.get(number).ok_or(Errno::ESTALE)
    }

    /// Finds a name in a directory.
    pub(crate) fn look_up(&self, parent: u64, name: &OsStr) -> Result<Attributes, Errno> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let parent = self.inode(parent)?;
        let node = self.namespace.child(&parent.node, name).map_err(|error| self.failed(name, &error))?;
        let inode = self.inodes.told(node);
        self.count_later(&inode);
        self.namespace.attributes(&inode).map_err(|error| {
            self.inodes.forget(inode.number, 1);
            self.failed(name, &error)
        })
    }

    /// The attributes of a node.
    pub(crate) fn attributes(&self, number: u64) -> Result<Attributes, Errno> {
        let inode = self.inode(number)?;
        self.count_later(&inode);
        self.namespace.attributes(&inode).map_err(|error| self.failed(&inode.node, &error))
    }

    /// Opens a file.
    pub(crate) fn open(&self, number: u64, flags: i32) -> Result<OpenedFile, Errno> {
        let inode = self.inode(number)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let truncates = flags & libc::O_TRUNC != 0;
        match &*inode.node {
            Node::Clone(_) if truncates => Err(Errno::EPERM),
            Node::Snapshot(_) | Node::Status if writes || truncates => Err(Errno::EROFS),
            Node::Snapshot(_) | Node::Clone(_) => self.open_disk(&inode),
            Node::Status => {
                let text = serde_json::to_vec(&self.status()).expect("its keys are strings");
                let handle = self.handles.add(Handle::Text(text.into()));
                Ok(OpenedFile { handle, flags: FopenFlags::FOPEN_DIRECT_IO })
            }
            _ => Err(Errno::EIO),
        }
    }

    fn open_disk(&self, inode: &Arc<Inode>) -> Result<OpenedFile, Errno> {
        let mut open = inode.lock_disk();
        let (disk, was_open) = match open.upgrade() {
            Some(disk) => (disk, true),
            None => (Arc::new(self.open_anew(inode)?), false),
        };
        *open = Arc::downgrade(&disk);
        // A snapshot's pages are right for ever. A clone's are while it stays open here.
        let keeps = was_open || matches!(disk.disk, Disk::Snapshot(_));
        let flags = if keeps { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        Ok(OpenedFile { handle: self.handles.add(Handle::Disk(disk, Arc::clone(inode))), flags })
    }

    fn open_anew(&self, inode: &Inode) -> Result<OpenDisk, Errno> {
        let opened = match &*inode.node {
            Node::Snapshot(file) => self.namespace.open_snapshot(file),
            Node::Clone(name) => self.open_clone(name),
            node => Err(Error::invalid(format!("{node:?} is no disk"))),
        };
        opened.map_err(|error| match error {
            // Removed since it was looked up: the kernel looks again.
            Error::NotFound { .. } => Errno::ESTALE,
            error => self.failed(&inode.node, &error),
        })
    }

    /// Opens a clone. Retries while the last request to a just closed one still has it open.
    fn open_clone(&self, name: &str) -> Result<OpenDisk> {
        let mut tries = 0;
        loop {
            match self.namespace.open_clone(name) {
                Err(Error::Busy { .. }) if tries < REOPEN_TRIES => tries += 1,
                opened => return opened,
            }
            std::thread::sleep(REOPEN_PAUSE);
        }
    }

    /// The listing that a handle of a directory goes through; made anew when it starts at the beginning.
    pub(crate) fn open_directory(&self) -> u64 {
        self.handles.add(Handle::Directory(Arc::default()))
    }

    /// A disk that is open.
    pub(crate) fn disk(&self, handle: u64) -> Result<Arc<OpenDisk>, Errno> {
        match self.handles.get(handle) {
            Some(Handle::Disk(disk, _)) => Ok(disk),
            _ => Err(Errno::EBADF),
        }
    }

    /// A clone that is open.
    pub(crate) fn clone_disk(&self, handle: u64) -> Result<(Arc<OpenDisk>, Arc<CloneDisk>), Errno> {
        let open = self.disk(handle)?;
        match &open.disk {
            Disk::Clone(clone) => {
                let clone = Arc::clone(clone);
                Ok((open, clone))
            }
            Disk::Snapshot(_) => Err(Errno::EROFS),
        }
    }

    /// Does `work` on an open disk, and replies.
    pub(crate) fn work<T: Send + 'static>(
        self: &Arc<Self>,
        open: &Arc<OpenDisk>,
        task: Task,
        work: impl Future<Output = Result<T>> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let (shared, name) = (Arc::clone(self), open.name.clone());
        let limit = (task.verb != SYNC).then_some(self.read_timeout + GRACE);
        reply::answer(&self.runtime, limit, work, move |result| {
            reply(result.map_err(|error| shared.failed_task(&name, &task, &error)));
        });
    }

    fn failed_task(&self, name: &str, task: &Task, error: &Error) -> Errno {
        let errno = Errno::from_i32(errno(Of::Data, error).raw_os_error());
        let Range { start, end } = task.range;
        tracing::error!("{name}: {} bytes {start} to {end}: {error}", task.verb);
        self.counters.failed();
        errno
    }

    /// The errno of an error; an I/O error is logged.
    pub(crate) fn failed(&self, what: &(impl std::fmt::Debug + ?Sized), error: &Error) -> Errno {
        let errno = Errno::from_i32(errno(Of::Name, error).raw_os_error());
        if errno.code() == libc::EIO {
            tracing::error!("{what:?}: {error}");
            self.counters.failed();
        }
        errno
    }

    /// Counts a snapshot's data in the background, if the ingest did not. Not that of a partial snapshot: it would
    /// fetch the whole manifest.
    fn count_later(&self, inode: &Arc<Inode>) {
        let Node::Snapshot(file) = &*inode.node else { return };
        if file.is_partial || file.is_counted.swap(true, Ordering::Relaxed) {
            return;
        }
        let (inode, one_by_one) = (Arc::clone(inode), Arc::clone(&self.counting));
        let opening = self.namespace.open_snapshot(file);
        drop(self.runtime.spawn(async move {
            let _turn = one_by_one.acquire().await;
            if let (Node::Snapshot(file), Ok(open)) = (&*inode.node, opening) {
                match open.disk.data_bytes().await {
                    Ok(bytes) => drop(file.data_bytes.set(bytes)),
                    Err(error) => tracing::warn!("{}: counting its data: {error}", file.name),
                }
            }
        }));
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            store: self.namespace.store.display().to_string(),
            uptime_s: self.namespace.started.elapsed().unwrap_or_default().as_secs_f64(),
            open_files: self.handles.disks().len() as u64,
            requests: self.counters.snapshot(),
            more: (self.more_status)(),
        }
    }
}

/// An operation on a disk, for logs.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) verb: &'static str,
    pub(crate) range: Range<u64>,
}

/// A task without a timeout: after one, it would be unknown what is durable.
pub(crate) const SYNC: &str = "syncing";
