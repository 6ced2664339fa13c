//! Runs `tests::fuzz::catalog_file`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::catalog_file(bytes);
});
