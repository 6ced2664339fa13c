//! Reading without evicting pages from the page cache.
//!
//! Before a read, `mincore(2)` on a mapping of the range tells which pages are resident; after it, only those that were
//! not are dropped again. Where the kernel has `cachestat(2)` (Linux 6.5) and it says that all are, nothing is mapped:
//! threads that map and unmap wait for one another. The mapping is never touched, so a file that shrinks meanwhile
//! can't raise `SIGBUS`.
//!
//! Best effort: where the file can't be mapped, or its residency may not be known (`mincore` calls every page
//! resident to those who neither own the file nor may write it), pages stay.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::LazyLock;

use rustix::fs::Advice;
use rustix::mm::{MapFlags, ProtFlags};

static PAGE_BYTES: LazyLock<u64> = LazyLock::new(|| {
    // SAFETY: no memory is involved.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).expect("every Linux system has a page size")
});

/// Turns the kernel's readahead off for this descriptor: what it fetched beyond a read would look, at the next
/// read, as if it had been there before.
pub(super) fn stop_readahead(file: &File) {
    // A hint: without it some pages stay.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
}

/// Runs `read`, which reads `range` of `file`, and then drops the pages of the range that were absent before.
pub(super) fn leaving_no_trace<T>(file: &File, range: Range<u64>, read: impl FnOnce() -> T) -> T {
    let absent = if is_resident(file, &range) { Vec::new() } else { runs_with(file, range, false).unwrap_or_default() };
    let result = read();
    for run in absent {
        let length = NonZeroU64::new(run.end - run.start);
        let _ = rustix::fs::fadvise(file, run.start, length, Advice::DontNeed);
    }
    result
}

/// The number of `cachestat(2)`, the same on every machine that Rust knows.
const SYS_CACHESTAT: libc::c_long = 451;

/// As `cachestat(2)` wants it.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    bytes: u64,
}

/// As `cachestat(2)` fills it; the other figures are of dirty and evicted pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached_pages: u64,
    others: [u64; 4],
}

/// Whether all pages of `range` are known to be resident.
fn is_resident(file: &File, range: &Range<u64>) -> bool {
    let asked = CachestatRange { offset: range.start, bytes: range.end.saturating_sub(range.start) };
    let mut found = Cachestat::default();
    // SAFETY: both pointers are to locals of the system call's layout, which outlive it.
    let outcome =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut found, 0 as libc::c_uint) };
    let pages = range.end.div_ceil(*PAGE_BYTES) - range.start / *PAGE_BYTES;
    outcome == 0 && asked.bytes > 0 && found.cached_pages >= pages
}

/// The page-aligned runs of `range` that are resident, or that are not; `None` if that can't be known.
fn runs_with(file: &File, range: Range<u64>, resident: bool) -> Option<Vec<Range<u64>>> {
    let page_bytes = *PAGE_BYTES;
    let start = range.start - range.start % page_bytes;
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (index, state) in residency(file, start, range.end)?.into_iter().enumerate() {
        // Only the lowest bit is defined.
        if (state & 1 == 1) != resident {
            continue;
        }
        let page = start + index as u64 * page_bytes;
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += page_bytes,
            _ => runs.push(page..page + page_bytes),
        }
    }
    Some(runs)
}

/// One byte a page, from the page at `start`, which must be aligned.
fn residency(file: &File, start: u64, end: u64) -> Option<Vec<u8>> {
    let pages = usize::try_from(end.checked_sub(start)?.div_ceil(*PAGE_BYTES)).ok()?;
    let length = pages.checked_mul(*PAGE_BYTES as usize)?;
    let mut states = vec![0; pages];
    // SAFETY: a new mapping at an address of the kernel's choice; nothing reads or writes through it.
    let address =
        unsafe { rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::empty(), MapFlags::SHARED, file, start) }.ok()?;
    // SAFETY: `address` and `length` are the mapping above, and `states` has a byte for each of its pages.
    let outcome = unsafe { libc::mincore(address, length, states.as_mut_ptr()) };
    // SAFETY: the mapping above, which nothing else knows of.
    let _ = unsafe { rustix::mm::munmap(address, length) };
    (outcome == 0).then_some(states)
}

/// Bytes of `file` that are resident.
#[cfg(test)]
pub(super) fn resident_bytes(file: &File, length: u64) -> u64 {
    let runs = runs_with(file, 0..length, true).expect("the test's file can be mapped");
    runs.iter().map(|run| run.end - run.start).sum()
}
