//! Images made by `qemu-img` and `qemu-io`, read back and compared with what `qemu-img convert` makes of them;
//! and images that were cut off or changed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use super::super::tests::{content, run};
use super::*;

struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program in the directory of the images.
    fn run(&self, command: &str) {
        let mut words = command.split(' ');
        let program = words.next().unwrap();
        let output = Command::new(program).args(words).current_dir(&self.0).output().expect(program);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes `length` bytes of a pattern with QEMU.
    fn write(&self, name: &str, format: &str, pattern: u8, offset: &str, length: &str) {
        let path = self.path(name);
        let command = format!("write -P {pattern} {offset} {length}");
        run("qemu-io", &["-f", format, "-c", &command, path.to_str().unwrap()]);
    }

    /// A raw file with text, zeros and noise.
    fn write_disk(&self, name: &str, bytes: usize) {
        let mut state = 1_u32;
        let mut disk = Vec::with_capacity(bytes);
        while disk.len() < bytes {
            let index = disk.len() as u32;
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            disk.push(match index >> 18 & 3 {
                0 => (state >> 24) as u8,
                1 => 0,
                _ => (index >> 9) as u8,
            });
        }
        fs::write(self.path(name), disk).unwrap();
    }

    fn open(&self, name: &str) -> Result<Qcow2Source> {
        Qcow2Source::open(&self.path(name), None, false)
    }

    fn refusal(&self, name: &str) -> String {
        match self.open(name).err().expect("it was taken") {
            Error::Refused { what } => what,
            other => panic!("{other:?}"),
        }
    }

    /// Compares what we read, several times at once, with what QEMU reads.
    fn check(&self, name: &str) {
        self.run(&format!("qemu-img convert -f qcow2 -O raw {name} expected.raw"));
        let expected = fs::read(self.path("expected.raw")).unwrap();
        let disk = self.open(name).unwrap();
        assert_eq!(disk.size_bytes(), expected.len() as u64);
        std::thread::scope(|scope| {
            for step_bytes in [4 << 20, 1 << 20, 65_537, 4096] {
                let (disk, expected) = (&disk, &expected);
                scope.spawn(move || check_steps(disk, expected, step_bytes));
            }
        });
        assert!(content(&disk).unwrap() == expected, "{name}: the holes differ");
        disk.finish().unwrap();
    }
}

fn check_steps(disk: &Qcow2Source, expected: &[u8], step_bytes: usize) {
    let mut buf = vec![0xff; step_bytes];
    for (index, part) in expected.chunks(step_bytes).enumerate() {
        disk.read_exact_at(&mut buf[..part.len()], (index * step_bytes) as u64).unwrap();
        assert!(buf[..part.len()] == *part, "step {index} of {step_bytes} bytes differs");
    }
}

/// The bytes that are not holes.
fn data_bytes(disk: &Qcow2Source) -> u64 {
    let (mut offset, mut bytes) = (0, 0);
    while let Some(data) = disk.next_data(offset).unwrap() {
        bytes += data.end - data.start;
        offset = data.end;
    }
    bytes
}

#[test]
fn reads_plain_and_compressed_images() {
    let images = Images::new();
    images.write_disk("disk.raw", 10_000_384);
    for (name, options) in [
        ("plain.qcow2", ""),
        ("v2.qcow2", " -o compat=0.10"),
        ("small.qcow2", " -o cluster_size=512"),
        ("large.qcow2", " -o cluster_size=2M"),
        ("lazy.qcow2", " -o lazy_refcounts=on,refcount_bits=64"),
        ("zlib.qcow2", " -c"),
        ("zlib-small.qcow2", " -c -o cluster_size=4k"),
        ("zlib-v2.qcow2", " -c -o compat=0.10"),
    ] {
        images.run(&format!("qemu-img convert -f raw -O qcow2{options} disk.raw {name}"));
        images.check(name);
    }
}

#[test]
fn holes_are_holes() {
    let images = Images::new();
    images.run("qemu-img create -q -f qcow2 sparse.qcow2 8T");
    images.write("sparse.qcow2", "qcow2", 7, "5T", "128k");
    images.run("qemu-img create -q -f qcow2 -o preallocation=metadata prepared.qcow2 64M");
    images.run("qemu-img create -q -f qcow2 empty.qcow2 0");

    let sparse = images.open("sparse.qcow2").unwrap();
    let start = 5 << 40;
    assert_eq!(sparse.next_data(0).unwrap(), Some(start..start + (128 << 10)));
    assert_eq!(sparse.next_data(start + (128 << 10)).unwrap(), None);
    let prepared = images.open("prepared.qcow2").unwrap();
    assert!(data_bytes(&prepared) <= 65536, "{}", data_bytes(&prepared));
    assert_eq!(images.open("empty.qcow2").unwrap().next_data(0).unwrap(), None);
    for name in ["prepared.qcow2", "empty.qcow2"] {
        images.check(name);
    }
}

