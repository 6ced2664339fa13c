//! Private decoders, for the fuzz targets in `tests/src/fuzz`.
//!
//! Each tells whether it accepted its input, and fails as a test does if what it accepted does not survive being
//! encoded again.

use std::os::unix::ffi::OsStrExt;

use crate::mounts::{self, Mount};

/// `/proc/self/mountinfo`; accepted if there is a mount in it.
pub fn mountinfo(text: &[u8]) -> bool {
    let mounts = mounts::read(text);
    let again: Vec<u8> = mounts.iter().flat_map(line).collect();
    assert_eq!(mounts::read(&again), mounts);
    !mounts.is_empty()
}

/// A mount as the kernel tells of it.
fn line(mount: &Mount) -> Vec<u8> {
    let Mount { mountpoint, device, kind, source } = mount;
    let [mountpoint, source] = [mountpoint, source].map(|path| escaped(path.as_os_str().as_bytes()));
    let before = format!("1 1 {device} / ").into_bytes();
    [before, mountpoint, format!(" rw - {kind} ").into_bytes(), source, b" rw\n".to_vec()].concat()
}

/// A path without what ends fields and lines.
fn escaped(path: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        byte => vec![*byte],
    };
    path.iter().flat_map(escape).collect()
}
