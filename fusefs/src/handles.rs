//! Open handles: disks, directories with the listing that is being read, and the status file.

use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::inodes::Inode;
use crate::namespace::DirectoryEntry;
use crate::open_disk::OpenDisk;

/// The object of a handle.
#[derive(Clone)]
pub(crate) enum Handle {
    /// A disk, and the inode that it was opened by.
    Disk(Arc<OpenDisk>, Arc<Inode>),
    /// A directory.
    Directory(Arc<Mutex<Vec<DirectoryEntry>>>),
    /// A file of text, as it was when it was opened.
    Text(Arc<[u8]>),
}

/// All handles.
#[derive(Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Handle>>,
}

impl Handles {
    /// Adds a handle.
    pub(crate) fn add(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(number, handle);
        number
    }

    /// The object of a handle.
    pub(crate) fn get(&self, number: u64) -> Option<Handle> {
        self.open.read().get(&number).cloned()
    }

    /// Removes a handle. The last one of a disk closes it before it can be opened again.
    pub(crate) fn remove(&self, number: u64) {
        let removed = self.open.write().remove(&number);
        if let Some(Handle::Disk(disk, inode)) = removed {
            let _opening = inode.lock_disk();
            drop(disk);
        }
    }

    /// The disks that are open, one for each handle.
    pub(crate) fn disks(&self) -> Vec<Arc<OpenDisk>> {
        let open = self.open.read();
        let disks = open.values().filter_map(|handle| match handle {
            Handle::Disk(disk, _) => Some(Arc::clone(disk)),
            _ => None,
        });
        disks.collect()
    }
}