#[test]
fn reads_zeroed_and_discarded_clusters() {
    let images = Images::new();
    images.run("qemu-img create -q -f qcow2 base.qcow2 8M");
    images.write("base.qcow2", "qcow2", 1, "0", "8M");
    images.run("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let top = images.path("top.qcow2");
    let commands =
        ["-c", "write -z 1M 1M", "-c", "write -z -u 3M 64k", "-c", "discard 5M 1M", "-c", "write -P 9 7000k 3k"];
    run("qemu-io", &[&["-d", "unmap", "-f", "qcow2"], &commands[..], &[top.to_str().unwrap()]].concat());
    images.check("top.qcow2");
    assert!(data_bytes(&images.open("top.qcow2").unwrap()) <= 7 << 20);
}

#[test]
fn reads_chains_of_differing_sizes() {
    let images = Images::new();
    images.write_disk("disk.raw", 3_000_320);
    images.run("qemu-img convert -f raw -O qcow2 -c disk.raw base.qcow2");
    images.run("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=4k middle.qcow2 9M");
    images.write("middle.qcow2", "qcow2", 3, "2990k", "5k");
    images.write("middle.qcow2", "qcow2", 4, "8M", "1M");
    images.run("qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 7M");
    images.write("top.qcow2", "qcow2", 5, "100k", "10");
    images.check("top.qcow2");
    images.check("middle.qcow2");

    images.run("qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 taller.qcow2 20M");
    images.write("taller.qcow2", "qcow2", 6, "19M", "1M");
    images.check("taller.qcow2");
}

#[test]
fn reads_raw_backing_files() {
    let images = Images::new();
    images.write_disk("disk.raw", 3_000_001);
    fs::File::options().write(true).open(images.path("disk.raw")).unwrap().set_len(40 << 20).unwrap();
    for compat in ["1.1", "0.10"] {
        images.run(&format!("qemu-img create -q -f qcow2 -b disk.raw -F raw -o compat={compat} {compat}.qcow2 41M"));
        images.write(&format!("{compat}.qcow2"), "qcow2", 5, "1M", "70k");
        images.check(&format!("{compat}.qcow2"));
        let data_bytes = data_bytes(&images.open(&format!("{compat}.qcow2")).unwrap());
        assert!(data_bytes < 4 << 20, "the backing file's hole counts as data: {data_bytes}");
    }
}

#[test]
fn a_raw_backing_file_is_never_taken_for_qcow2() {
    let images = Images::new();
    images.run("qemu-img create -q -f qcow2 disk.raw 1M");
    images.run("qemu-img create -q -f qcow2 -b disk.raw -F raw top.qcow2");
    images.check("top.qcow2");
    assert_eq!(content(&images.open("top.qcow2").unwrap()).unwrap()[..4], *b"QFI\xfb");
}

#[test]
fn backing_files_need_a_recorded_format() {
    let images = Images::new();
    images.run("qemu-img create -q -f raw base.raw 1M");
    images.run("qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2 1M");
    // Newer tools always record it: turn the record into one of an unknown kind.
    let mut image = fs::read(images.path("top.qcow2")).unwrap();
    let record = image.windows(4).position(|word| word == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    image[record..record + 4].copy_from_slice(b"none");
    fs::write(images.path("top.qcow2"), image).unwrap();
    let what = images.refusal("top.qcow2");
    assert!(what.contains("qemu-img rebase -u -f qcow2 -F FORMAT -b base.raw"), "{what}");
    images.run("qemu-img rebase -u -f qcow2 -F raw -b base.raw top.qcow2");
    images.check("top.qcow2");
}

#[test]
fn backing_files_lie_below_allowed_directories() {
    let (images, elsewhere) = (Images::new(), Images::new());
    elsewhere.run("qemu-img create -q -f raw base.raw 1M");
    fs::create_dir(images.path("below")).unwrap();
    images.run("qemu-img create -q -f raw below/base.raw 1M");
    std::os::unix::fs::symlink(elsewhere.path("base.raw"), images.path("link.raw")).unwrap();
    std::os::unix::fs::symlink("below/base.raw", images.path("inner-link.raw")).unwrap();
    let outside = elsewhere.path("base.raw");
    let inside = images.path("below/base.raw");
    let climbing = format!("../{}/base.raw", elsewhere.0.path().file_name().unwrap().to_str().unwrap());

    for base in [outside.to_str().unwrap(), "link.raw", &climbing] {
        images.run(&format!("qemu-img create -q -f qcow2 -b {base} -F raw top.qcow2"));
        let what = images.refusal("top.qcow2");
        assert!(what.contains("outside") && what.contains("--backing-dir"), "{what}");
        assert!(what.contains(outside.to_str().unwrap()), "{what}");
        assert!(!what.contains("convert"), "{what}");
        Qcow2Source::open(&images.path("top.qcow2"), Some(elsewhere.0.path()), false).unwrap();
        Qcow2Source::open(&images.path("top.qcow2"), Some(&images.path("below")), false).err().unwrap();
    }
    for base in [inside.to_str().unwrap(), "below/base.raw", "inner-link.raw"] {
        images.run(&format!("qemu-img create -q -f qcow2 -b {base} -F raw top.qcow2"));
        images.check("top.qcow2");
    }
    // The rule is for the whole chain, not for its first link.
    images.run(&format!("qemu-img create -q -f qcow2 -b {} -F raw middle.qcow2", outside.display()));
    images.run("qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2");
    assert!(images.refusal("top.qcow2").contains("outside"));
}

#[test]
fn protocols_missing_files_and_loops_are_refused() {
    let images = Images::new();
    for base in ["nbd://127.0.0.1:1/x", "json:{\"driver\":\"raw\"}", "file:base.raw"] {
        images.run(&format!("qemu-img create -q -f qcow2 -u -b {base} -F raw top.qcow2 1M"));
        assert!(images.refusal("top.qcow2").contains("not a plain path"));
    }
    images.run("qemu-img create -q -f qcow2 -u -b none.raw -F raw top.qcow2 1M");
    let error = images.open("top.qcow2").err().unwrap();
    assert!(matches!(&error, Error::NotFound { what } if what.contains("none.raw")), "{error}");
    images.run("qemu-img create -q -f qcow2 -u -b . -F raw top.qcow2 1M");
    assert!(matches!(images.open("top.qcow2"), Err(Error::Invalid { .. })));
    images.run("qemu-img create -q -f qcow2 -u -b b.qcow2 -F vmdk top.qcow2 1M");
    images.run("qemu-img create -q -f qcow2 b.qcow2 1M");
    assert!(images.refusal("top.qcow2").contains("vmdk"));

    images.run("qemu-img create -q -f qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 1M");
    images.run("qemu-img create -q -f qcow2 -u -b a.qcow2 -F qcow2 b.qcow2 1M");
    let error = images.open("a.qcow2").err().unwrap();
    assert!(matches!(&error, Error::Invalid { what } if what.contains("its own backing file")), "{error}");
}

#[test]
fn chains_have_a_limit() {
    let images = Images::new();
    images.run("qemu-img create -q -f qcow2 -o cluster_size=4k 0.qcow2 1M");
    images.write("0.qcow2", "qcow2", 7, "0", "1M");
    let new = "qemu-img create -q -f qcow2 -u -o cluster_size=4k";
    for depth in 1..200 {
        images.run(&format!("{new} -b {}.qcow2 -F qcow2 {depth}.qcow2 1M", depth - 1));
    }
    assert_eq!(content(&images.open("199.qcow2").unwrap()).unwrap(), vec![7; 1 << 20]);
    images.run(&format!("{new} -b 199.qcow2 -F qcow2 200.qcow2 1M"));
    assert!(images.refusal("200.qcow2").contains("too long a chain"));
}

#[test]
fn unsupported_features_come_with_the_line_that_helps() {
    let images = Images::new();
    images.write_disk("disk.raw", 1 << 20);
    images.run("qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd disk.raw zstd.qcow2");
    images.run("qemu-img convert -f raw -O qcow2 -o extended_l2=on disk.raw extended.qcow2");
    images.run("qemu-img create -q -f qcow2 -o data_file=data.raw external.qcow2 1M");
    images.run("qemu-img create -q -f qcow2 -b zstd.qcow2 -F qcow2 top.qcow2");
    for (name, words) in [
        ("zstd.qcow2", "compression type"),
        ("extended.qcow2", "extended L2"),
        ("external.qcow2", "external data file"),
        ("top.qcow2", "zstd.qcow2 is with a compression type"),
    ] {
        let what = images.refusal(name);
        assert!(what.contains(words), "{what}");
        let line = what.split('`').nth(1).expect("there is a command in it").to_owned();
        images.run(&line);
        let converted = line.rsplit('/').next().unwrap();
        images.run(&format!("qemu-img compare -q -f qcow2 -F qcow2 {name} {converted}"));
        images.check(converted);
    }
    // Who makes us say "convert it" must not get a file of the host's into the copy.
    images.run("qemu-img create -q -f qcow2 -u -b /etc/hostname -F raw -o compression_type=zstd evil.qcow2 1M");
    assert!(!images.refusal("evil.qcow2").contains("convert"));
}

#[test]
fn hints_survive_a_shell() {
    assert_eq!(shell_word("/a/b-1.qcow2"), "/a/b-1.qcow2");
    assert_eq!(shell_word("my disk's"), r"'my disk'\''s'");
    assert!(convert_hint("my disk.qcow2").contains("'my disk.qcow2' 'my disk.converted.qcow2'"));
}

#[test]
fn caches_are_dropped_without_harm() {
    let images = Images::new();
    images.write_disk("disk.raw", 4 << 20);
    images.run("qemu-img convert -f raw -O qcow2 -c -o cluster_size=4k disk.raw a.qcow2");
    let expected = fs::read(images.path("disk.raw")).unwrap();
    let disk = images.open("a.qcow2").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..50).for_each(|_| disk.imago_bytes.store(IMAGO_BYTES_MAX + 1, Ordering::Relaxed)));
        for _ in 0..3 {
            scope.spawn(|| check_steps(&disk, &expected, 10_000));
        }
    });
    disk.imago_bytes.store(IMAGO_BYTES_MAX + 1, Ordering::Relaxed);
    check_steps(&disk, &expected, 1 << 20);
    assert!(disk.imago_bytes.load(Ordering::Relaxed) < IMAGO_BYTES_MAX);
}

