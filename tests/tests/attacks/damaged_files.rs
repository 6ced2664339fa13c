//! Every kind of file of a store, harmed in every way: what is damaged is named, down to image and byte range, or known
//! to be harmless; what is read is right or an error; the rest stays readable; and `vmstore repair`, alone or from a
//! sound copy, leads back to a store that is sound. Which harm nothing but a person can notice is in the table, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tests::devices::tool;
use tests::images::{self, Rng};
use tests::torture::Torture;
use tests::{Mounted, Serving, Vmfs, Vmstore, stderr};

const NIGHTS: [&str; 3] = ["20261118T020000Z", "20261119T020000Z", "20261120T020000Z"];
const IMAGE_BYTES: u64 = 5 << 20;
/// Cases of the short form: each kind of file a few times.
const CASES_SHORT: u64 = 60;
/// Damage found.
const DAMAGE: i32 = 3;

/// A kind of file, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pack(Part),
    Config,
    ConfigCopy,
    CatalogFile,
    Tombstone,
    DamagedList,
    BootOrder,
    Lease,
    Lock,
    Reserve,
    Tokens,
    Remotes,
    ServerKey,
    Index,
}

/// A part of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Header,
    RecordHeader,
    Payload,
    Table,
    Footer,
}

const KINDS: [Kind; 18] = [
    Kind::Pack(Part::Header),
    Kind::Pack(Part::RecordHeader),
    Kind::Pack(Part::Payload),
    Kind::Pack(Part::Table),
    Kind::Pack(Part::Footer),
    Kind::Config,
    Kind::ConfigCopy,
    Kind::CatalogFile,
    Kind::Tombstone,
    Kind::DamagedList,
    Kind::BootOrder,
    Kind::Lease,
    Kind::Lock,
    Kind::Reserve,
    Kind::Tokens,
    Kind::Remotes,
    Kind::ServerKey,
    Kind::Index,
];

/// The damage done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Flip,
    Truncate,
    Delete,
    Zeros,
    Swap,
    Append,
}

const HARMS: [Harm; 6] = [Harm::Flip, Harm::Truncate, Harm::Delete, Harm::Zeros, Harm::Swap, Harm::Append];

/// The required outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// `verify` names the file, and `repair` makes the store sound, from a copy if not by itself.
    Noticed,
    /// The store can't be opened, which names the file and `vmstore repair`; that mends it.
    Refused,
    /// As refused, or nothing is wrong: the harm was to what users may write there themselves.
    RefusedOrUsers,
    /// `verify` calls the store sound and everything restores: the file says nothing about what is stored, or is made
    /// anew by itself.
    Harmless,
    /// As harmless, but the commands that need the file name it, unless it still can be read: then it may say something
    /// else. It has no checksum, as users edit it.
    Configuration,
}

impl Kind {
    /// The table.
    #[expect(clippy::match_same_arms, reason = "each line has its own reason")]
    fn outcome(self, harm: Harm) -> Outcome {
        match (self, harm) {
            (Self::Pack(_) | Self::CatalogFile, _) => Outcome::Noticed,
            // It reads like an entry whose catalog file was lost. Its content means nothing.
            (Self::Tombstone, Harm::Delete) => Outcome::Noticed,
            // A flip or zeros in [defaults] may leave another setting, or a comment.
            (Self::Config, Harm::Flip | Harm::Zeros | Harm::Append | Harm::Truncate) => Outcome::RefusedOrUsers,
            (Self::Config, _) => Outcome::Refused,
            // It is another store's then. Otherwise it is written again when the store is opened.
            (Self::ConfigCopy, Harm::Swap) => Outcome::Refused,
            // Without it the store is only not known to be damaged: nothing is trusted for that.
            (Self::DamagedList, Harm::Delete) => Outcome::Noticed,
            (Self::DamagedList, _) => Outcome::Refused,
            (Self::Tokens | Self::Remotes | Self::ServerKey, _) => Outcome::Configuration,
            (Self::ConfigCopy | Self::Tombstone | Self::BootOrder | Self::Lease | Self::Lock, _) => Outcome::Harmless,
            (Self::Reserve | Self::Index, _) => Outcome::Harmless,
        }
    }
}

/// A store with snapshots that share content, one that was removed, and everything else that a store can have; another
/// store; and what the snapshots hold.
struct Template {
    place: tests::Site,
    images: BTreeMap<String, Vec<u8>>,
}

