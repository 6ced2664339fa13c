//! A qcow2 image whose backing file is a snapshot in a mount: only the image's own clusters are read. The backing file
//! is not opened.
//!
//! The mount gives the root of a snapshot in an extended attribute of its file. It is only a claim: the caller compares
//! it with a snapshot of the store, and reads all other clusters from there.

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use imago::Mapping;
use rustix::io::Errno;

use super::chain::{Below, Chain};
use super::{Qcow2Source, RUN_BYTES_MAX};
use crate::catalog::SnapshotName;
use crate::error::{Error, Result};
use crate::format::NodeId;
use crate::source::{ChangedRanges, DiskSource};

/// The attribute with a snapshot's root id in hex, or [`NO_ROOT`].
const ROOT_ATTRIBUTE: &str = "user.vmstore.root";
/// The attribute with a snapshot's name.
const SNAPSHOT_ATTRIBUTE: &str = "user.vmstore.snapshot";
/// The value for an image of zeros, which has no root.
const NO_ROOT: &str = "zeros";
/// A limit above the length of either value.
const ATTRIBUTE_BYTES_MAX: usize = 1024;

/// A backing file's attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its path.
    pub path: String,
    /// The root of the manifest.
    pub root: Option<NodeId>,
    /// The snapshot it shows.
    pub snapshot: Option<SnapshotName>,
    /// Whether it could be opened as a file: it lies below the image's own directory or a given one.
    pub is_allowed: bool,
}

/// A qcow2 image's own clusters over a snapshot: written ones, and those set to zero.
pub struct Overlay {
    own: Qcow2Source,
    below: SnapshotFile,
}

impl Overlay {
    /// Opens an image if its backing file is one that shows a snapshot; `None` if it is not.
    pub(in crate::source) fn open(path: &Path, backing_dir: Option<&Path>, live: bool) -> Result<Option<Self>> {
        let Some((chain, below)) = Chain::open_top(path, backing_dir)? else { return Ok(None) };
        let Some(below) = read_attributes(&below)? else { return Ok(None) };
        Ok(Some(Self { own: Qcow2Source::of(chain, live)?, below }))
    }

    /// Its backing file's attributes.
    pub fn below(&self) -> &SnapshotFile {
        &self.below
    }

    /// The image's own clusters, with zeros elsewhere.
    pub(crate) fn own(&self) -> &dyn DiskSource {
        &self.own
    }
}

impl ChangedRanges for Overlay {
    fn next_changed(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.next_own(offset..self.own.size_bytes)
    }
}

impl Overlay {
    /// The first range of own clusters within these bounds; it may reach past them.
    pub(crate) fn next_own(&self, bounds: Range<u64>) -> Result<Option<Range<u64>>> {
        self.own.bound_caches()?;
        let _in_use = self.own.in_use.read();
        let mut at = bounds.start;
        let mut found: Option<Range<u64>> = None;
        while at < bounds.end {
            let (mapping, bytes) = self.own.mapping(at, self.own.size_bytes - at)?;
            let is_own = !matches!(mapping, Mapping::Zero { explicit: false, .. });
            let end = at + bytes;
            match &mut found {
                Some(run) if is_own => run.end = end,
                None if is_own => found = Some(at..end),
                Some(_) => break,
                None => {}
            }
            if found.as_ref().is_some_and(|run| run.end - run.start >= RUN_BYTES_MAX) {
                break;
            }
            at = end;
        }
        Ok(found)
    }
}

/// A backing file's attributes; `None` if it is no snapshot's file, or they can't be read.
fn read_attributes(below: &Below) -> Result<Option<SnapshotFile>> {
    let Some(root) = attribute(&below.path, ROOT_ATTRIBUTE)? else { return Ok(None) };
    let root = if root == NO_ROOT { None } else { Some(parse(&below.path, &root)?) };
    let snapshot = attribute(&below.path, SNAPSHOT_ATTRIBUTE)?.map(|name| parse(&below.path, &name)).transpose()?;
    let path = below.path.display().to_string();
    Ok(Some(SnapshotFile { path, root, snapshot, is_allowed: below.is_allowed }))
}

fn parse<T: FromStr>(path: &Path, value: &str) -> Result<T> {
    value.parse().map_err(|_| Error::invalid(format!("{} has attributes that are no mount's", path.display())))
}

fn attribute(path: &Path, name: &str) -> Result<Option<String>> {
    let mut value = [0; ATTRIBUTE_BYTES_MAX];
    match rustix::fs::getxattr(path, name, &mut value) {
        Ok(bytes) => Ok(std::str::from_utf8(&value[..bytes]).ok().map(str::to_owned)),
        // An error of the path is reported when it is opened as a file.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::RANGE) => Ok(None),
        Err(error) => Err(Error::io("examining", path, error.into())),
    }
}
