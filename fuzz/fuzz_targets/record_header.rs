//! Runs `tests::fuzz::record_header`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::record_header(bytes);
});
