//! Runs `tests::fuzz::damaged_list`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::damaged_list(bytes);
});
