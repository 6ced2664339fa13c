//! Tests with guests: a real Debian boots in QEMU from what vmstore serves.

#![allow(clippy::unwrap_used, reason = "tests")]

mod boot;
