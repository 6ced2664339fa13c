//! The kernel of an image, taken out of its file system without mounting it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::devices::tool;

/// The kernel and its first file system, as files of the host.
#[derive(Clone, Debug)]
pub struct Kernel {
    vmlinuz: PathBuf,
    initrd: PathBuf,
}

impl Kernel {
    /// The newest that the image of an ext4 file system has, written to `dir`.
    pub fn of(image: &Path, dir: &Path) -> Self {
        let listed = debugfs(image, "ls -p /boot");
        let version = listed.lines().filter_map(version_of).max();
        let version = version.unwrap_or_else(|| panic!("{} has no kernel: {listed}", image.display()));
        let take = |name: &str| {
            let to = dir.join(name);
            debugfs(image, &format!("dump /boot/{name}-{version} {}", to.display()));
            assert!(to.metadata().is_ok_and(|file| file.len() > 0), "{} has no {name}", image.display());
            to
        };
        Self { vmlinuz: take("vmlinuz"), initrd: take("initrd.img") }
    }

    /// QEMU's arguments to boot it, with these words added to the kernel's command line.
    pub(super) fn args(&self, words: &str) -> [String; 6] {
        let file = |path: &Path| path.to_str().expect("the tests' paths are text").to_owned();
        // A guest that panics ends at once: QEMU does not reboot it. And on a busy host, timers are late, for which the
        // kernel would panic.
        let line = format!("console=ttyS0 panic=-1 no_timer_check {words}");
        ["-kernel".into(), file(&self.vmlinuz), "-initrd".into(), file(&self.initrd), "-append".into(), line]
    }
}

/// Of a line such as `/123/100644/0/0/vmlinuz-6.1.0-37-cloud-amd64/8000000/`.
fn version_of(line: &str) -> Option<&str> {
    line.split('/').find_map(|field| field.strip_prefix("vmlinuz-"))
}

fn debugfs(image: &Path, request: &str) -> String {
    tool("debugfs", &[OsStr::new("-R"), OsStr::new(request), image.as_os_str()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_kernels_in_a_listing() {
        let kernel = "/46/100644/0/0/vmlinuz-6.1.0-37-cloud-amd64/8110016/";
        assert_eq!(version_of(kernel), Some("6.1.0-37-cloud-amd64"));
        assert_eq!(version_of("/47/100644/0/0/initrd.img-6.1.0-37-cloud-amd64/9/"), None);
    }
}