#[test]
fn a_truncated_image_is_an_error() {
    let images = Images::new();
    images.write_disk("disk.raw", 4 << 20);
    for options in ["-o cluster_size=4k", "-c -o cluster_size=4k"] {
        images.run(&format!("qemu-img convert -f raw -O qcow2 {options} disk.raw whole.qcow2"));
        let whole = fs::read(images.path("whole.qcow2")).unwrap();
        for part in 0..64 {
            // One cluster less than a part, because a file may end within its last cluster.
            let length = (whole.len() * (part + 1) / 64).saturating_sub(8192);
            fs::write(images.path("cut.qcow2"), &whole[..length]).unwrap();
            let result = images.open("cut.qcow2").and_then(|disk| content(&disk));
            assert!(matches!(result, Err(Error::Invalid { .. })), "{length} of {} bytes: {result:?}", whole.len());
        }
    }
}

/// Reads an image that may claim to be of any size, for a while.
fn read_some(disk: &Qcow2Source) -> Result<()> {
    let mut buf = vec![0; 1 << 20];
    let mut offset = 0;
    for _ in 0..16 {
        let Some(data) = disk.next_data(offset)? else { break };
        assert!(offset <= data.start && data.start < data.end && data.end <= disk.size_bytes());
        let length = buf.len().min((data.end - data.start) as usize);
        disk.read_exact_at(&mut buf[..length], data.start)?;
        offset = data.start + length as u64;
    }
    disk.finish()
}

