//! Limits of a process that runs for long: its heaps, and how many files it may open.
//!
//! By default the C library keeps a heap for each thread. Chunks are decoded on one and freed on another, so each heap
//! keeps holes that the others can't use: with a cache of 256 MiB and eight readers a mount took 454 MB. With two heaps
//! it is 376 MB, and 352 MB if large blocks also come from them. The heaps of an owner grew for hundreds of
//! nights.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Two heaps suffice for all decoders, which decode far longer than they allocate.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: i32 = 2;
/// The largest chunk that a store may have.
#[cfg(target_env = "gnu")]
const HEAP_BLOCK_BYTES_MAX: i32 = 1 << 20;

/// Bounds the heaps. Call it before threads are started.
pub(crate) fn bound_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: these only set numbers of the allocator, under its own lock.
    let is_set = unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) == 1
            && libc::mallopt(libc::M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES_MAX) == 1
    };
    #[cfg(target_env = "gnu")]
    if !is_set {
        tracing::debug!("the allocator's heaps could not be bounded");
    }
}

/// Raises the soft limit of open files to the hard one: the default suits programs with few files.
pub(crate) fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // If it fails, fewer are allowed, and an open that exceeds them reports it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
