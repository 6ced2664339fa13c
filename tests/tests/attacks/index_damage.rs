//! Harm to the index, whose files RocksDB keeps: files deleted, cut short, altered, set back, one by one and all of
//! them. Whatever is run first works or says what to do, and no harm to what is derived costs a byte of what is stored.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tests::devices::tool;
use tests::images::{self, Rng};
use tests::torture::Torture;
use tests::{Vmstore, stderr};

/// Harms that are tried in the short form.
const SHORT_HARMS: u64 = 45;
const MIB: u64 = 1 << 20;
const IMAGE_BYTES: u64 = 2 * MIB;
/// Images by the day on which they were stored; `x` was removed and collected since.
const IMAGES: [(&str, u32); 6] = [("a", 1), ("x", 2), ("b", 3), ("a", 4), ("c", 5), ("b", 6)];

/// The damage done to the index.
#[derive(Clone, Debug)]
enum Harm {
    Delete(PathBuf),
    /// To so many parts of a hundred.
    Truncate(PathBuf, u64),
    /// At so many parts of a hundred.
    Flip(PathBuf, u64),
    /// One file is as it was earlier.
    SetBack(PathBuf, usize),
    /// All are as they were earlier.
    SetAllBack(usize),
    Missing,
    Empty,
    /// There is a file in place of the directory.
    File,
    Foreign,
}

/// A store with a history, and copies of its index from each day.
struct Site {
    dir: TempDir,
    vmstore: Vmstore,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vmstore = Vmstore::init_in(dir.path());
        let site = Self { dir, vmstore };
        for (day, (image, _)) in IMAGES.iter().enumerate() {
            let before = IMAGES[..day].iter().rposition(|(other, _)| other == image);
            match before {
                Some(before) => images::make_next(&site.image(day), &site.image(before), 256 << 10, day as u64),
                None => images::make(&site.image(day), IMAGE_BYTES, day as u64),
            }
            site.ingest(day);
            if day == 3 {
                site.vmstore.run(["remove", "x"]);
                site.vmstore.run(["gc"]);
            }
            copy_tree(&site.index(), &site.earlier(day));
        }
        site.vmstore.run(["remove", "a@20261101"]);
        site.vmstore.run(["gc"]);
        copy_tree(site.vmstore.store(), &site.path("fresh"));
        let foreign = Vmstore::new(site.path("foreign"));
        foreign.run(["init", "--no-reserve"]);
        foreign.run(["stats"]);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn index(&self) -> PathBuf {
        self.vmstore.store().join("index")
    }

    /// The copy of the index from the end of a day.
    fn earlier(&self, day: usize) -> PathBuf {
        self.path(&format!("index-{day}"))
    }

    fn image(&self, day: usize) -> PathBuf {
        self.path(&format!("image-{day}"))
    }

    fn ingest_args(&self, day: usize) -> Vec<String> {
        let path = self.image(day).into_os_string().into_string().unwrap();
        ["ingest", &path, "--image", IMAGES[day].0, "--time", &time(day)].map(str::to_owned).to_vec()
    }

    fn ingest(&self, day: usize) {
        self.vmstore.run(self.ingest_args(day));
    }

    fn assert_holds(&self, day: usize) {
        self.vmstore.assert_holds(&format!("{}@{}", IMAGES[day].0, time(day)), &self.image(day));
    }

    fn all_harms(&self) -> Vec<Harm> {
        let mut harms: Vec<Harm> = (0..IMAGES.len()).map(Harm::SetAllBack).collect();
        harms.extend([Harm::Missing, Harm::Empty, Harm::File, Harm::Foreign]);
        for file in fs::read_dir(self.path("fresh/index")).unwrap() {
            let name = PathBuf::from(file.unwrap().file_name());
            harms.push(Harm::Delete(name.clone()));
            harms.extend([0, 30, 60, 99].map(|part| Harm::Truncate(name.clone(), part)));
            harms.extend([0, 20, 50, 80, 99].map(|part| Harm::Flip(name.clone(), part)));
            let days = (0..IMAGES.len()).filter(|day| self.earlier(*day).join(&name).is_file());
            harms.extend(days.map(|day| Harm::SetBack(name.clone(), day)));
        }
        harms
    }

