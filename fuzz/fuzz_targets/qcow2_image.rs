//! Runs `tests::fuzz::qcow2_image`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::qcow2_image(bytes);
});
