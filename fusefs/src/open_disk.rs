//! A disk that is open: what an inode, its handles and its requests share.

use disks::disk::Disk;
use disks::names::Opened;

/// A disk that is open, once for all its handles. Its snapshot is leased until the last of them and the last request
/// are gone.
pub(crate) struct OpenDisk {
    /// Its name in logs.
    pub(crate) name: String,
    pub(crate) disk: Disk,
    /// A snapshot with its lease; a clone keeps its own.
    pub(crate) opened: Option<Opened>,
}

impl std::fmt::Debug for OpenDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenDisk").field("name", &self.name).finish_non_exhaustive()
    }
}
