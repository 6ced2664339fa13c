//! Runs `tests::fuzz::mount_status`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::mount_status(bytes);
});
