//! The inodes that the kernel knows.
//!
//! A number means one thing for as long as the mount lives: numbers are counted up and never given out twice. A
//! snapshot that was removed and made anew under the same name is another file, because its entry has another id.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};

use chunkstore::catalog::{ImageName, Snapshot, SnapshotName};
use chunkstore::format::EntryId;
use parking_lot::{Mutex, MutexGuard};

use crate::open_disk::OpenDisk;

/// The number of the view's root, fixed by the protocol.
pub(crate) const ROOT: u64 = 1;
/// Numbers below are those of what is always there.
const FIRST: u64 = 16;

/// A file or directory of the mount.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// The mount's root.
    Root,
    /// `snapshots/`.
    Snapshots,
    /// `clones/`.
    Clones,
    /// `.vmfs/`, which is not listed.
    Hidden,
    /// `.vmfs/status.json`.
    Status,
    /// `snapshots/IMAGE/`.
    Image(ImageName),
    /// `snapshots/IMAGE/latest.raw`.
    Latest(ImageName),
    /// `snapshots/IMAGE/TIME.raw`.
    Snapshot(SnapshotFile),
    /// A snapshot whose catalog entry can't be read: it is listed, and that is all.
    Unreadable(SnapshotName),
    /// `clones/NAME.raw`.
    Clone(String),
}

/// A snapshot's attributes, known without opening it.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    pub(crate) name: SnapshotName,
    pub(crate) entry_id: EntryId,
    pub(crate) size_bytes: u64,
    pub(crate) is_partial: bool,
    /// Bytes that are not holes, once they were counted.
    pub(crate) data_bytes: OnceLock<u64>,
    /// Whether they are counted or being counted.
    pub(crate) is_counted: AtomicBool,
}

impl SnapshotFile {
    /// The file of a snapshot.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let counted = snapshot.state.ingest.as_ref().map(|report| report.data_bytes);
        Self {
            name: snapshot.name(),
            entry_id: snapshot.entry_id(),
            size_bytes: snapshot.entry().virtual_bytes,
            is_partial: snapshot.state.partial,
            data_bytes: counted.map_or_else(OnceLock::new, OnceLock::from),
            is_counted: AtomicBool::new(counted.is_some()),
        }
    }
}

impl PartialEq for SnapshotFile {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.entry_id) == (&other.name, other.entry_id)
    }
}

impl Eq for SnapshotFile {}

impl Hash for SnapshotFile {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, self.entry_id).hash(state);
    }
}

/// A node with its number.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) number: u64,
    pub(crate) node: Arc<Node>,
    /// Its disk while it is open. Locked while it is opened and while it may be closed.
    disk: Mutex<Weak<OpenDisk>>,
}

impl Inode {
    fn new(number: u64, node: Arc<Node>) -> Arc<Self> {
        Arc::new(Self { number, node, disk: Mutex::default() })
    }

    /// Its disk, to open or to close.
    pub(crate) fn lock_disk(&self) -> MutexGuard<'_, Weak<OpenDisk>> {
        self.disk.lock()
    }
}

/// All inodes that the kernel knows.
pub(crate) struct Inodes(Mutex<Known>);

struct Known {
    next: u64,
    by_number: HashMap<u64, Counted>,
    by_node: HashMap<Arc<Node>, u64>,
}

/// An inode and its look-ups.
struct Counted {
    inode: Arc<Inode>,
    lookups: u64,
}

impl Default for Inodes {
    fn default() -> Self {
        let mut known = Known { next: ROOT, by_number: HashMap::new(), by_node: HashMap::new() };
        for node in [Node::Root, Node::Snapshots, Node::Clones, Node::Hidden, Node::Status] {
            known.add(Arc::new(node));
        }
        known.next = FIRST;
        Self(Mutex::new(known))
    }
}

impl Inodes {
    /// The inode of this number, if the kernel may ask for it.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Inode>> {
        self.lock().by_number.get(&number).map(|counted| Arc::clone(&counted.inode))
    }

    /// The inode of a node, for a reply: counts a look-up.
    pub(crate) fn told(&self, node: Node) -> Arc<Inode> {
        let mut known = self.lock();
        let number = known.by_node.get(&node).copied().unwrap_or_else(|| known.add(Arc::new(node)));
        let counted = known.by_number.get_mut(&number).expect("both maps hold the same inodes");
        counted.lookups += 1;
        Arc::clone(&counted.inode)
    }

    /// The kernel has dropped so many look-ups.
    pub(crate) fn forget(&self, number: u64, times: u64) {
        let mut known = self.lock();
        let Some(counted) = known.by_number.get_mut(&number) else { return };
        counted.lookups = counted.lookups.saturating_sub(times);
        if counted.lookups == 0 && number >= FIRST {
            let node = Arc::clone(&counted.inode.node);
            known.by_node.remove(&node);
            known.by_number.remove(&number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock()
    }
}

impl Known {
    fn add(&mut self, node: Arc<Node>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_node.insert(Arc::clone(&node), number);
        self.by_number.insert(number, Counted { inode: Inode::new(number, node), lookups: 0 });
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Node {
        Node::Image(name.parse().unwrap())
    }

    fn snapshot(entry: &str) -> Node {
        Node::Snapshot(SnapshotFile {
            name: "web01@20261120T020000Z".parse().unwrap(),
            entry_id: EntryId::of(entry.as_bytes()),
            size_bytes: 1,
            is_partial: false,
            data_bytes: OnceLock::new(),
            is_counted: AtomicBool::new(false),
        })
    }

    #[test]
    fn a_node_keeps_its_number_while_the_kernel_knows_it_and_numbers_are_not_given_out_twice() {
        let inodes = Inodes::default();
        let first = inodes.told(image("a"));
        assert_eq!(inodes.told(image("a")).number, first.number);
        let second = inodes.told(image("b"));
        assert_ne!(first.number, second.number);
        inodes.forget(first.number, 1);
        assert!(inodes.get(first.number).is_some());
        inodes.forget(first.number, 1);
        assert!(inodes.get(first.number).is_none());
        let again = inodes.told(image("a"));
        assert!(again.number > second.number, "a new number");
        inodes.forget(999, 1);
    }

    #[test]
    fn a_snapshot_made_anew_is_another_file() {
        let inodes = Inodes::default();
        let old = inodes.told(snapshot("old")).number;
        assert_ne!(old, inodes.told(snapshot("new")).number);
        assert_eq!(old, inodes.told(snapshot("old")).number);
    }

    #[test]
    fn what_is_always_there_is_not_forgotten() {
        let inodes = Inodes::default();
        assert_eq!(*inodes.get(ROOT).unwrap().node, Node::Root);
        let status = inodes.told(Node::Status).number;
        inodes.forget(status, 1);
        inodes.forget(ROOT, 1);
        assert!(inodes.get(status).is_some() && inodes.get(ROOT).is_some());
        assert!(inodes.told(image("a")).number >= FIRST);
    }
}