#[test]
fn changed_images_give_errors_or_other_bytes_but_no_panic() {
    let images = Images::new();
    images.write_disk("disk.raw", 256 << 10);
    images.run("qemu-img convert -f raw -O qcow2 -o cluster_size=512 disk.raw plain.qcow2");
    images.run("qemu-img convert -f raw -O qcow2 -c -o cluster_size=4k disk.raw zlib.qcow2");
    images.run("qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 -o cluster_size=4k top.qcow2 1M");
    images.write("top.qcow2", "qcow2", 9, "8k", "100k");
    for name in ["plain.qcow2", "zlib.qcow2", "top.qcow2"] {
        let whole = fs::read(images.path(name)).unwrap();
        let file = fs::File::options().write(true).open(images.path(name)).unwrap();
        // Bits of the header and its extensions, then fewer of tables and data.
        for bit in (0..600 * 8).step_by(3).chain((600 * 8..whole.len() * 8).step_by(489)) {
            let byte = bit / 8;
            file.write_all_at(&[whole[byte] ^ 1 << (bit % 8)], byte as u64).unwrap();
            let result = images.open(name).and_then(|disk| read_some(&disk));
            file.write_all_at(&whole[byte..=byte], byte as u64).unwrap();
            if let Err(error) = result {
                assert!(!matches!(error, Error::Io { .. }), "bit {bit} of {name}: {error}");
            }
        }
    }
}
