//! Runs `tests::fuzz::clone_socket`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::clone_socket(bytes);
});
