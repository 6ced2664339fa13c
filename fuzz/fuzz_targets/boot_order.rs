//! Runs `tests::fuzz::boot_order`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::boot_order(bytes);
});
