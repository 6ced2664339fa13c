//! The readahead of the kernel in a mount: 128 KiB, unless sysfs is changed.

use std::fs;

/// With requests of 1 MiB, enough of them are under way that all cores have work.
const KIB: u32 = 8 << 10;

/// Raises the limit where that is permitted.
pub(crate) fn raise(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match fs::write(&path, KIB.to_string()) {
        Ok(()) => tracing::debug!("{path} is {KIB}"),
        Err(error) => tracing::debug!("{path}: {error}: sequential reads stay slower"),
    }
}
