//! Limits of a token's holder, with the program or a client written by hand, and the secrecy of tokens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chunkstore::format::{ChunkId, Codec, EntryId, Kind as RecordKind, Record, RecordId};
use jiff::{SignedDuration, Timestamp};
use replicate::rpc::wire::{
    Fetch, ForStream, Hello, Ids, Job, Kind, Names, Prefixes, Purpose, Reply, Request, SessionId, WireError,
};
use serde_json::{Value, json};
use tests::{Running, Serving, Site, Vmstore, eventually, expect_exit_of, stderr};

const PREAMBLE: &[u8] = b"VMSTORE\0\x01\0\x01\0";
/// Bytes of a preamble before the newest version that the sender speaks: both sides take the newest in common.
const BEFORE_NEWEST_BYTES: usize = 10;
const HEADER_BYTES: usize = 12;
const NIGHT: &str = "20261101T020000Z";
const FUTURE: &str = "20990101T000000Z";

/// A site to push from, and one to push to that listens; `token` may push images `web*`.
struct Sites {
    site: Site,
    near: Vmstore,
    far: Vmstore,
    serving: Serving,
    nights: BTreeMap<String, PathBuf>,
    token: String,
}

impl Sites {
    fn new() -> Self {
        let site = Site::new();
        let (near, far) = (site.store("near"), site.store("far"));
        let nights = site.nights(&near, 8, 1);
        let token = token(&far, "site-a", &["--role", "push", "--image", "web*"]);
        let mut serve = far.command(["serve", "--listen", "tcp://127.0.0.1:0", "--allow-plain"]);
        serve.env("VMSTORE_LOG", "trace").env_remove("VMSTORE_IDLE_EXIT");
        let serving = Serving::of(&mut serve, far.store(), 1);
        Self { site, near, far, serving, nights, token }
    }

    fn address(&self) -> &str {
        &self.serving.listening()[0].address
    }

    /// The command `vmstore VERB REMOTE ARGS...` with a token.
    fn transfer(&self, from: &Vmstore, token: &str, args: &[&str]) -> std::process::Command {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = from.command([*verb, self.address(), "--allow-plain", "--retries", "0"]);
        command.args(rest).env("VMSTORE_TOKEN", token);
        command
    }

    fn push(&self, token: &str) {
        Running::start(&mut self.transfer(&self.near, token, &["push", "--all"])).succeed();
    }

    /// A transfer that must end with `code`; returns what it said.
    fn refused(&self, from: &Vmstore, token: &str, args: &[&str], code: i32) -> String {
        let mut command = self.transfer(from, token, args);
        expect_exit_of(&command.output().unwrap(), code, &format!("{command:?}"))
    }

    fn stranger(&self, token: &str) -> Stranger {
        Stranger::connect(self.address(), token).unwrap()
    }
}

fn token(store: &Vmstore, name: &str, args: &[&str]) -> String {
    store.run([&["token", "add", name], args].concat()).trim().to_owned()
}

/// A client written by hand.
struct Stranger {
    stream: TcpStream,
    last_request: u32,
}

