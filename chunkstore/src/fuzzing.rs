//! Private decoders, for the fuzz targets in `tests/src/fuzz`.
//!
//! Each returns whether it accepted its input, and panics if an accepted value changes when it is encoded and decoded
//! again.

use std::collections::BTreeSet;

use crate::catalog::lease;
use crate::format::limits::{PACK_NUMBER_MAX, PLAIN_BYTES_MAX, STORED_BYTES_MAX};
use crate::pack::{self, Inventory};
use crate::pack::{PackRow, RecordLocation};
use crate::storage::{MemStorage, Storage};

/// A lease's file.
pub fn lease(file: &[u8]) -> bool {
    let Ok(roots) = lease::read(file) else { return false };
    assert!(roots.len() <= lease::ROOTS_MAX);
    assert_eq!(lease::read(lease::render(&roots).as_bytes()), Ok(roots));
    true
}

/// The names of the files in `packs/`; accepted if one of them is a sealed pack's.
pub fn pack_files(names: &BTreeSet<&str>) -> bool {
    let storage = MemStorage::new();
    storage.create_dir(pack::DIR).expect("memory can always be written");
    for name in names {
        storage.create(&format!("{}/{name}", pack::DIR)).expect("memory can always be written");
    }
    let inventory = Inventory::read(&storage).expect("memory can always be read");
    let next_number = inventory.next_number();
    let Inventory { sealed, parts, strangers } = inventory;
    assert_eq!(sealed.len() + parts.len() + strangers.len(), names.len(), "each is one of the three");
    for (number, id) in &sealed {
        assert!(*number == id.number && *number < next_number && next_number <= PACK_NUMBER_MAX + 1);
        storage.open(&pack::path(*id)).expect("the pack lies under the name that was read");
    }
    !sealed.is_empty()
}

/// A value of the index's column family `records`, or key and value of one of `packs`.
pub fn index_row(bytes: &[u8]) -> bool {
    let location = RecordLocation::decode(bytes);
    if let Some(location) = &location {
        assert!(location.plain_bytes as usize <= PLAIN_BYTES_MAX && location.stored_bytes as usize <= STORED_BYTES_MAX);
        assert_eq!(RecordLocation::decode(&location.encode()).as_ref(), Some(location));
    }
    let row = bytes.split_at_checked(size_of::<u32>()).and_then(|(key, value)| PackRow::decode(key, value));
    if let Some(row) = &row {
        assert_eq!(PackRow::decode(&row.id.number.to_be_bytes(), &row.encode()).as_ref(), Some(row));
    }
    location.is_some() || row.is_some()
}
