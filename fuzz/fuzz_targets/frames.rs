//! Runs `tests::fuzz::frames`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::frames(bytes);
});
