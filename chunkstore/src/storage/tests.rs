//! The contract of [`Storage`], for every implementation.

use std::io::ErrorKind;

use super::in_memory::MemStorage;
use super::*;

/// Runs the whole contract on empty storage.
pub(crate) fn contract(storage: &dyn Storage) {
    a_file_is_written_once_and_read_anywhere(storage);
    others_write_what_the_appender_skips(storage);
    renames_replace_and_open_files_stay_readable(storage);
    directories_are_listed_sorted(storage);
    what_is_missing_is_not_found(storage);
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.map(drop).expect_err("must fail").kind()
}

fn write(storage: &dyn Storage, path: &str, bytes: &[u8]) {
    let mut file = storage.create(path).unwrap();
    file.append(bytes).unwrap();
    file.start_writeback();
    file.sync().unwrap();
}

fn content(file: &dyn ReadFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len_bytes().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn a_file_is_written_once_and_read_anywhere(storage: &dyn Storage) {
    let mut file = storage.create("once").unwrap();
    file.append(b"01234").unwrap();
    file.append(b"").unwrap();
    let early = storage.open("once").unwrap();
    file.append(b"56789").unwrap();
    file.sync().unwrap();
    drop(file);
    assert_eq!(early.len_bytes().unwrap(), 10, "a reader sees what is appended after it opened");
    assert_eq!(content(&*early), b"0123456789");
    let mut middle = [0; 3];
    early.read_exact_at(&mut middle, 4).unwrap();
    assert_eq!(&middle, b"456");
    early.read_exact_at(&mut [], 10).unwrap();
    assert_eq!(kind(early.read_exact_at(&mut middle, 8)), ErrorKind::UnexpectedEof);
    assert_eq!(kind(early.read_exact_at(&mut middle, 1 << 40)), ErrorKind::UnexpectedEof);
    assert_eq!(kind(storage.create("once")), ErrorKind::AlreadyExists);
    storage.remove("once").unwrap();
    assert_eq!(content(&*early), b"0123456789", "a removed file stays readable while it is open");
    storage.sync_dir("").unwrap();
}

fn others_write_what_the_appender_skips(storage: &dyn Storage) {
    let mut file = storage.create("shared").unwrap();
    file.append(b"01").unwrap();
    let joined = storage.join("shared").unwrap();
    joined.write_at(4, b"45").unwrap();
    joined.write_at(2, b"23").unwrap();
    file.skip(4);
    file.append(b"67").unwrap();
    file.skip(2);
    file.append(b"ab").unwrap();
    file.sync().unwrap();
    assert_eq!(content(&*storage.open("shared").unwrap()), b"01234567\0\0ab");
    assert_eq!(kind(storage.join("missing")), ErrorKind::NotFound);
    storage.remove("shared").unwrap();
}

fn renames_replace_and_open_files_stay_readable(storage: &dyn Storage) {
    storage.create_dir("names").unwrap();
    write(storage, "names/a", b"first");
    write(storage, "names/b", b"second");
    let replaced = storage.open("names/b").unwrap();
    storage.rename("names/a", "names/b").unwrap();
    storage.sync_dir("names").unwrap();
    assert_eq!(content(&*replaced), b"second");
    assert_eq!(content(&*storage.open("names/b").unwrap()), b"first");
    assert_eq!(kind(storage.open("names/a")), ErrorKind::NotFound);
    storage.rename("names/b", "moved").unwrap();
    assert_eq!(storage.list("names").unwrap(), Listing::default());
    assert_eq!(content(&*storage.open("moved").unwrap()), b"first");
    storage.remove("moved").unwrap();
}

fn directories_are_listed_sorted(storage: &dyn Storage) {
    storage.create_dir("list").unwrap();
    storage.create_dir("list").unwrap();
    storage.create_dir("list/z").unwrap();
    storage.create_dir("list/deep").unwrap();
    for name in ["b", "a", "c"] {
        write(storage, &format!("list/{name}"), b"");
        write(storage, &format!("list/deep/{name}"), b"");
    }
    let sorted = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let listing = storage.list("list").unwrap();
    assert_eq!(listing, Listing { files: sorted(&["a", "b", "c"]), dirs: sorted(&["deep", "z"]) });
    assert!(storage.list("").unwrap().dirs.contains(&"list".to_owned()));
    assert_eq!(kind(storage.create_dir("list/a")), ErrorKind::AlreadyExists);
    assert_eq!(kind(storage.create("list/deep")), ErrorKind::AlreadyExists);
    for dir in ["list/deep", "list", ""] {
        storage.sync_dir(dir).unwrap();
    }
}

fn what_is_missing_is_not_found(storage: &dyn Storage) {
    write(storage, "there", b"");
    assert_eq!(kind(storage.open("missing")), ErrorKind::NotFound);
    assert_eq!(kind(storage.open("missing/file")), ErrorKind::NotFound);
    assert_eq!(kind(storage.create("missing/file")), ErrorKind::NotFound);
    assert_eq!(kind(storage.rename("missing", "other")), ErrorKind::NotFound);
    assert_eq!(kind(storage.rename("there", "missing/file")), ErrorKind::NotFound);
    assert_eq!(kind(storage.remove("missing")), ErrorKind::NotFound);
    assert_eq!(kind(storage.list("missing")), ErrorKind::NotFound);
    assert_eq!(kind(storage.create_dir("missing/dir")), ErrorKind::NotFound);
    assert_eq!(kind(storage.sync_dir("missing")), ErrorKind::NotFound);
    storage.open("there").unwrap();
    storage.remove("there").unwrap();
}

#[test]
fn a_local_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&LocalDir::new(dir.path()));
}

#[test]
fn memory_keeps_the_contract() {
    contract(&MemStorage::new());
}