impl Template {
    fn new() -> Self {
        let place = tests::Site::new();
        let store = Vmstore::new(place.path("store"));
        let init = ["init", "--no-reserve", "--chunk-avg", "8KiB"];
        store.run(init);
        let mut template = Self { place, images: BTreeMap::new() };
        for (image, seed) in [("web01", 1), ("db", 20)] {
            let path = |night: usize| template.place.path(&format!("{image}-{night}.raw"));
            images::make(&path(0), IMAGE_BYTES, seed);
            for night in 1..NIGHTS.len() {
                images::make_next(&path(night), &path(night - 1), 128 << 10, seed + night as u64);
            }
            for (night, time) in NIGHTS.iter().enumerate() {
                store.run(["ingest", path(night).to_str().unwrap(), "--image", image, "--time", time]);
                template.images.insert(format!("{image}@{time}"), fs::read(path(night)).unwrap());
            }
        }
        for removed in [format!("db@{}", NIGHTS[0]), format!("web01@{}", NIGHTS[0])] {
            store.run(["remove", &removed]);
            template.images.remove(&removed);
        }
        Self::add_the_rest(&store);
        store.run(["verify"]);
        copy_dir(&template.place.path("store"), &template.sound());
        template
    }

    /// A store that has all of it.
    fn sound(&self) -> PathBuf {
        self.place.path("sound")
    }

    /// Files that are not made by backups.
    fn add_the_rest(store: &Vmstore) {
        let snapshot = store.json(["show", "web01"]);
        let entry = snapshot["entry"].as_str().unwrap();
        fs::create_dir_all(store.store().join("boot")).unwrap();
        fs::write(store.store().join(format!("boot/{entry}.order")), "vmstore-boot-order 1\n0 4096\n").unwrap();
        // Left by a killed reader.
        fs::write(store.store().join("leases/00000000000000aa.lease"), "vmstore-lease 1\n").unwrap();
        fs::write(store.store().join("reserve"), vec![0; 1 << 16]).unwrap();
        store.run(["token", "add", "site-a", "--role", "push"]);
        store.run(["remote", "add", "site-b", "/srv/nowhere"]);
        drop(Serving::start(store, &["--listen", "tls://127.0.0.1:0"]));
    }

    /// A copy to be harmed.
    fn copy(&self) -> Site<'_> {
        let place = tests::Site::new();
        copy_dir(&self.place.path("store"), &place.path("store"));
        Site { vmstore: Vmstore::new(place.path("store")), place, template: self }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

/// A store that is harmed.
struct Site<'a> {
    vmstore: Vmstore,
    place: tests::Site,
    template: &'a Template,
}

/// The findings of `verify` or `repair`.
struct Report {
    code: i32,
    json: Value,
}

impl Report {
    /// The snapshots of which ranges are named.
    fn hurt(&self) -> BTreeSet<String> {
        let damage = self.json["damage"].as_array().or(self.json["verify"]["damage"].as_array()).unwrap();
        let name = |range: &Value| {
            assert!(range["bytes"].as_u64().unwrap() > 0 && range["offset_bytes"].is_u64(), "{range}");
            range["snapshot"].as_str().unwrap().to_owned()
        };
        damage.iter().map(name).collect()
    }
}

