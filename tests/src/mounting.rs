//! Short ways to mount a test's store, and to run `vmfs` on it.

use std::ffi::OsStr;
use std::process::Command;

use crate::{Mounted, Vmfs, Vmstore};

impl Vmstore {
    /// The command `vmfs ARGS...` on this store.
    pub fn vmfs<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        Vmfs::beside(self).command(args)
    }

    /// Runs a command of `vmfs` that must succeed; returns what it printed.
    pub fn run_vmfs<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        Vmfs::beside(self).run(args)
    }

    /// Mounts it beside its directory, with these options.
    pub fn mount(&self, options: &[&str]) -> Mounted {
        Mounted::with(self, self.store().with_extension("mnt"), options)
    }

    /// Takes down a mount whose process was killed, and mounts again.
    #[must_use]
    pub fn mount_again(&self, dead: Mounted) -> Mounted {
        self.run_vmfs(["umount", dead.arg(), "--force"]);
        // It takes down what it finds at its place: that must not be the new one.
        drop(dead);
        self.mount(&[])
    }
}
