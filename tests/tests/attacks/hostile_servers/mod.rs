//! Servers that lie: to `vmstore push` and `vmstore pull`, and to a mount.

mod liar;
mod mounts;
mod transfers;
