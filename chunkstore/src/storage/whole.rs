//! Small files that are read whole and replaced whole: the store's configuration and the catalog's entries.
//!
//! A replacement is first written to `PATH.tmp`, so that a file under its final name is never half written.

use std::io;

use super::Storage;
use crate::error::{Error, Result};

/// Suffix of the temporary file.
pub(crate) const ASIDE_SUFFIX: &str = ".tmp";

/// Reads a file, or `None` if there is none.
///
/// # Errors
/// [`Error::Damaged`] if it is longer than `bytes_max` (checked before allocating) or shrinks while being read.
pub(crate) fn read_whole(storage: &dyn Storage, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let file = match storage.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("opening", path, error)),
    };
    let len_bytes = file.len_bytes().map_err(|error| Error::io("reading", path, error))?;
    if len_bytes > bytes_max {
        return Err(Error::damaged(path, format!("{len_bytes} bytes long, where at most {bytes_max} are possible")));
    }
    let mut bytes = vec![0; len_bytes as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::damaged(path, "ends too early")),
        Err(error) => Err(Error::io("reading", path, error)),
    }
}

/// Creates or replaces a file, atomically and durably: writes a temporary file and syncs it, which makes the bytes
/// permanent, then renames it and syncs the directory, which makes the name permanent.
///
/// # Errors
/// After an error the file is either the old or the new one, whole. If only the last sync failed, the new one is
/// visible, but may not survive a power cut.
pub(crate) fn replace_whole(storage: &dyn Storage, path: &str, bytes: &[u8]) -> Result<()> {
    rename_into_place(storage, path, bytes)?;
    let dir = parent(path);
    storage.sync_dir(dir).map_err(|error| Error::io("syncing the directory", storage.locate(dir), error))
}

/// [`replace_whole`] without its last sync, for a caller that changes more in the same directory first.
pub(crate) fn rename_into_place(storage: &dyn Storage, path: &str, bytes: &[u8]) -> Result<()> {
    let aside = format!("{path}{ASIDE_SUFFIX}");
    remove_aside(storage, path)?;
    let written = write_aside(storage, &aside, bytes)
        .and_then(|()| storage.rename(&aside, path).map_err(|error| Error::io("renaming", &aside, error)));
    if written.is_err() {
        // Only to free the space; the next writer removes a leftover file.
        let _ = storage.remove(&aside);
    }
    written
}

fn write_aside(storage: &dyn Storage, aside: &str, bytes: &[u8]) -> Result<()> {
    let failed = |action| move |error| Error::io(action, storage.locate(aside), error);
    let mut file = storage.create(aside).map_err(failed("creating"))?;
    file.append(bytes).map_err(failed("writing"))?;
    file.sync().map_err(failed("syncing"))
}

/// Removes the temporary file of an interrupted replacement.
pub(crate) fn remove_aside(storage: &dyn Storage, path: &str) -> Result<()> {
    let aside = format!("{path}{ASIDE_SUFFIX}");
    match storage.remove(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", aside, error)),
        _ => Ok(()),
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::in_memory::MemStorage;

    #[test]
    fn a_leftover_is_replaced_and_a_long_file_refused() {
        let storage = MemStorage::new();
        assert_eq!(read_whole(&storage, "f", 10).unwrap(), None);
        storage.create("f.tmp").unwrap().append(b"half").unwrap();
        replace_whole(&storage, "f", b"whole").unwrap();
        assert_eq!(storage.list("").unwrap().files, ["f"]);
        assert_eq!(read_whole(&storage, "f", 5).unwrap().unwrap(), b"whole");
        assert!(matches!(read_whole(&storage, "f", 4), Err(Error::Damaged { .. })));
    }

    #[test]
    fn whatever_fails_the_file_is_the_old_or_the_new_one() {
        for (nth, kind) in (1..=6).flat_map(|nth| [(nth, io::ErrorKind::Other), (nth, io::ErrorKind::StorageFull)]) {
            let storage = MemStorage::new();
            replace_whole(&storage, "f", b"old").unwrap();
            storage.fail_from(storage.calls() + nth, kind);
            let failed = replace_whole(&storage, "f", b"new").unwrap_err();
            assert_eq!(matches!(failed, Error::OutOfSpace { .. }), kind == io::ErrorKind::StorageFull);
            for survivor in [storage.power_cut(), storage] {
                let found = read_whole(&survivor, "f", 10).unwrap().unwrap();
                assert!(found == b"old" || found == b"new", "call {nth}: {found:?}");
            }
        }
    }
}
