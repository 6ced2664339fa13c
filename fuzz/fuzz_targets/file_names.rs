//! Runs `tests::fuzz::file_names`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::file_names(bytes);
});
