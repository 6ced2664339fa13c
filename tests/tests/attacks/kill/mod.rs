//! `kill -9` of commands, owners and mounts at random moments.

mod commands;
mod mix;
mod owners;
mod pushes;