impl Site<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.vmstore.store().join(name)
    }

    fn report(&self, args: &[&str]) -> Report {
        let output = self.vmstore.command(args).arg("--json").output().unwrap();
        let json = serde_json::from_slice(&output.stdout);
        let json = json.unwrap_or_else(|error| panic!("{args:?}: {error}: {}", stderr(&output)));
        Report { code: output.status.code().unwrap(), json }
    }

    /// Restores everything: each snapshot is right, or an error that names it and never a wrong byte. Returns those
    /// that are right.
    fn readable(&self) -> BTreeSet<String> {
        let mut readable = BTreeSet::new();
        for (name, image) in &self.template.images {
            let output = self.vmstore.command(["restore", name, "-"]).output().unwrap();
            assert!(image.starts_with(&output.stdout), "wrong bytes of {name}");
            if output.status.success() {
                assert_eq!(output.stdout.len(), image.len(), "{name} ended early");
                readable.insert(name.clone());
            } else {
                let said = stderr(&output);
                assert!(said.contains("damaged") || said.contains("not found"), "{name}: {said}");
            }
        }
        readable
    }

    fn all(&self) -> BTreeSet<String> {
        self.template.images.keys().cloned().collect()
    }

    /// The files of a kind, the one to harm first.
    fn files(&self, kind: Kind, rng: &mut Rng) -> Vec<PathBuf> {
        let below = |dir: &str, suffix: &str| {
            let mut names = self.vmstore.files(dir, suffix);
            names.sort();
            names.into_iter().map(|name| self.path(dir).join(name)).collect::<Vec<_>>()
        };
        let mut files = match kind {
            Kind::Pack(_) => below("packs", ".pack"),
            Kind::CatalogFile => below("catalog/web01", ".snap"),
            Kind::Tombstone => [below("catalog/web01", ".removed"), below("catalog/db", ".removed")].concat(),
            Kind::Index => below("index", ""),
            Kind::BootOrder => below("boot", ".order"),
            Kind::Lease => below("leases", ".lease"),
            Kind::Config => vec![self.path("config.toml")],
            Kind::ConfigCopy => vec![self.path("config.toml.copy")],
            Kind::DamagedList => vec![self.path("damaged")],
            Kind::Lock => vec![self.path("lock")],
            Kind::Reserve => vec![self.path("reserve")],
            Kind::Tokens => vec![self.path("tokens.toml")],
            Kind::Remotes => vec![self.path("remotes.toml")],
            Kind::ServerKey => vec![self.path("tls/key.pem")],
        };
        assert!(!files.is_empty(), "{kind:?}");
        let first = rng.below(files.len() as u64) as usize;
        files.rotate_left(first);
        files
    }

    /// Another file of its kind, to be swapped with the first.
    fn partner(&self, files: &[PathBuf]) -> PathBuf {
        if let Some(other) = files.get(1) {
            return other.clone();
        }
        let other = self.path("other");
        let name = files[0].file_name().unwrap().to_str().unwrap();
        match name {
            "config.toml" | "config.toml.copy" => {
                let foreign = TempDir::new().unwrap();
                let foreign = Vmstore::init_in(foreign.path());
                fs::copy(foreign.store().join("config.toml"), &other).unwrap();
            }
            _ => fs::write(&other, "of another store\n").unwrap(),
        }
        other
    }

    fn harm(&self, kind: Kind, harm: Harm, rng: &mut Rng) -> PathBuf {
        let files = self.files(kind, rng);
        let path = files[0].clone();
        let bytes = fs::read(&path).unwrap();
        let (start, end) = part(kind, &bytes, rng);
        let at = start + rng.below((end - start).max(1) as u64) as usize;
        let file = || File::options().write(true).open(&path).unwrap();
        match harm {
            Harm::Flip if bytes.is_empty() => file().write_all_at(&[1], 0).unwrap(),
            Harm::Flip => file().write_all_at(&[bytes[at] ^ 1 << rng.below(8)], at as u64).unwrap(),
            Harm::Truncate => file().set_len(at as u64).unwrap(),
            Harm::Delete => fs::remove_file(&path).unwrap(),
            Harm::Zeros => file().write_all_at(&vec![0; end - start], start as u64).unwrap(),
            Harm::Append => file().write_all_at(&rng.noise(300), bytes.len() as u64).unwrap(),
            Harm::Swap => {
                let (other, aside) = (self.partner(&files), self.path("aside"));
                fs::rename(&path, &aside).unwrap();
                fs::rename(&other, &path).unwrap();
                fs::rename(&aside, &other).unwrap();
                let _ = fs::remove_file(self.path("other"));
            }
        }
        path
    }

    /// Repairs by itself, then from a sound copy; the store must be sound then.
    fn repair(&self, before: &BTreeSet<String>) {
        let alone = self.report(&["repair"]);
        let readable = self.readable();
        assert!(readable.is_superset(before), "a repair lost {:?}", before - &readable);
        let all = self.all();
        assert_eq!(alone.code == 0, readable == all, "sound, or not all can be read: {}", alone.json);
        let hurt = alone.hurt();
        assert!((&all - &readable).is_subset(&hurt), "{hurt:?} were named: {}", alone.json);
        if alone.code != 0 {
            assert_eq!(alone.code, DAMAGE, "{}", alone.json);
            let from = self.report(&["repair", "--from", self.template.sound().to_str().unwrap()]);
            assert_eq!(from.code, 0, "from a sound copy: {}", from.json);
            assert!(from.json["fetched"]["records"].as_u64().unwrap() > 0, "{}", from.json);
        }
        self.vmstore.run(["verify"]);
        assert_eq!(self.readable(), all, "after a repair from a sound copy");
        self.vmstore.run(["gc"]);
        let again = self.report(&["repair"]);
        assert_eq!((again.code, again.json["mended"].as_array().unwrap().len()), (0, 0), "{}", again.json);
        assert_eq!(self.readable(), all, "after gc");
    }

    fn judge(&self, kind: Kind, harm: Harm, path: &Path) {
        match kind.outcome(harm) {
            Outcome::Noticed => self.judge_noticed(kind, harm, path),
            Outcome::Refused => self.judge_refused(path),
            Outcome::RefusedOrUsers => {
                let listed = self.vmstore.command(["list"]).output().unwrap();
                if listed.status.success() { self.judge_harmless(kind) } else { self.judge_refused(path) }
            }
            Outcome::Harmless => self.judge_harmless(kind),
            Outcome::Configuration => {
                let file = path.file_name().unwrap().to_str().unwrap();
                for (needs, command) in [("tokens.toml", ["token", "list"]), ("remotes.toml", ["remote", "list"])] {
                    let output = self.vmstore.command(command).output().unwrap();
                    let said = stderr(&output);
                    assert!(output.status.success() || (needs == file && said.contains(file)), "{command:?}: {said}");
                }
                if kind == Kind::ServerKey {
                    self.judge_key();
                }
                self.judge_harmless(kind);
            }
        }
    }

    /// A server either names its key, or makes another, which clients that have pinned the old one refuse.
    fn judge_key(&self) {
        let mut serving = self.vmstore.command(["serve", "--listen", "tls://127.0.0.1:0"]);
        let mut serving = serving.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(serving.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("key.pem") || said.contains("listening on"), "{said}");
        serving.kill().unwrap();
        serving.wait().unwrap();
    }

    fn judge_noticed(&self, kind: Kind, harm: Harm, path: &Path) {
        let before = self.readable();
        let report = self.report(&["verify"]);
        if report.json["healed_records"].as_u64() > Some(0) && before == self.all() {
            // It is whole elsewhere, such as in the catalog file that it repeats.
            return self.repair(&before);
        }
        assert_eq!(report.code, DAMAGE, "went unnoticed: {}", report.json);
        let text = report.json.to_string();
        match kind {
            Kind::CatalogFile | Kind::Tombstone => {
                let time = path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap();
                assert!(text.contains(time), "{time} is not in {text}");
            }
            Kind::DamagedList => {}
            _ => {
                let pack = path.file_stem().unwrap().to_str().unwrap();
                assert!(text.contains(pack), "{pack} is not in {text}");
            }
        }
        let all = self.all();
        let (unread, hurt) = (&all - &before, report.hurt());
        // Those without a catalog file can't be walked.
        if kind == Kind::CatalogFile {
            for name in &unread {
                assert!(text.contains(name), "{name} is not in {text}");
            }
        } else {
            assert_eq!(unread, hurt, "ranges are named of what can't be read, and only of that ({harm:?})");
        }
        self.repair(&before);
    }

    fn judge_refused(&self, path: &Path) {
        let file = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".copy");
        for command in [&["verify"][..], &["gc"], &["restore", self.all().first().unwrap(), "-"]] {
            let output = self.vmstore.command(command).output().unwrap();
            let said = stderr(&output);
            assert!(!output.status.success(), "{command:?} went well");
            assert!(said.contains(file) && said.contains("vmstore repair"), "{command:?}: {said}");
        }
        let told = self.report(&["repair", "--dry-run"]);
        assert_eq!((told.code, told.json["dry_run"].as_bool()), (DAMAGE, Some(true)), "{}", told.json);
        self.repair(&BTreeSet::new());
    }

    fn judge_harmless(&self, kind: Kind) {
        let verified = self.report(&["verify"]);
        if kind == Kind::Index && verified.code == DAMAGE {
            // The missing part was restored, which is reported once.
            let problems = verified.json["problems"].to_string();
            assert!(problems.contains("the index") && verified.hurt().is_empty(), "{}", verified.json);
        } else {
            assert_eq!(verified.code, 0, "{}", verified.json);
        }
        self.vmstore.run(["verify"]);
        assert_eq!(self.readable(), self.all());
        let repaired = self.report(&["repair"]);
        assert_eq!(repaired.code, 0, "{}", repaired.json);
        assert_eq!(self.readable(), self.all());
    }
}

