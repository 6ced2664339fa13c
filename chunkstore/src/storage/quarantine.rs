//! `quarantine/`: damaged files that a repair replaced, kept for the operator.
//!
//! Nothing else reads or removes them. A file's new name is its path with dots for slashes, and a number appended if
//! that name is taken.

use std::io;

use crate::error::{Error, Result};
use crate::storage::{Storage, whole};

/// Directory of a store.
pub(crate) const DIR: &str = "quarantine";

/// Moves a file or directory to quarantine, durably. Returns its new path.
///
/// # Errors
/// If it can't be moved; it then keeps its old path, or has both paths after a power cut.
pub(crate) fn put_away(storage: &dyn Storage, path: &str) -> Result<String> {
    let to = free_path(storage, path)?;
    storage.rename(path, &to).map_err(|error| Error::io("moving aside", storage.locate(path), error))?;
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    for dir in [DIR, dir] {
        storage.sync_dir(dir).map_err(|error| Error::io("syncing the directory", storage.locate(dir), error))?;
    }
    Ok(to)
}

/// Copies a small file that is about to be replaced to quarantine, durably, as far as it can be read. Returns the path
/// of the copy; `None` if nothing could be read.
///
/// # Errors
/// If the copy can't be written.
pub(crate) fn keep_copy(storage: &dyn Storage, path: &str, bytes_max: u64) -> Result<Option<String>> {
    let Ok(Some(bytes)) = whole::read_whole(storage, path, bytes_max) else { return Ok(None) };
    let to = free_path(storage, path)?;
    whole::replace_whole(storage, &to, &bytes)?;
    Ok(Some(to))
}

/// A free path in quarantine.
fn free_path(storage: &dyn Storage, path: &str) -> Result<String> {
    let taken = match storage.list(DIR) {
        Ok(listing) => [listing.files, listing.dirs].concat(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            storage.create_dir(DIR).map_err(|error| Error::io("creating", storage.locate(DIR), error))?;
            Vec::new()
        }
        Err(error) => return Err(Error::io("listing", storage.locate(DIR), error)),
    };
    let name = path.replace('/', ".");
    let numbered = (2..).map(|number| format!("{name}.{number}"));
    let free = std::iter::once(name.clone()).chain(numbered).find(|name| !taken.contains(name));
    Ok(format!("{DIR}/{}", free.expect("there is always another number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::in_memory::MemStorage;

    #[test]
    fn nothing_there_is_ever_replaced() {
        let storage = MemStorage::new();
        storage.create_dir("packs").unwrap();
        for (nth, expected) in [(1, "quarantine/packs.a"), (2, "quarantine/packs.a.2"), (3, "quarantine/packs.a.3")] {
            whole::replace_whole(&storage, "packs/a", &[nth]).unwrap();
            let to = if nth == 2 {
                keep_copy(&storage, "packs/a", 9).unwrap().unwrap()
            } else {
                put_away(&storage, "packs/a").unwrap()
            };
            assert_eq!(to, expected);
            assert_eq!(whole::read_whole(&storage.power_cut(), expected, 9).unwrap().unwrap(), [nth]);
        }
        assert_eq!(storage.power_cut().list("packs").unwrap().files, [""; 0]);
        assert_eq!(keep_copy(&storage, "packs/a", 9).unwrap(), None);
    }
}
