//! Reads from a mount: any snapshot of any image, in order or not, each mebibyte checked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tests::Mounted;
use tests::images::Rng;

use crate::Soak;
use crate::machine::MIB;

const PAUSE_MS_MAX: u64 = 2000;

/// Reads one snapshot.
pub(crate) fn read(soak: &Soak, mounted: &Mounted, rng: &mut Rng) {
    soak.pause(Duration::from_millis(rng.below(PAUSE_MS_MAX)));
    let images = entries(&mounted.path().join("snapshots"));
    let Some(image) = pick(&images, rng) else { return };
    let mut files = entries(image);
    files.retain(|file| file.file_stem().is_some_and(|stem| stem != "latest"));
    let Some(path) = pick(&files, rng) else { return };
    // It may have been pruned since it was listed; once it is open, it is there.
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        file => file.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    check(soak, path, &file, rng);
}

fn check(soak: &Soak, path: &Path, file: &File, rng: &mut Rng) {
    let [image, time] =
        [path.parent().unwrap().file_name(), path.file_stem()].map(|part| part.unwrap().to_str().unwrap());
    let name = format!("{image}@{time}");
    let digests = soak.digests().get(&name).cloned().unwrap_or_else(|| panic!("{name} was never made"));
    let bytes = file.metadata().unwrap().len();
    assert_eq!(bytes.div_ceil(MIB), digests.len() as u64, "{name} has {bytes} bytes");
    let mut parts: Vec<_> = (0..digests.len()).collect();
    if rng.below(2) == 0 {
        parts.sort_by_cached_key(|_| rng.number());
    }
    let mut part = vec![0; MIB as usize];
    for number in parts.into_iter().take_while(|_| soak.goes_on()) {
        let start = number as u64 * MIB;
        let part = &mut part[..(bytes - start).min(MIB) as usize];
        file.read_exact_at(part, start).unwrap_or_else(|error| panic!("{name} at {start} of a mount: {error}"));
        assert!(blake3::hash(part) == digests[number], "{name} at {start} has other bytes in {}", path.display());
        soak.read_mib.fetch_add(1, Ordering::SeqCst);
    }
}

/// The entries of a directory, some of which may just have gone.
fn entries(dir: &Path) -> Vec<PathBuf> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        entries => {
            let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }
}

fn pick<'a>(paths: &'a [PathBuf], rng: &mut Rng) -> Option<&'a PathBuf> {
    paths.get(rng.below(paths.len().max(1) as u64) as usize)
}