/// Which bytes of a file are to be harmed.
fn part(kind: Kind, bytes: &[u8], rng: &mut Rng) -> (usize, usize) {
    let Kind::Pack(part) = kind else { return (0, bytes.len().min(4096)) };
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let footer = bytes.len() - 64;
    let table = word(footer + 16);
    let records = (footer - table) / 84;
    let nth = rng.below(records as u64) as usize;
    let record = word(table + nth * 84 + 64) & 0xffff_ffff;
    let stored = word(table + nth * 84 + 68) & 0xffff_ffff;
    match part {
        Part::Header => (0, 64),
        // Reserved bytes at the end of a header are covered by its checksum as well.
        Part::RecordHeader => (record, record + 96),
        Part::Payload => (record + 96, record + 96 + stored),
        Part::Table => (table, footer),
        Part::Footer => (footer, bytes.len()),
    }
}

#[test]
fn every_kind_of_file_is_harmed_in_every_way() {
    let template = Template::new();
    let torture = Torture::begin("damage");
    let mut tried = 0;
    let pairs: Vec<(Kind, Harm)> = KINDS.iter().flat_map(|kind| HARMS.map(|harm| (*kind, harm))).collect();
    // Another order for each seed, so that the short form tries others each time.
    let mut order = pairs.clone();
    let mut rng = torture.rng(u64::MAX);
    (1..order.len()).rev().for_each(|at| order.swap(at, rng.below(at as u64 + 1) as usize));
    while torture.goes_on(tried, CASES_SHORT) {
        let (kind, harm) = order[tried as usize % order.len()];
        let mut rng = torture.rng(tried);
        let site = template.copy();
        if kind == Kind::DamagedList {
            // A part that is whole elsewhere, such as an entry, is healed, and nothing comes onto the list.
            while site.report(&["verify"]).code != DAMAGE {
                site.harm(Kind::Pack(Part::Payload), Harm::Flip, &mut rng);
            }
        }
        let path = site.harm(kind, harm, &mut rng);
        println!("{tried}: {kind:?} {harm:?} of {}", path.display());
        site.judge(kind, harm, &path);
        tried += 1;
    }
    torture.end(tried, "harms");
}