impl Stranger {
    fn connect(address: &str, token: &str) -> Result<Self, WireError> {
        let stream = TcpStream::connect(address.strip_prefix("tcp://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut stranger = Self { stream, last_request: 0 };
        stranger.stream.write_all(PREAMBLE).unwrap();
        let hello = Hello { program: "by hand".into(), token: Some(token.into()) };
        stranger.say(Kind::Request, 0, &hello.to_bytes());
        let mut preamble = [0; PREAMBLE.len()];
        stranger.stream.read_exact(&mut preamble).unwrap();
        assert_eq!(preamble[..BEFORE_NEWEST_BYTES], PREAMBLE[..BEFORE_NEWEST_BYTES]);
        stranger.hear().map(|_| stranger)
    }

    fn say(&mut self, kind: Kind, request: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
        frame.extend([kind as u8, 0, 0, 0]);
        frame.extend(request.to_le_bytes());
        frame.extend(payload);
        // The server may have closed the connection: what it said before is heard.
        let _ = self.stream.write_all(&frame);
    }

    /// The payload of the last frame of an answer.
    fn hear(&mut self) -> Result<Vec<u8>, WireError> {
        loop {
            let mut header = [0; HEADER_BYTES];
            let closed = |error: std::io::Error| WireError::Unreachable { what: error.to_string() };
            self.stream.read_exact(&mut header).map_err(closed)?;
            let mut payload = vec![0; u32::from_le_bytes(*header.first_chunk().unwrap()) as usize];
            self.stream.read_exact(&mut payload).map_err(closed)?;
            match header[4] {
                kind if kind == Kind::Reply as u8 => return Ok(payload),
                kind if kind == Kind::Error as u8 => return Err(WireError::from_bytes(&payload).unwrap()),
                _ => {}
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, WireError> {
        self.last_request += 1;
        self.say(Kind::Request, self.last_request, &request.to_bytes());
        self.hear().map(|payload| Reply::from_bytes(&payload).unwrap())
    }

    /// Begins a session to push in.
    fn begin(&mut self) -> Result<SessionId, WireError> {
        let session = SessionId(self.last_request + 1);
        self.ask(&Request::Begin { session, purpose: Purpose::Receive, snapshot: None }).map(|_| session)
    }

    fn put(&mut self, session: SessionId, record: &Record) -> Result<(), WireError> {
        self.last_request += 1;
        let payload = [&session.0.to_le_bytes()[..], &record.header.encode(), &record.payload].concat();
        self.say(Kind::Records, self.last_request, &payload);
        self.hear().map(drop)
    }

    /// Publishes an image of zeros, for which no record is needed.
    fn publish(&mut self, image: &str, time: &str) -> Result<Reply, WireError> {
        self.publish_entry(&entry(image, time))
    }

    fn publish_entry(&mut self, entry: &Value) -> Result<Reply, WireError> {
        let session = self.begin()?;
        self.ask(&Request::Publish { session, entry: entry.to_string().into_bytes(), report: None })
    }
}

fn entry(image: &str, time: &str) -> Value {
    json!({
        "image": image, "time": time, "root": null, "virtual_bytes": 4096, "origin": "by hand",
        "created": "2026-11-01T02:00:00Z",
    })
}

fn raw(kind: RecordKind, id: RecordId, bytes: Vec<u8>) -> Record {
    Record::new(kind, id, bytes.len(), Codec::Raw, bytes, None)
}

fn chunk() -> Record {
    let bytes = b"some content of a chunk".to_vec();
    raw(RecordKind::Chunk, ChunkId::of(&bytes).into(), bytes)
}

#[test]
fn a_push_token_is_for_pushing_alone() {
    let sites = Sites::new();
    sites.push(&sites.token);
    let mut stranger = sites.stranger(&sites.token);
    let (mine, session) = (format!("web01@{NIGHT}"), SessionId(1));
    let begin = |purpose, snapshot: &str| Request::Begin { session, purpose, snapshot: Some(snapshot.to_owned()) };
    let select = |names| Request::Select { names, have: Prefixes::default() };
    let requests = [
        Request::Do(Job::Remove { snapshot: mine.clone() }),
        Request::Do(Job::Collect { dry_run: false, threads: 1 }),
        Request::Do(Job::Collect { dry_run: true, threads: 1 }),
        Request::Do(Job::Verify { snapshots: Vec::new(), threads: 1 }),
        Request::Do(Job::Stats { threads: 1 }),
        Request::Do(Job::Hold { snapshot: mine.clone(), reason: "mine".into() }),
        Request::Do(Job::Release { snapshot: mine.clone(), reason: None }),
        Request::Leave,
        begin(Purpose::Ingest, &mine),
        begin(Purpose::Receive, &format!("db01@{NIGHT}")),
        begin(Purpose::Read, &mine),
        select(Names::All),
        select(Names::Image("web01".into())),
        select(Names::Selectors(vec![mine.clone()])),
        Request::Get { ids: Ids::default(), fetch: Fetch::Whole },
    ];
    for request in requests {
        let answer = stranger.ask(&request);
        assert!(matches!(answer, Err(WireError::Denied { .. })), "{request:?}: {answer:?}");
    }
    let answer = stranger.publish("db01", NIGHT);
    assert!(matches!(answer, Err(WireError::Denied { .. })), "{answer:?}");
    for (image, time) in [("web01", NIGHT), ("web01", FUTURE)] {
        let answer = stranger.publish(image, time);
        assert!(matches!(answer, Err(WireError::Refused { .. })), "{image}@{time}: {answer:?}");
    }
    let in_minutes =
        |minutes| (Timestamp::now() + SignedDuration::from_mins(minutes)).strftime("%Y%m%dT%H%M%SZ").to_string();
    let answer = stranger.publish("web01", &in_minutes(10));
    assert!(matches!(answer, Err(WireError::Refused { .. })), "in ten minutes: {answer:?}");
    let soon = in_minutes(2);
    assert!(matches!(stranger.publish("web02", &soon), Ok(Reply::Published(_))));
    sites.far.run(["remove", &format!("web02@{soon}")]);
    // None of this has another reason.
    assert!(matches!(stranger.publish("web02", NIGHT), Ok(Reply::Published(_))));
    assert_eq!(sites.far.snapshots(), [mine, format!("web02@{NIGHT}")]);
    sites.far.run(["remove", "web02"]);
    sites.far.assert_has_all(&sites.nights);
}

#[test]
fn a_push_with_a_token_goes_so_far_and_no_further() {
    let sites = Sites::new();
    sites.push(&sites.token);
    sites.refused(&sites.site.store("third"), &sites.token, &["pull", "--all"], 8);

    // (the image of another content, its time, how its push ends, its message)
    let cases = [("web01", NIGHT, 6, "already"), ("db01", NIGHT, 8, "db01"), ("web01", FUTURE, 6, "future")];
    for (at, (image, time, code, told)) in cases.into_iter().enumerate() {
        let other = sites.site.store(&format!("other{at}"));
        let file = sites.site.make("other.raw", 4, 70 + at as u64);
        other.run(["ingest", file.to_str().unwrap(), "--image", image, "--time", time]);
        let said = sites.refused(&other, &sites.token, &["push", "--all"], code);
        assert!(said.contains(told), "{image}@{time}: {told:?} should be told: {said}");
    }
    let small = token(&sites.far, "small", &["--role", "push", "--quota", "2MiB"]);
    let other = sites.site.store("other");
    let file = sites.site.make("large.raw", 16, 80);
    other.run(["ingest", file.to_str().unwrap(), "--image", "web03"]);
    for _ in 0..2 {
        let said = sites.refused(&other, &small, &["push", "--all"], 8);
        assert!(said.contains("quota") || said.contains("small"), "{said}");
    }
    sites.far.collect_all();
    sites.far.assert_has_all(&sites.nights);
}

#[test]
fn a_read_token_writes_nothing() {
    let sites = Sites::new();
    sites.push(&sites.token);
    let read = token(&sites.far, "reader", &["--role", "read"]);
    let mut stranger = sites.stranger(&read);
    assert!(matches!(stranger.begin(), Err(WireError::Denied { .. })));
    let (session, snapshot) = (SessionId(7), Some(format!("web01@{NIGHT}")));
    stranger.ask(&Request::Begin { session, purpose: Purpose::Read, snapshot }).unwrap();
    let before = sites.far.packs_bytes();
    let record = chunk();
    let entry = entry("web09", NIGHT).to_string().into_bytes();
    let answers = [
        stranger.put(session, &record),
        stranger.ask(&Request::Claim { session, ids: Ids(vec![record.header.id]) }).map(drop),
        stranger.ask(&Request::Publish { session, entry, report: None }).map(drop),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(WireError::Refused { .. } | WireError::Denied { .. })), "{answer:?}");
    }
    drop(stranger);
    sites.far.run(["verify"]);
    assert_eq!(sites.far.packs_bytes(), before);
    sites.far.assert_has_all(&sites.nights);
}

/// An entry among the records would be taken for that of a snapshot that was lost.
#[test]
fn no_snapshot_comes_but_by_its_publication() {
    let sites = Sites::new();
    sites.push(&sites.token);
    let admin = token(&sites.far, "admin", &["--role", "admin"]);
    for token in [&sites.token, &admin] {
        let mut stranger = sites.stranger(token);
        let session = stranger.begin().unwrap();
        let bytes = entry("db01", FUTURE).to_string().into_bytes();
        let planted = raw(RecordKind::Entry, EntryId::of(&bytes).into(), bytes);
        let answer = stranger.put(session, &planted);
        assert!(matches!(answer, Err(WireError::Refused { .. })), "{answer:?}");
        stranger.put(session, &chunk()).unwrap();
    }
    assert_eq!(sites.far.json(["verify"])["sound"], true);
    sites.far.run(["repair"]);
    sites.far.assert_has_all(&sites.nights);
}

/// A push with a new time and any claim of origin drops no other user's snapshots.
#[test]
fn a_token_evicts_no_snapshots_of_others() {
    let sites = Sites::new();
    let file = sites.site.make("own.raw", 4, 81);
    sites.far.run(["ingest", file.to_str().unwrap(), "--image", "web01", "--time", NIGHT]);
    let own = format!("web01@{NIGHT}");
    let origin = sites.far.json(["show", &own])["origin"].clone();
    let other = token(&sites.far, "site-b", &["--role", "push"]);
    for (token, time) in
        [(&sites.token, "20261102T020000Z"), (&sites.token, "20261103T020000Z"), (&other, "20261104T020000Z")]
    {
        let mut forged = entry("web01", time);
        forged["origin"] = origin.clone();
        sites.stranger(token).publish_entry(&forged).unwrap();
    }
    sites.far.run(["prune", "--keep-last", "1"]);
    assert_eq!(sites.far.snapshots(), [&own, "web01@20261103T020000Z", "web01@20261104T020000Z"]);
    sites.far.assert_holds(&own, &file);
}

#[test]
fn published_snapshots_count_against_the_quota() {
    let sites = Sites::new();
    let small = token(&sites.far, "small", &["--role", "push", "--quota", "2MiB"]);
    let mut stranger = sites.stranger(&small);
    let publish = |day: u32| {
        let mut large = entry("web05", &format!("202610{day:02}T020000Z"));
        large["attachment"] = "x".repeat(400 << 10).into();
        stranger.publish_entry(&large)
    };
    let answers: Vec<_> = (1..=4).map(publish).collect();
    assert!(answers[0].is_ok() && matches!(answers[3], Err(WireError::Denied { .. })), "{answers:?}");
    assert!(sites.far.snapshots().len() < 4);
}

/// All files below a directory but those of `except`, with what is in them.
fn tree(dir: &Path, except: &[&Path]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if except.contains(&path.as_path()) {
            continue;
        }
        if path.is_dir() {
            files.extend(tree(&path, except));
            files.insert(path, Vec::new());
        } else if path.is_file() {
            // It may be gone: owners remove their files.
            files.insert(path.clone(), fs::read(path).unwrap_or_default());
        }
    }
    files
}

#[test]
fn names_that_are_paths_lead_nowhere() {
    let sites = Sites::new();
    sites.push(&sites.token);
    let admin = token(&sites.far, "admin", &["--role", "admin"]);
    let push = token(&sites.far, "push", &["--role", "push"]);
    let (long, components) = ("x".repeat(10_000), "../".repeat(40) + "tmp/x");
    let names = [
        "../x",
        "../../x",
        "..",
        ".",
        "",
        "/tmp/x",
        "a/b",
        "a/../../x",
        "x\0y",
        "x\ny",
        "x\u{1b}[2J",
        "\u{202e}x",
        ".x",
        "-x",
        "x y",
        "x@y",
        "x\\y",
        "%2e%2e%2fx",
        &long,
        &components,
    ];
    let catalog = sites.far.store().join("catalog");
    let outside = tree(sites.site.dir(), &[sites.far.store(), sites.near.store()]);
    let inside = tree(&catalog, &[]);
    for (name, token) in names.iter().flat_map(|name| [(name, &admin), (name, &push)]) {
        let mut stranger = sites.stranger(token);
        let snapshot = format!("{name}@{NIGHT}");
        let select = |names| Request::Select { names, have: Prefixes::default() };
        let begin = |purpose| Request::Begin { session: SessionId(99), purpose, snapshot: Some(snapshot.clone()) };
        let remove = Request::Do(Job::Remove { snapshot: snapshot.clone() });
        let hold = Request::Do(Job::Hold { snapshot: snapshot.clone(), reason: "x".into() });
        let verify = Request::Do(Job::Verify { snapshots: vec![snapshot.clone()], threads: 1 });
        let requests = [
            select(Names::Image((*name).to_owned())),
            select(Names::Selectors(vec![snapshot.clone()])),
            begin(Purpose::Receive),
            begin(Purpose::Ingest),
            begin(Purpose::Read),
            remove,
            hold,
            verify,
        ];
        for request in &requests {
            let answer = stranger.ask(request);
            assert!(answer.is_err(), "{request:?}: {answer:?}");
        }
        for (image, time) in [(*name, NIGHT), ("web09", *name)] {
            let answer = stranger.publish(image, time);
            assert!(answer.is_err(), "{image:?} {time:?}: {answer:?}");
        }
    }
    assert!(tree(sites.site.dir(), &[sites.far.store(), sites.near.store()]) == outside, "files outside were changed");
    assert!(tree(&catalog, &[]) == inside, "the catalog was changed");
    assert!(sites.stranger(&admin).publish("web09", NIGHT).is_ok(), "a good name should be taken");
    assert!(tree(&catalog, &[]) != inside);
    sites.far.run(["remove", "web09"]);
    sites.far.assert_has_all(&sites.nights);
}

#[test]
fn a_removed_token_is_dead_at_once() {
    let sites = Sites::new();
    sites.push(&sites.token);
    let other = token(&sites.far, "other", &["--role", "push"]);
    let mut stranger = sites.stranger(&sites.token);
    let session = stranger.begin().unwrap();
    sites.far.run(["token", "remove", "site-a"]);
    let asked = stranger.ask(&Request::Lacks { prefixes: Prefixes::default() }).map(drop);
    for answer in [asked, stranger.put(session, &chunk())] {
        assert!(matches!(answer, Err(WireError::Denied { .. })), "on a connection that was open: {answer:?}");
    }
    let said = sites.refused(&sites.near, &sites.token, &["push", "--all"], 8);
    assert!(said.contains("token"), "{said}");
    assert!(matches!(Stranger::connect(sites.address(), &sites.token), Err(WireError::Denied { .. })));
    sites.push(&other);
}

/// The files, process arguments and environments where a text is found.
fn places(text: &str, dirs: &[&Path], processes: &[u32]) -> Vec<PathBuf> {
    let is_in = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let files = dirs.iter().flat_map(|dir| tree(dir, &[])).filter(|(_, bytes)| is_in(bytes)).map(|(path, _)| path);
    let of_process = |pid: &u32| ["cmdline", "environ"].map(|file| PathBuf::from(format!("/proc/{pid}/{file}")));
    let of_processes = processes.iter().flat_map(of_process).filter(|path| is_in(&fs::read(path).unwrap_or_default()));
    files.chain(of_processes).collect()
}

#[test]
fn tokens_are_neither_shown_nor_kept() {
    let sites = Sites::new();
    let token_file = sites.site.path("site-a.token");
    fs::write(&token_file, &sites.token).unwrap();
    fs::set_permissions(&token_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut push =
        sites.near.command(["push", sites.address(), "--all", "--allow-plain", "--limit-rate", "1MiB", "-vvv"]);
    // A token in the environment is for the command alone: the owner that it starts outlives it.
    eventually("an idle owner's end", || sites.near.owners().is_empty());
    let mut push = Running::start(push.env("VMSTORE_TOKEN", &sites.token).env("VMSTORE_IDLE_EXIT", "600"));
    eventually("the first of the push", || sites.far.packs_bytes() > 1 << 20);
    let arguments = tests::command_line(push.child().id());
    let (owners, stores) = (sites.near.owners(), [sites.near.store(), sites.far.store()]);
    assert!(arguments.contains("push") && owners.len() == 1);
    let processes = [&owners[..], &[sites.serving.pid()]].concat();
    assert_eq!(places(&sites.token, &stores, &processes), [""; 0].map(PathBuf::from));
    assert!(!arguments.contains(&sites.token));
    let output = push.wait();
    assert!(output.status.success(), "{}", stderr(&output));

    let file = ["push", "--all", "--token-file", token_file.to_str().unwrap(), "-vvv"];
    let mut with_file = sites.transfer(&sites.near, "", &file);
    let with_file = with_file.env_remove("VMSTORE_TOKEN").output().unwrap();
    assert!(with_file.status.success(), "{}", stderr(&with_file));
    let wrong = format!("{}{}", &sites.token[..20], sites.token[20..].chars().rev().collect::<String>());
    let refused = sites.refused(&sites.near, &wrong, &["push", "--all", "-vvv"], 8);
    let said = [stderr(&output), stderr(&with_file), refused, sites.serving.said()].concat();
    for secret in [&sites.token, &wrong] {
        assert!(!said.contains(secret), "a log has the token {secret}");
        assert_eq!(places(secret, &stores, &processes), [""; 0].map(PathBuf::from));
    }
    // The search would find it: the list of tokens has everything else about it.
    assert!(!places("site-a", &stores, &[]).is_empty() && said.contains("site-a"));
}
