//! The view through real mounts: what files, directories and attributes do, what happens while the store changes or
//! breaks underneath, and how mounts begin and end.

mod changes;
mod clone_files;
mod files;
mod names;
mod program;
mod refusals;
mod trouble;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tests::{Mounted, Site, Vmstore};

const MIB: u64 = 1 << 20;

/// A store with nights of `web01`, mounted. Fields are dropped in order.
pub(crate) struct Viewed {
    pub(crate) mounted: Mounted,
    pub(crate) vmstore: Vmstore,
    /// Each snapshot with the file that it was made from.
    pub(crate) snapshots: BTreeMap<String, PathBuf>,
    pub(crate) site: Site,
}

impl Viewed {
    /// So many nights of so many MiB.
    pub(crate) fn of(mib: u64, nights: u8) -> Self {
        let site = Site::new();
        let vmstore = site.store("store");
        let snapshots = site.nights(&vmstore, mib, nights);
        let mounted = Mounted::start(&vmstore, site.path("mnt"));
        Self { mounted, vmstore, snapshots, site }
    }

    /// Ingests a file as a snapshot; returns its name.
    pub(crate) fn ingest(&self, file: &Path, image: &str, time: &str) -> String {
        self.vmstore.run(["ingest", file.to_str().unwrap(), "--image", image, "--time", time]);
        format!("{image}@{time}")
    }

    /// The first snapshot: its file in the mount, and the one that it was made from.
    pub(crate) fn first(&self) -> (PathBuf, PathBuf) {
        let (name, source) = self.snapshots.first_key_value().unwrap();
        (self.mounted.snapshot(name), source.clone())
    }
}

/// A part of a file.
pub(crate) fn read_at(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut part = vec![0; bytes];
    let read = file.read_at(&mut part, offset)?;
    part.truncate(read);
    Ok(part)
}

/// The number of the error that something must fail with.
pub(crate) fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    let error = result.expect_err("it must fail");
    error.raw_os_error().unwrap_or_else(|| panic!("{error}"))
}

/// Forgets a file's pages, so that they are asked for again.
pub(crate) fn forget_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}
