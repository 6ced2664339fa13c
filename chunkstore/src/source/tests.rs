//! Opening sources of every kind, and images that QEMU holds.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// Runs a program that the tests need, which must be there and succeed.
pub(super) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn open_disk(path: &Path, options: &OpenOptions) -> Result<Box<dyn DiskSource>> {
    match open(path.to_str().unwrap(), options)? {
        Source::Disk(disk) => Ok(disk),
        Source::Stream { name, .. } => panic!("{name} was opened as a stream"),
    }
}

/// The whole disk, read where it says that there is data.
pub(super) fn content(disk: &dyn DiskSource) -> Result<Vec<u8>> {
    let mut bytes = vec![0; disk.size_bytes() as usize];
    let mut offset = 0;
    while let Some(data) = disk.next_data(offset)? {
        assert!(offset <= data.start && data.start < data.end && data.end <= disk.size_bytes());
        disk.read_exact_at(&mut bytes[data.start as usize..data.end as usize], data.start)?;
        offset = data.end;
    }
    Ok(bytes)
}

fn options(format: Format) -> OpenOptions {
    OpenOptions { format: Some(format), ..OpenOptions::default() }
}

#[test]
fn suffixes_decide_formats() {
    let cases = [
        ("a.qcow2", Format::Qcow2),
        ("a.QCOW", Format::Qcow2),
        ("a.raw", Format::Raw),
        ("a.img", Format::Raw),
        ("/dev/vg/qcow2", Format::Raw),
        (".qcow2", Format::Raw),
        ("qcow2", Format::Raw),
    ];
    for (path, format) in cases {
        assert_eq!(Format::of_path(path), format, "{path}");
    }
    assert_eq!("raw".parse::<Format>().unwrap(), Format::Raw);
    assert_eq!("qcow2".parse::<Format>().unwrap(), Format::Qcow2);
    assert!("vmdk".parse::<Format>().is_err());
}

#[test]
fn content_never_decides_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, raw) = (dir.path().join("a.qcow2"), dir.path().join("a.raw"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), "1G"]);
    fs::copy(&qcow2, &raw).unwrap();
    let disk = open_disk(&raw, &OpenOptions::default()).unwrap();
    assert_eq!(content(&*disk).unwrap(), fs::read(&raw).unwrap());
    assert_eq!(open_disk(&raw, &options(Format::Qcow2)).unwrap().size_bytes(), 1 << 30);

    fs::write(&raw, b"no header").unwrap();
    let error = open_disk(&raw, &options(Format::Qcow2)).err().unwrap();
    assert!(matches!(&error, Error::Invalid { what } if what.contains("--format raw")), "{error}");
}

#[test]
fn reads_raw_files_in_parallel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|index| (index >> 5) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let disk = open_disk(&path, &OpenOptions::default()).unwrap();
    assert_eq!((disk.name(), disk.size_bytes()), (path.to_str().unwrap(), bytes.len() as u64));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(content(&*disk).unwrap() == bytes));
        }
    });
    disk.finish().unwrap();
}

#[test]
fn notices_a_changed_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    for new_bytes in [50_000, 150_000] {
        fs::write(&path, vec![1; 100_000]).unwrap();
        let disk = open_disk(&path, &OpenOptions::default()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(new_bytes).unwrap();
        let read = disk.read_exact_at(&mut [0; 10], 99_990);
        let finished = disk.finish();
        let errors = if new_bytes < 100_000 { vec![read, finished] } else { vec![finished] };
        for error in errors {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("a.raw changed size while it was read: it had 100000 bytes"), "{error}");
        }
    }
}

#[test]
fn an_empty_file_is_an_empty_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let disk = open_disk(file.path(), &OpenOptions::default()).unwrap();
    assert_eq!(disk.next_data(0).unwrap(), None);
    disk.read_exact_at(&mut [], 0).unwrap();
    disk.finish().unwrap();
}

