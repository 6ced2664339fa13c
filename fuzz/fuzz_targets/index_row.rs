//! Runs `tests::fuzz::index_row`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::index_row(bytes);
});
