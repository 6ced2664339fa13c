//! Whether QEMU has an image open for writing.
//!
//! QEMU takes shared open-file-description locks on single bytes of every image it opens: byte 100 + n for each
//! permission n that it uses, byte 200 + n for each that it denies to others (`block/file-posix.c`,
//! `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`; `BLK_PERM_*` in `include/block/block-common.h`). Nothing is
//! locked here, so a virtual machine can start while its image is read.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const PERMISSION_BASE: i64 = 100;
const PERMISSION_WRITE: i64 = 1;
const PERMISSION_RESIZE: i64 = 3;

/// True if some process, this one included, has `file` open for writing in QEMU's manner.
pub(super) fn is_open_for_writing(file: &File) -> io::Result<bool> {
    Ok(is_locked(file, PERMISSION_BASE + PERMISSION_WRITE)? || is_locked(file, PERMISSION_BASE + PERMISSION_RESIZE)?)
}

fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    // SAFETY: a plain C structure, for which zeros are valid; the system requires `l_pid` to be zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: an open descriptor and a structure that outlives the call; asking takes no lock.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if status == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
