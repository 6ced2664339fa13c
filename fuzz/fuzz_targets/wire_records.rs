//! Runs `tests::fuzz::wire_records`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::wire_records(bytes);
});
