//! Runs `tests::fuzz::clone_map`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::clone_map(bytes);
});
