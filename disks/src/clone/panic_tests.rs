//! Panics under the locks of a clone: the clone fails until it is opened again, everything else goes on.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chunkstore::Progress;
use chunkstore::Result;
use chunkstore::testing::noise;
use tokio::time::timeout;

use super::clone_disk::CloneDisk;
use super::files::{Files, HostFiles, LayerFile};
use super::test_store::{TestStore, commit_options, init, runtime};
use crate::errno::{Of, errno};

const SIZE: usize = 64 << 10;
/// Longer than any call here takes.
const HANG: Duration = Duration::from_mins(1);

/// The file system, with a panic on demand where maps reserve space, which they do under their lock.
#[derive(Clone, Default)]
struct PanickingFiles(Arc<AtomicBool>);

struct PanickingFile {
    file: Box<dyn LayerFile>,
    panics: Arc<AtomicBool>,
}

impl PanickingFiles {
    fn file(&self, file: io::Result<Box<dyn LayerFile>>) -> io::Result<Box<dyn LayerFile>> {
        Ok(Box::new(PanickingFile { file: file?, panics: Arc::clone(&self.0) }))
    }
}

impl Files for PanickingFiles {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        HostFiles.make_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LayerFile>> {
        self.file(HostFiles.create(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LayerFile>> {
        self.file(HostFiles.open(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        HostFiles.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        HostFiles.remove(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        HostFiles.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        HostFiles.sync_dir(dir)
    }
}

impl LayerFile for PanickingFile {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(buf, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write(bytes, offset)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.file.punch(range)
    }

    fn reserve(&self, range: Range<u64>) -> io::Result<()> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as it was told");
        self.file.reserve(range)
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        self.file.cut(len_bytes)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        self.file.stored_bytes()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

fn assert_eio<T: std::fmt::Debug>(result: Result<T>, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(errno(Of::Data, &error).raw_os_error(), libc::EIO, "{what}: {error}");
    assert!(error.to_string().contains("clone c"), "{error}");
}

/// Each call that a guest or an operator can make on a clone `c` fails at once.
async fn assert_all_fail(disk: &CloneDisk) {
    let mut buf = [0; 512];
    assert_eio(disk.read(&mut buf, 0).await, "read");
    assert_eio(disk.write(b"more", 9).await, "write");
    assert_eio(disk.discard(0..8192).await, "discard");
    assert_eio(disk.sync().await, "sync");
    assert_eio(disk.set_size(1 << 20).await, "set_size");
    assert_eio(disk.next_data(0).await, "next_data");
    assert_eio(disk.data_bytes().await, "data_bytes");
}

#[test]
fn a_panic_under_a_clones_lock_fails_that_clone_alone_until_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = noise(SIZE, 1);
    init(dir.path(), &image);
    let files = PanickingFiles::default();
    let site = TestStore::open_store(dir, runtime(), None, Arc::new(files.clone())).unwrap();
    site.create("c").unwrap();
    site.create("d").unwrap();
    let (disk, other) = (site.open(), site.try_open("d").unwrap());
    let all = async {
        disk.write(b"synced", 100).await.unwrap();
        disk.sync().await.unwrap();
        files.0.store(true, Ordering::SeqCst);
        // Another part of the map, and writers that wait for the same block.
        let far = 300 << 20;
        let (one, two, three) =
            tokio::join!(disk.set_size(far + 4096), disk.write(b"lost", far), disk.write(b"lost", far));
        let failed = [one, two, three].into_iter().filter(Result::is_err).count();
        assert!(failed >= 1, "the panic became an error");
        assert_all_fail(&disk).await;
        other.write(b"alive", 0).await.unwrap();
        other.sync().await.unwrap();
        let mut buf = [0; 5];
        other.read(&mut buf, 0).await.unwrap();
        assert_eq!(&buf, b"alive");
    };
    site.runtime.block_on(async { timeout(HANG, all).await.expect("nothing waits for ever") });
    assert_eio(disk.commit(&*site.publisher, &commit_options(1), &Progress::default()), "commit");
    drop(disk);
    let disk = site.open();
    image[100..106].copy_from_slice(b"synced");
    let mut found = vec![0; SIZE];
    site.runtime.block_on(disk.read(&mut found, 0)).unwrap();
    assert!(found == image, "what was synced is there");
    site.runtime.block_on(disk.write(b"again", 200)).unwrap();
    site.commit(&disk, 2).unwrap();
}

#[test]
fn a_panic_under_the_lock_of_the_metadata_fails_the_clone() {
    let site = TestStore::with_clone(&noise(SIZE, 1));
    let disk = site.open();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _held = disk.shared.metadata.lock();
        panic!("while the metadata is changed");
    }));
    assert!(panicked.is_err());
    let grown = async { timeout(HANG, disk.set_size(1 << 20)).await.expect("it does not hang") };
    let grown = site.runtime.block_on(grown);
    assert_eio(grown, "set_size");
    site.runtime.block_on(assert_all_fail(&disk));
    drop(disk);
    assert_eq!(site.open().size_bytes(), SIZE as u64);
}
