//! Files and messages of clones, their holders, and mounts.

use std::fs::File;

use super::peers::with_file;
use super::{Verdict, as_given_and_resealed, reseal};

/// Most sectors before those of [`clone_map`]: the largest files end there.
const SECTORS_BEFORE: u64 = 1 << 53;
/// More than a lock's file holds.
const HOLDER_BYTES_MAX: usize = 4096;

/// A clone's `clone.json`.
pub fn clone_record(file: &[u8]) -> Verdict {
    Verdict::when(disks::fuzzing::clone_record(file))
}

/// A layer's map: the number of its first sector that is no hole (8 bytes), and what is in the file from there on.
pub fn clone_map(bytes: &[u8]) -> Verdict {
    let Some((first, sectors)) = bytes.split_first_chunk() else { return Verdict::Refused };
    let first = u64::from_le_bytes(*first) % SECTORS_BEFORE;
    as_given_and_resealed(
        sectors,
        |sectors| Some(reseal::map_sectors(first, sectors)),
        |sectors| Verdict::when(disks::fuzzing::clone_map(first, sectors)),
    )
}

/// Messages through a clone's socket, from either side.
pub fn clone_socket(lines: &[u8]) -> Verdict {
    Verdict::when(disks::fuzzing::clone_socket(lines))
}

/// The text in a lock file of a store or a clone while it is held.
pub fn lock_holder(bytes: &[u8]) -> Verdict {
    with_file("lock", bytes, |_, path| {
        let holder = chunkstore::store::lock::holder(&mut File::open(path).expect("it was just written"));
        assert!(!holder.is_empty() && holder.len() <= HOLDER_BYTES_MAX && !holder.contains(char::is_control));
        Verdict::when(disks::fuzzing::lock_holder(&holder))
    })
}

/// The mounts of the machine, as `/proc/self/mountinfo` lists them.
pub fn mountinfo(text: &[u8]) -> Verdict {
    Verdict::when(fusefs::fuzzing::mountinfo(text))
}