#[test]
fn a_socket_that_is_a_file_is_refused_by_name() {
    let template = Template::new();
    let site = template.copy();
    // Left by an owner that has ended.
    fs::remove_file(site.path("owner.sock")).unwrap();
    fs::write(site.path("owner.sock"), "mine").unwrap();
    let said = site.vmstore.through_owner().expect_exit(6, ["verify"]);
    assert!(said.contains("owner.sock"), "{said}");
    assert_eq!(fs::read(site.path("owner.sock")).unwrap(), b"mine");
    fs::remove_file(site.path("owner.sock")).unwrap();
    site.vmstore.through_owner().run(["verify"]);
}

/// A clone's content is nowhere else: damage can only be noticed.
#[test]
fn a_harmed_clone_is_noticed_where_it_can_be() {
    let template = Template::new();
    let site = template.copy();
    let vmstore = site.vmstore.through_owner();
    let vmfs = Vmfs::beside(&vmstore);
    vmfs.run(["clone", "create", "test", "web01"]);
    {
        let mounted = Mounted::start(&vmstore, site.place.path("mnt"));
        let disk = File::options().write(true).open(mounted.clone_file("test")).unwrap();
        disk.write_all_at(&[7; 8192], 4096).unwrap();
        disk.sync_all().unwrap();
    }
    let clone = site.path("clones/test");
    let sound = |name: &str| fs::read(clone.join(name)).unwrap();
    let commit = |image: &str| vmfs.command(["clone", "commit", "test", "--image", image]).output().unwrap();
    for name in ["1.map", "clone.json"] {
        let bytes = sound(name);
        let mut flipped = bytes.clone();
        flipped[0] ^= 4;
        let harms = [flipped, Vec::from(&bytes[..bytes.len() / 3]), vec![b'x'; bytes.len()]];
        for (nth, harmed) in harms.into_iter().enumerate() {
            fs::write(clone.join(name), harmed).unwrap();
            let output = commit("never");
            let said = stderr(&output);
            assert!(!output.status.success() && said.contains("test"), "{name}, harm {nth}: {said}");
        }
        fs::write(clone.join(name), bytes).unwrap();
    }
    assert!(commit("committed").status.success());
    vmstore.run(["verify"]);
}
