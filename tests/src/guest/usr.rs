//! The checksums of all files under /usr, as a guest reads them and as they are.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::devices::Mount;
use crate::stderr;

/// A checksum by file.
#[derive(Debug, PartialEq, Eq)]
pub struct Sums(BTreeMap<String, String>);

impl Sums {
    /// As an image has them, read through a file system of the host, without a change to the image.
    pub fn of_image(image: &Path) -> Self {
        let mount = Mount::image(image);
        let script = "find usr -xdev -type f -print0 | xargs -0 md5sum";
        let output = Command::new("sh").args(["-c", script]).current_dir(mount.path()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// From what `md5sum` prints.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (sum, file) = line.split_once("  ").unwrap_or_else(|| panic!("not a checksum's line: {line:?}"));
            (file.to_owned(), sum.to_owned())
        };
        Self(text.lines().map(line).collect())
    }

    /// Fails, naming files, unless these are the same.
    pub fn assert_are(&self, expected: &Self) {
        assert!(expected.0.len() > 1000, "an image of Debian has more than {} files", expected.0.len());
        let differ = expected.0.iter().filter(|(file, sum)| self.0.get(*file) != Some(sum));
        let differ: Vec<_> = differ.map(|(file, _)| file).collect();
        assert!(differ.is_empty(), "{} files differ: {:?} ...", differ.len(), &differ[..differ.len().min(10)]);
        assert_eq!(self.0.len(), expected.0.len(), "there are files that should not be there");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_file_that_differs_from_one_that_lacks() {
        let sums = |change: Option<(usize, Option<&str>)>| {
            let line = |n: usize| match change {
                Some((at, sum)) if at == n => sum.map(|sum| format!("{sum}  usr/{n}\n")),
                _ => Some(format!("{n}  usr/{n}\n")),
            };
            Sums::parse(&(0..2000).filter_map(line).collect::<String>())
        };
        let expected = sums(None);
        sums(None).assert_are(&expected);
        for change in [(7, Some("x")), (7, None), (1999, None)] {
            let other = sums(Some(change));
            assert!(std::panic::catch_unwind(|| other.assert_are(&expected)).is_err(), "{change:?}");
            assert!(std::panic::catch_unwind(|| expected.assert_are(&other)).is_err(), "{change:?}");
        }
    }
}