#[test]
fn pipes_are_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    run("mkfifo", &[path.to_str().unwrap()]);
    std::thread::scope(|scope| {
        scope.spawn(|| File::options().write(true).open(&path).unwrap().write_all(b"through a pipe").unwrap());
        let Source::Stream { name, mut reader } = open(path.to_str().unwrap(), &OpenOptions::default()).unwrap() else {
            panic!("a pipe was opened as a disk");
        };
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((name.as_str(), text.as_str()), (path.to_str().unwrap(), "through a pipe"));
    });
    assert!(matches!(open("/dev/null", &OpenOptions::default()), Ok(Source::Stream { .. })));
    assert!(matches!(open("-", &OpenOptions::default()), Ok(Source::Stream { .. })));
    assert!(matches!(open("-", &options(Format::Qcow2)), Err(Error::Invalid { .. })));
}

#[test]
fn refuses_what_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, words) in [(dir.path(), "a directory"), (&socket, "a socket")] {
        let error = open_disk(path, &OpenOptions::default()).err().unwrap();
        assert!(matches!(&error, Error::Invalid { what } if what.contains(words)), "{error}");
    }
    let missing = open_disk(&dir.path().join("none.raw"), &OpenOptions::default());
    assert!(matches!(missing, Err(Error::NotFound { what }) if what.contains("none.raw")));
}

/// A `qemu-io` that has an image open until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(args: &[&str], path: &Path) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(args).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("qemu-io is installed");
        // It prompts once the image is open.
        let mut prompt = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"qemu-io>");
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn assert_refused_for_qemu<T>(result: Result<T>) {
    match result.err().expect("an image that QEMU writes to was taken") {
        Error::Refused { what } => {
            for words in ["open for writing in QEMU", "--disk-only", "--live"] {
                assert!(what.contains(words), "{what}");
            }
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_image_open_in_qemu_needs_live() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["raw", "qcow2"] {
        let path = dir.path().join(format!("a.{format}"));
        run("qemu-img", &["create", "-q", "-f", format, path.to_str().unwrap(), "1M"]);
        let live = OpenOptions { live: true, ..OpenOptions::default() };

        let reader = QemuIo::open(&["-r", "-f", format], &path);
        open_disk(&path, &OpenOptions::default()).unwrap().finish().unwrap();
        drop(reader);

        let opened_before = open_disk(&path, &OpenOptions::default()).unwrap();
        let writer = QemuIo::open(&["-f", format], &path);
        assert_refused_for_qemu(open_disk(&path, &OpenOptions::default()));
        assert_refused_for_qemu(opened_before.finish());
        open_disk(&path, &live).unwrap().finish().unwrap();
        drop(writer);
        open_disk(&path, &OpenOptions::default()).unwrap().finish().unwrap();
    }
}

#[test]
fn a_chain_is_refused_while_qemu_writes_to_any_file_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "raw", base.to_str().unwrap(), "1M"]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top.to_str().unwrap()]);
    // A machine that runs on the top holds the base for reading only.
    let machine = QemuIo::open(&["-f", "qcow2"], &top);
    open_disk(&base, &OpenOptions::default()).unwrap().finish().unwrap();
    assert_refused_for_qemu(open_disk(&top, &OpenOptions::default()));
    drop(machine);
    let _writer = QemuIo::open(&["-f", "raw"], &base);
    assert_refused_for_qemu(open_disk(&top, &OpenOptions::default()));
}

#[test]
fn an_image_exported_by_qemu_nbd_needs_live() {
    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("a.raw"), dir.path().join("nbd.sock"));
    run("qemu-img", &["create", "-q", "-f", "raw", path.to_str().unwrap(), "1M"]);
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "-f", "raw", "-k"]).arg(&socket).arg(&path);
    let mut server = command.spawn().expect("qemu-nbd is installed");
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut result = open_disk(&path, &OpenOptions::default());
    // Its lock may come later than its socket.
    while (!socket.exists() || result.is_ok()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        result = open_disk(&path, &OpenOptions::default());
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert_refused_for_qemu(result);
}
