//! The order in which a guest first touched the parts of a snapshot: what to fetch first when it is booted again.
//!
//! `boot/ENTRY_ID.order` is a small text file: byte ranges of the image, in order, and a checksum of all before it
//! (FORMAT.md, "Boot orders"). It is only a hint. It can be replaced, and goes with its snapshot.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use crate::catalog::name::SnapshotName;
use crate::catalog::{Catalog, Snapshot};
use crate::error::{Error, Result};
use crate::format::EntryId;
use crate::format::limits::IMAGE_BYTES_MAX;
use crate::storage::{Storage, whole};

/// Directory of the orders in a store.
pub const DIR: &str = "boot";
/// Most ranges of an order.
pub const RANGES_MAX: usize = 32 << 10;
/// Largest file: two numbers of up to 19 digits a line. It travels in one frame.
pub(crate) const FILE_BYTES_MAX: u64 = 3 << 19;
const SUFFIX: &str = ".order";
const HEAD: &str = "vmstore-boot-order 1\n";

/// Byte ranges of an image, in the order in which they were first read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootOrder {
    ranges: Vec<Range<u64>>,
}

impl BootOrder {
    /// An order of these ranges; neighbours are merged, and ranges beyond the limit are left out.
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut order = Self::default();
        for range in ranges.into_iter().filter(|range| range.start < range.end && range.end <= IMAGE_BYTES_MAX) {
            match order.ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => order.ranges.push(range),
            }
        }
        order.ranges.truncate(RANGES_MAX);
        order
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let lines = self.ranges.iter().map(|range| format!("{} {}\n", range.start, range.end - range.start));
        let body = format!("{HEAD}{}", lines.collect::<String>());
        format!("{body}{}", trailer(&body)).into_bytes()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is malformed, or breaks a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::invalid("a boot order is over the limit"));
        }
        Self::parse(bytes).ok_or_else(|| Error::invalid("no boot order, or its checksum does not match"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let body_end = text.strip_suffix('\n')?.rfind('\n')? + 1;
        let (body, last) = text.split_at(body_end);
        (last == trailer(body)).then_some(())?;
        let mut ranges = Vec::new();
        for line in body.strip_prefix(HEAD)?.lines() {
            let (start, bytes) = line.split_once(' ')?;
            let start: u64 = start.parse().ok()?;
            let end = start.checked_add(bytes.parse().ok()?)?;
            (start < end && end <= IMAGE_BYTES_MAX && ranges.len() < RANGES_MAX).then(|| ranges.push(start..end))?;
        }
        Some(Self { ranges })
    }
}

fn trailer(body: &str) -> String {
    format!("blake3 {}\n", blake3::hash(body.as_bytes()).to_hex())
}

fn path(entry: EntryId) -> String {
    format!("{DIR}/{entry}{SUFFIX}")
}

/// The order that was recorded of a snapshot.
///
/// # Errors
/// If it can't be read. A damaged order counts as none.
pub fn read(storage: &dyn Storage, entry: EntryId) -> Result<Option<BootOrder>> {
    let file = match whole::read_whole(storage, &path(entry), FILE_BYTES_MAX) {
        Err(Error::Damaged { .. }) => None,
        file => file?,
    };
    Ok(file.and_then(|bytes| {
        let decoded = BootOrder::decode(&bytes);
        decoded.inspect_err(|error| tracing::warn!("{}: {error}", path(entry))).ok()
    }))
}

/// The order that was recorded of a snapshot or, if there is none, that of the newest snapshot of its image that has
/// one: the snapshots of an image have much the same layout.
///
/// # Errors
/// If a directory or an order can't be read.
pub fn nearest(storage: &dyn Storage, catalog: &Catalog, snapshot: &Snapshot) -> Result<Option<BootOrder>> {
    if let Some(order) = read(storage, snapshot.entry_id())? {
        return Ok(Some(order));
    }
    let image = &snapshot.entry().image;
    for time in catalog.times(image)?.into_iter().rev() {
        let Ok(other) = catalog.read(&SnapshotName::new(image.clone(), time)) else { continue };
        if let Some(order) = read(storage, other.entry_id())? {
            return Ok(Some(order));
        }
    }
    Ok(None)
}

/// Keeps the order of a snapshot durably, in place of an earlier one. For the store's owner.
///
/// # Errors
/// [`Error::NotFound`] if there is no such snapshot.
pub(crate) fn write(storage: &dyn Storage, catalog: &Catalog, name: &SnapshotName, order: &BootOrder) -> Result<()> {
    let snapshot = catalog.read(name)?;
    storage.create_dir(DIR).map_err(|error| Error::io("creating", storage.locate(DIR), error))?;
    whole::replace_whole(storage, &path(snapshot.entry_id()), &order.encode())?;
    storage.sync_dir("").map_err(|error| Error::io("syncing the directory", storage.locate(""), error))
}

/// Removes the orders of snapshots that are gone.
pub(crate) fn forget_others(storage: &dyn Storage, catalog: &Catalog) -> Result<()> {
    let files = match storage.list(DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listing => listing.map_err(|error| Error::io("listing", DIR, error))?.files,
    };
    let listed = catalog.list(None)?;
    if listed.iter().any(|listed| listed.snapshot.is_err()) {
        return Ok(());
    }
    let wanted: HashSet<String> =
        listed.iter().flat_map(|listed| &listed.snapshot).map(|snapshot| path(snapshot.entry_id())).collect();
    for file in files.iter().map(|file| format!("{DIR}/{file}")).filter(|file| !wanted.contains(file)) {
        match storage.remove(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", file, error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
