//! qcow2 images, which guests and their makers control: the header, the tables behind it, and what imago makes of both.

use std::fs;

use chunkstore::format::limits::IMAGE_BYTES_MAX;
use chunkstore::source::{DiskSource, Format, OpenOptions, Source, open};
use tempfile::TempDir;

use super::Verdict;

/// A raw file that images can name as their backing file.
pub(super) const BACKING: &str = "base.raw";
/// Ranges that are read of one image: its disk can be a million times as large as its file.
const RANGES_MAX: usize = 64;
const READ_BYTES_MAX: u64 = 64 << 10;

thread_local! {
    static DIR: TempDir = make_dir();
}

fn make_dir() -> TempDir {
    let dir = TempDir::new().expect("a directory for images");
    fs::write(dir.path().join(BACKING), [0xb5; 8192]).expect("a backing file");
    dir
}

/// A qcow2 image, alone in its directory with `BACKING`.
pub fn qcow2_image(bytes: &[u8]) -> Verdict {
    DIR.with(|dir| {
        let path = dir.path().join("image.qcow2");
        fs::write(&path, bytes).expect("an image's file");
        let options = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::default() };
        let opened = open(path.to_str().expect("a temporary path is text"), &options);
        let verdict = Verdict::of(&opened);
        if let Ok(Source::Disk(disk)) = opened {
            read_all(disk.as_ref(), cluster_bytes(bytes));
        }
        verdict
    })
}

/// Of an image whose header was accepted.
fn cluster_bytes(image: &[u8]) -> u64 {
    1 << u32::from_be_bytes(image[20..24].try_into().expect("four bytes"))
}

/// Reads an image's data; what is found wrong on the way is an error.
fn read_all(disk: &dyn DiskSource, cluster_bytes: u64) {
    let size = disk.size_bytes();
    assert!(size <= IMAGE_BYTES_MAX);
    let mut offset = 0;
    for _ in 0..RANGES_MAX {
        let Ok(Some(data)) = disk.next_data(offset) else { break };
        assert!(offset <= data.start && data.start < data.end && data.end <= size, "{data:?} of {size} from {offset}");
        let bytes = (data.end - data.start).min(READ_BYTES_MAX);
        let both = [0, 0xff].map(|filler| read(disk, data.start, bytes, filler));
        // imago reads parts of compressed clusters by way of memory that is not initialized.
        if data.start.is_multiple_of(cluster_bytes) && bytes.is_multiple_of(cluster_bytes) {
            assert!(both[0] == both[1], "what is read at {} depends on what lay in the buffer", data.start);
        }
        offset = data.end;
    }
    let _ = read(disk, size.saturating_sub(READ_BYTES_MAX), size.min(READ_BYTES_MAX), 0);
    assert!(read(disk, size.saturating_sub(1), 2, 0).is_none(), "a read beyond the end");
    let _ = disk.finish();
}

/// The bytes read into a buffer full of `filler`; `None` if reading fails.
fn read(disk: &dyn DiskSource, offset: u64, bytes: u64, filler: u8) -> Option<Vec<u8>> {
    let mut buf = vec![filler; bytes as usize];
    disk.read_exact_at(&mut buf, offset).ok().map(|()| buf)
}
