//! Runs `tests::fuzz::snapshot_entry`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::snapshot_entry(bytes);
});
