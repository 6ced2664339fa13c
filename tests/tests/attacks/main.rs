//! Attacks on a store: kills, power cuts, faults, damage, little memory, hostile servers, load. Short forms run always,
//! long ones in `make torture`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod clone_writers;
mod connections;
mod damaged_files;
mod faults;
mod hostile_servers;
mod index_damage;
mod kill;
mod little_memory;
mod mount_load;
mod power_cuts;
mod soak;
