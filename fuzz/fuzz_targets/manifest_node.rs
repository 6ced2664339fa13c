//! Runs `tests::fuzz::manifest_node`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tests::fuzz::manifest_node(bytes);
});