    /// Runs one command after the harm: it works, or says that the index is damaged and what to do; then the next
    /// works.
    fn run_first(&self, args: &[String]) -> String {
        let output = self.vmstore.command(args).output().unwrap();
        let said = stderr(&output);
        if output.status.success() {
            return format!("{} works", args[0]);
        }
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        // Packs that are gone but listed in an old index are reported once.
        let tells_missing = args[0] == "verify" && String::from_utf8_lossy(&output.stdout).contains("is missing");
        let tells_index = said.contains("index") && said.contains("vmstore reindex");
        assert!(
            output.status.code() == Some(3) && (tells_missing || tells_index),
            "{args:?}: {}: {said}",
            output.status
        );
        let again = self.vmstore.command(args).output().unwrap();
        assert!(again.status.success(), "{args:?}, once more: {}: {}", again.status, stderr(&again));
        format!("{} works the second time", args[0])
    }

    /// Does harm, and shows that nothing is lost by it.
    fn try_harm(&self, harm: &Harm, rng: &mut Rng) -> String {
        copy_tree(&self.path("fresh"), self.vmstore.store());
        harm.apply(self);
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let first = match rng.below(8) {
            0 => words(&["verify"]),
            1 => words(&["gc"]),
            2 => words(&["stats"]),
            3 => words(&["remove", "c"]),
            4 => words(&["prune", "--keep-last", "9"]),
            5 => words(&["reindex"]),
            6 => words(&["diff", "b@20261103", "b@20261106"]),
            // Its chunks are gone, whatever an old index says.
            _ => self.ingest_args(1),
        };
        let outcome = self.run_first(&first);
        let there: Vec<usize> = [2, 3, 4, 5].into_iter().filter(|day| *day != 4 || first[0] != "remove").collect();
        let assert_all_there = || there.iter().for_each(|day| self.assert_holds(*day));
        assert_all_there();
        if first[0] != "ingest" {
            self.ingest(1);
        }
        self.assert_holds(1);
        self.vmstore.run(["gc"]);
        // The snapshots collected before, and those collected for, once more.
        self.ingest(0);
        assert_all_there();
        self.run_first(&words(&["verify"]));
        self.vmstore.run(["gc"]);
        let again = self.vmstore.json(["gc"]);
        for what in ["freed_bytes", "removed_packs", "rewritten_packs", "missing_records"] {
            assert_eq!(again[what], 0, "{again}");
        }
        self.assert_holds(0);
        self.assert_holds(1);
        assert_all_there();
        self.vmstore.run(["verify"]);
        outcome
    }
}

fn time(day: usize) -> String {
    format!("202611{:02}T020000Z", IMAGES[day].1)
}

fn copy_tree(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

impl Harm {
    fn apply(&self, site: &Site) {
        let index = site.index();
        let open = |name: &Path| {
            let file = fs::File::options().read(true).write(true).open(index.join(name)).unwrap();
            let bytes = file.metadata().unwrap().len();
            (file, bytes)
        };
        match self {
            Self::Delete(name) => fs::remove_file(index.join(name)).unwrap(),
            Self::Truncate(name, part) => {
                let (file, bytes) = open(name);
                file.set_len(bytes * part / 100).unwrap();
            }
            Self::Flip(name, part) => {
                let (file, bytes) = open(name);
                let mut byte = [0];
                if bytes > 0 {
                    file.read_exact_at(&mut byte, bytes * part / 100).unwrap();
                    file.write_all_at(&[byte[0] ^ 0x10], bytes * part / 100).unwrap();
                }
            }
            Self::SetBack(name, day) => drop(fs::copy(site.earlier(*day).join(name), index.join(name)).unwrap()),
            Self::SetAllBack(day) => copy_tree(&site.earlier(*day), &index),
            Self::Missing => fs::remove_dir_all(index).unwrap(),
            Self::Empty => {
                fs::remove_dir_all(&index).unwrap();
                fs::create_dir(index).unwrap();
            }
            Self::File => {
                fs::remove_dir_all(&index).unwrap();
                fs::write(index, "no index").unwrap();
            }
            Self::Foreign => copy_tree(&site.path("foreign/index"), &index),
        }
    }
}

#[test]
fn a_damaged_index_costs_no_snapshot() {
    let torture = Torture::begin("index damage");
    let site = Site::new();
    let mut harms = site.all_harms();
    println!("{} harms are possible", harms.len());
    let mut rng = torture.rng(0);
    // The whole directory's first: they are few, and the worst.
    let whole = IMAGES.len() + 4;
    for at in (whole + 1..harms.len()).rev() {
        harms.swap(at, whole + rng.below((at - whole) as u64 + 1) as usize);
    }
    let mut tried = 0;
    while torture.goes_on(tried, SHORT_HARMS) {
        let harm = &harms[tried as usize % harms.len()];
        println!("{harm:?}");
        println!("    {}", site.try_harm(harm, &mut torture.rng(tried + 1)));
        tried += 1;
    }
    torture.end(tried, "harms");
}
