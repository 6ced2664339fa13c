//! Runs `tests::fuzz::lock_holder`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::lock_holder(bytes);
});
