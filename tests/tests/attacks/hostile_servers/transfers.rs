//! A server that lies to `vmstore push` and `vmstore pull`: a real one, whose answers are changed on their way. The
//! program ends soon and says why, or what it did is right; its memory is bounded; the store on this side stays sound
//! and has no lie in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use chunkstore::catalog::{Entry, Snapshot, State};
use chunkstore::format::limits::{FANOUT, IMAGE_BYTES_MAX};
use chunkstore::format::manifest::{Entry as Line, Inner, Leaf, Node};
use chunkstore::format::{ChunkId, Codec, Kind as RecordKind, NodeId, Record};
use chunkstore::store::{OpenOptions, Store};
use replicate::rpc::wire::{Bits, ForStream, Kind, Reply, WireError, records_of};
use tests::torture::Torture;
use tests::{Serving, Site, Vmstore, measured};

const PREAMBLE_BYTES: usize = 12;
const HEADER_BYTES: usize = 12;
const LONGEST: usize = 2 << 20;
/// More than the program ever needs for images as small as these.
const PEAK_BYTES_MAX: u64 = 512 << 20;
/// Much longer than any patience of the program.
const SECONDS_MAX: &str = "180";
/// The exit code of `timeout` when it had to end the command.
const LIMITED: i32 = 124;
const NIGHT: &str = "web01@20261101T020000Z";

/// Tokens made so far: no two have one name.
static TOKENS: AtomicU64 = AtomicU64::new(0);

/// A frame that a server says.
#[derive(Clone, Debug)]
struct Said {
    kind: u8,
    request: u32,
    payload: Vec<u8>,
}

impl Said {
    fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).ok()?;
        let mut payload = vec![0; u32::from_le_bytes(*header.first_chunk().unwrap()) as usize];
        stream.read_exact(&mut payload).ok()?;
        Some(Self { kind: header[4], request: u32::from_le_bytes(header[8..].try_into().unwrap()), payload })
    }

    fn write(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let head = [&(self.payload.len() as u32).to_le_bytes()[..], &[self.kind, 0, 0, 0], &self.request.to_le_bytes()];
        stream.write_all(&[&head.concat()[..], &self.payload].concat())
    }

    fn reply(&self) -> Option<Reply> {
        (self.kind == Kind::Reply as u8).then(|| Reply::from_bytes(&self.payload).ok())?
    }

    fn as_reply(&self, reply: &Reply) -> Vec<Self> {
        vec![Self { kind: Kind::Reply as u8, payload: reply.to_bytes(), ..self.clone() }]
    }

    fn as_kind(&self, kind: Kind, payload: Vec<u8>) -> Self {
        Self { kind: kind as u8, payload, ..self.clone() }
    }
}

/// The bytes sent in place of a frame; `None` is the truth.
enum Lie {
    Say(Vec<Said>),
    HangUp,
    Forever(Said),
}

/// Makes a lie of a frame with its number, counted from the hand-shake, which is 0.
type Liar = Arc<dyn Fn(u64, &Said) -> Option<Lie> + Send + Sync>;

/// Stands between clients and a server; returns its address, and a counter of the lies.
fn liar(server: &str, lie: Liar) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let (server, lies) = (server.strip_prefix("tcp://").unwrap().to_owned(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&lies);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&server).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let (lie, lies) = (Arc::clone(&lie), Arc::clone(&counted));
            thread::spawn(move || {
                let mut client = client;
                let _ = say_all(server, &mut client, &lie, &lies);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    (address, lies)
}

fn say_all(mut server: TcpStream, client: &mut TcpStream, lie: &Liar, lies: &AtomicU64) -> std::io::Result<()> {
    let mut preamble = [0; PREAMBLE_BYTES];
    server.read_exact(&mut preamble)?;
    client.write_all(&preamble)?;
    let mut number = 0;
    while let Some(said) = Said::read(&mut server) {
        let lie = lie(number, &said);
        lies.fetch_add(u64::from(lie.is_some()), Ordering::Relaxed);
        match lie {
            None => said.write(client)?,
            Some(Lie::Say(frames)) => frames.iter().try_for_each(|frame| frame.write(client))?,
            Some(Lie::HangUp) => return Ok(()),
            Some(Lie::Forever(frame)) => loop {
                frame.write(client)?;
            },
        }
        number += 1;
    }
    Ok(())
}

/// A lie about every reply that this changes.
fn of_reply(change: impl Fn(Reply) -> Option<Reply> + Send + Sync + 'static) -> Liar {
    Arc::new(move |_, said| Some(Lie::Say(said.as_reply(&change(said.reply()?)?))))
}

/// A lie about every frame of a kind.
fn of_kind(kind: Kind, lie: impl Fn(&Said) -> Lie + Send + Sync + 'static) -> Liar {
    Arc::new(move |_, said| (said.kind == kind as u8).then(|| lie(said)))
}

fn nothing_but(bit: bool) -> Bits {
    (0..4096).map(|_| bit).collect()
}

fn chunk(bytes: &[u8]) -> Record {
    Record::new(RecordKind::Chunk, ChunkId::of(bytes).into(), bytes.len(), Codec::Raw, bytes.to_vec(), None)
}

fn encoded(record: &Record) -> Vec<u8> {
    [&record.header.encode()[..], &record.payload].concat()
}

/// Errors that try to control the terminal and fill the screen.
fn loud() -> Vec<u8> {
    WireError::Refused { what: "\u{1b}[2J\u{7}".repeat(300_000) }.to_bytes()
}

/// The entries of a selection, changed as text.
fn entries(change: impl Fn(String) -> String + Send + Sync + 'static) -> Liar {
    of_part(move |reply| match reply {
        Reply::Entries(entries) => {
            let change = |entry: Vec<u8>| change(String::from_utf8(entry).unwrap()).into_bytes();
            Some(Reply::Entries(entries.into_iter().map(change).collect()))
        }
        _ => None,
    })
}

fn of_part(change: impl Fn(Reply) -> Option<Reply> + Send + Sync + 'static) -> Liar {
    of_kind(Kind::Part, move |said| {
        let changed = Reply::from_bytes(&said.payload).ok().and_then(&change);
        Lie::Say(vec![said.as_kind(Kind::Part, changed.map_or(said.payload.clone(), |reply| reply.to_bytes()))])
    })
}

/// A string in an entry's field, in place of what is there.
fn field(name: &'static str, value: &'static str) -> Liar {
    entries(move |entry| {
        let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(&entry).unwrap();
        fields.insert(name.to_owned(), serde_json::from_str(value).unwrap());
        serde_json::to_string(&fields).unwrap()
    })
}

/// Lies about anything, by the number of the frame that they concern.
fn about_one(number: u64) -> Vec<(String, Liar)> {
    let at = |what: &str, lie: fn(&Said) -> Lie| -> (String, Liar) {
        (format!("{what} at {number}"), Arc::new(move |at, said| (at == number).then(|| lie(said))))
    };
    vec![
        at("hangs up", |_| Lie::HangUp),
        at("an error", |said| Lie::Say(vec![said.as_kind(Kind::Error, loud())])),
        at("twice", |said| Lie::Say(vec![said.clone(), said.clone()])),
        at("empty", |said| Lie::Say(vec![Said { payload: Vec::new(), ..said.clone() }])),
        at("of the future", |said| Lie::Say(vec![Said { request: u32::MAX, ..said.clone() }])),
        at("flipped", |said| {
            let mut payload = said.payload.clone();
            let middle = payload.len() / 2;
            payload.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 0x10);
            Lie::Say(vec![Said { payload, ..said.clone() }])
        }),
        at("longer", |said| Lie::Say(vec![Said { payload: [&said.payload[..], &[0; 40]].concat(), ..said.clone() }])),
        at("another answer", |said| Lie::Say(said.as_reply(&Reply::Done))),
        at("parts for ever", |said| Lie::Forever(said.as_kind(Kind::Part, vec![0; LONGEST]))),
        at("progress for ever", |said| Lie::Forever(said.as_kind(Kind::Progress, vec![0; LONGEST]))),
    ]
}

/// Lies that a push must bear.
fn to_a_push() -> Vec<(String, Liar)> {
    let mut lies: Vec<(String, Liar)> = (0..7).flat_map(about_one).collect();
    let mut add = |what: &str, lie: Liar| lies.push((what.to_owned(), lie));
    // 3 says that records are on their way from others: the client waits.
    for claim in [0, 1, 2, 4] {
        add(
            &format!("claims are all {claim}"),
            of_reply(move |reply| match reply {
                Reply::Claims(claims) => Some(Reply::Claims(vec![claim; claims.len()])),
                _ => None,
            }),
        );
    }
    add("too many claims", of_reply(|reply| matches!(reply, Reply::Claims(_)).then(|| Reply::Claims(vec![1; 9999]))));
    for bit in [false, true] {
        let lie = of_reply(move |reply| matches!(reply, Reply::Bits(_)).then(|| Reply::Bits(nothing_but(bit))));
        add(&format!("bits are all {bit}"), lie);
    }
    let published = |file: fn(Vec<u8>) -> Vec<u8>| {
        of_reply(move |reply| match reply {
            Reply::Published(bytes) => Some(Reply::Published(file(bytes))),
            _ => None,
        })
    };
    add("another snapshot is published", published(|_| snapshot("db01", None, 0).encode()));
    add("nothing is published", published(|_| Vec::new()));
    add("decided", of_reply(|reply| matches!(reply, Reply::Claims(_)).then(|| Reply::Decided(vec![(9, 9, 1)]))));
    lies
}

/// Lies that a pull must bear.
fn to_a_pull() -> Vec<(String, Liar)> {
    let mut lies: Vec<(String, Liar)> = (0..8).flat_map(about_one).collect();
    let mut add = |what: &str, lie: Liar| lies.push((what.to_owned(), lie));
    for (name, value) in [
        ("image", r#""../../../tmp/x""#),
        ("image", r#""db01""#),
        ("image", "7"),
        ("time", r#""29991231T235959Z""#),
        ("time", r#""..""#),
        ("virtual_bytes", "1152921504606846976"),
        ("virtual_bytes", "0"),
        ("virtual_bytes", "18446744073709551615"),
        ("root", r#""000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f""#),
        ("root", "null"),
        ("labels", r#"{"a":"\u001b[2J"}"#),
        ("origin", r#""\u001b[2J""#),
        ("required_features", r#"["cipher"]"#),
    ] {
        add(&format!("{name} is {value}"), field(name, value));
    }
    add("two lines", entries(|entry| format!("{entry}\n{entry}")));
    add(
        "twice the same",
        of_part(|reply| match reply {
            Reply::Entries(entries) => Some(Reply::Entries([entries.clone(), entries].concat())),
            _ => None,
        }),
    );
    add(
        "entries for ever",
        of_kind(Kind::Part, |said| {
            Lie::Forever(said.as_kind(Kind::Part, Reply::Entries(vec![vec![b'x'; 400_000]; 4]).to_bytes()))
        }),
    );
    add(
        "records that were not asked for",
        of_kind(Kind::Records, |said| Lie::Say(vec![said.as_kind(Kind::Records, encoded(&chunk(b"not asked for")))])),
    );
    add(
        "records under other ids",
        of_kind(Kind::Records, |said| {
            let other = |mut record: Record| {
                record.payload = vec![7; record.payload.len()];
                let header = record.header;
                Record::new(
                    header.kind,
                    header.id,
                    header.plain_bytes as usize,
                    Codec::Raw,
                    vec![7; header.plain_bytes as usize],
                    None,
                )
            };
            let records = records_of(&said.payload).unwrap().into_iter().map(other);
            Lie::Say(records.map(|record| said.as_kind(Kind::Records, encoded(&record))).collect())
        }),
    );
    add(
        "bases for ever",
        of_kind(Kind::Records, |said| {
            let bases: Vec<u8> = (0..2000_u32).flat_map(|number| encoded(&chunk(&number.to_le_bytes()))).collect();
            Lie::Forever(said.as_kind(Kind::Bases, bases))
        }),
    );
    let given = |missing: fn() -> Vec<(u32, WireError)>| {
        of_reply(move |reply| matches!(reply, Reply::Given { .. }).then(|| Reply::Given { missing: missing() }))
    };
    add("everything is missing", given(|| (0..64).map(|at| (at, WireError::Interrupted)).collect()));
    add("more is missing than was asked for", given(|| vec![(u32::MAX, WireError::Interrupted); 10_000]));
    add(
        "everything is selected",
        of_reply(|reply| match reply {
            Reply::Selected { .. } => Some(Reply::Selected { common: nothing_but(true), selected: u32::MAX }),
            _ => None,
        }),
    );
    lies
}

fn snapshot(image: &str, root: Option<NodeId>, virtual_bytes: u64) -> Snapshot {
    let time = NIGHT.split_once('@').unwrap().1.parse().unwrap();
    let entry = Entry {
        image: image.parse().unwrap(),
        time,
        root,
        virtual_bytes,
        labels: BTreeMap::new(),
        group: None,
        origin: "elsewhere".into(),
        created: "2026-11-01T02:00:00Z".parse().unwrap(),
        attachments: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    Snapshot::create(entry, State::default()).unwrap()
}

/// Shared by the lies of one kind: a store with a night, and a token for any.
struct Scene {
    site: Site,
    image: PathBuf,
}

/// How a command ended, what it said, and where it left the stores.
struct Outcome {
    what: String,
    is_done: bool,
    said: String,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new();
        let image = site.make("web01.raw", 1, 1);
        Self { site, image }
    }

    /// A new store, with the night or empty.
    fn store(&self, name: &str, has_night: bool) -> Vmstore {
        let store = self.site.store(name);
        if has_night {
            let (image, time) = NIGHT.split_once('@').unwrap();
            store.run(["ingest", self.image.to_str().unwrap(), "--image", image, "--time", time]);
        }
        store
    }

    /// Runs `vmstore VERB LIAR --image web01` in `near`, with `far` behind the liar.
    fn run(&self, verb: &str, near: &Vmstore, far: &Vmstore, what: &str, lie: Liar) -> Outcome {
        let serving = Serving::start(far, &["--listen", "tcp://127.0.0.1:0", "--allow-plain"]);
        let name = format!("site-{}", TOKENS.fetch_add(1, Ordering::Relaxed));
        let token = far.run(["token", "add", &name, "--role", "admin"]).trim().to_owned();
        let (address, lies) = liar(&serving.listening()[0].address, lie);
        let said = self.site.path("said");
        let command = near.command([verb, &address, "--allow-plain", "--retries", "0", "--image", "web01"]);
        let mut limited = limited(&command);
        let ended = measured(limited.env("VMSTORE_TOKEN", token).stderr(File::create(&said).unwrap()));
        let said = fs::read_to_string(said).unwrap();
        let what = format!(
            "{verb}: {what}: {}, {} lies, {} MB: {said}",
            ended.status,
            lies.load(Ordering::Relaxed),
            ended.peak_bytes >> 20
        );
        assert_ne!(ended.status.code(), Some(LIMITED), "hangs: {what}");
        assert!(ended.status.code().is_some() && !said.contains("panicked"), "{what}");
        assert!(ended.peak_bytes < PEAK_BYTES_MAX, "{what}");
        assert!(said.len() < 64 << 10 && !said.contains(['\u{1b}', '\u{7}']), "{what}");
        let is_done = ended.status.success();
        assert!(is_done || !said.is_empty(), "{what}");
        Outcome { what, is_done, said }
    }

    fn assert_right(&self, store: &Vmstore, what: &str) {
        let snapshots = store.snapshots();
        if !snapshots.is_empty() {
            assert_eq!(snapshots, [NIGHT], "{what}");
            store.assert_holds(NIGHT, &self.image);
        }
        let mut verify = store.command(["verify"]);
        let output = verify.output().unwrap();
        assert!(output.status.success(), "{what}: {output:?}");
    }
}

/// The same command, but ended after [`SECONDS_MAX`].
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.arg(SECONDS_MAX).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Tries lies in turn; in the short form some of them, others in each run.
fn try_lies(name: &'static str, lies: &[(String, Liar)], short: u64, attempt: impl Fn(&str, Liar)) {
    let torture = Torture::begin(name);
    let first = if torture.is_long() { 0 } else { torture.rng(0).number() };
    let mut tried = 0;
    let step = if torture.is_long() { 1 } else { 7 };
    while torture.goes_on(tried, if torture.is_long() { lies.len() as u64 } else { short }) {
        let (what, lie) = &lies[(first.wrapping_add(tried * step) % lies.len() as u64) as usize];
        attempt(what, Arc::clone(lie));
        tried += 1;
    }
    torture.end(tried, "lies");
}

#[test]
fn a_push_bears_a_server_that_lies() {
    let scene = Scene::new();
    let near = scene.store("near", true);
    let number = AtomicU64::new(0);
    try_lies("lies to a push", &to_a_push(), 16, |what, lie| {
        let far = scene.store(&format!("far-{}", number.fetch_add(1, Ordering::Relaxed)), false);
        let outcome = scene.run("push", &near, &far, what, lie);
        scene.assert_right(&near, &outcome.what);
        scene.assert_right(&far, &outcome.what);
        // A client knows only what a server says.
        let claims_presence = ["bits are all false", "another answer", "flipped", "claims are all 0"];
        if outcome.is_done && !claims_presence.iter().any(|lie| what.contains(lie)) {
            assert_eq!(far.snapshots(), [NIGHT], "{}", outcome.what);
        }
    });
}

#[test]
fn a_pull_bears_a_server_that_lies() {
    let scene = Scene::new();
    let far = scene.store("far", true);
    let number = AtomicU64::new(0);
    try_lies("lies to a pull", &to_a_pull(), 16, |what, lie| {
        let near = scene.store(&format!("near-{}", number.fetch_add(1, Ordering::Relaxed)), false);
        let outcome = scene.run("pull", &near, &far, what, lie);
        let snapshots = near.snapshots();
        // Of a name, a root and labels there is nothing but the server's word.
        let is_its_word =
            ["root is null", "virtual_bytes", "labels", "origin", "time is"].iter().any(|lie| what.contains(lie));
        if outcome.is_done && is_its_word {
            near.run(["verify"]);
            near.run(["list"]);
        } else {
            scene.assert_right(&near, &outcome.what);
        }
        let strangers = fs::read_dir(near.store().join("catalog")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(strangers.into_iter().all(|name| name == "web01"), "{}: {snapshots:?}", outcome.what);
        assert!(!Path::new("/tmp/x").exists(), "{}", outcome.what);
        if what.contains("db01") {
            assert!(!outcome.is_done && outcome.said.contains("not asked for"), "{}", outcome.what);
        }
    });
}

/// Publishes an image of 2^60 bytes of a few nodes: each is the child of the next in all of its slots.
fn make_vast(dir: &Path) {
    let store = Arc::new(Store::open(dir, &OpenOptions::default()).unwrap());
    let session = store.session(None).unwrap();
    let content = chunk(&[7; 4096]);
    let line = Line::Chunk { id: ChunkId::from_bytes(*content.header.id.as_bytes()), bytes: 4096 };
    let put = |node: &Node| {
        let encoding = node.encode();
        let id = NodeId::of(&encoding);
        let record = Record::new(RecordKind::Node, id.into(), encoding.len(), Codec::Raw, encoding, None);
        session.put_verified(vec![record]).unwrap();
        id
    };
    let mut below = put(&Node::Leaf(Leaf::new(vec![line]).unwrap()));
    for height in 1..=5 {
        let slots = if height == 5 { 64 } else { FANOUT };
        let children = (0..slots).map(|slot| (slot as u8, below)).collect();
        below = put(&Node::Inner(Inner::new(height, children).unwrap()));
    }
    session.put_verified(vec![content]).unwrap();
    session.publish_snapshot(snapshot("web01", Some(below), IMAGE_BYTES_MAX), None).unwrap();
}

#[test]
fn an_image_of_an_exbibyte_in_six_nodes_costs_six_nodes() {
    let scene = Scene::new();
    let (far, near) = (scene.store("far", false), scene.store("near", false));
    // The owner that made the store leaves first.
    tests::eventually("an end of the owner", || far.owners().is_empty());
    make_vast(far.store());
    let outcome = scene.run("pull", &near, &far, "nothing but the truth", Arc::new(|_, _| None));
    assert!(outcome.is_done, "{}", outcome.what);
    near.run(["verify"]);
    near.run(["gc"]);
    assert_eq!(near.json(["stats"])["virtual_bytes"], IMAGE_BYTES_MAX);
    near.run(["ingest", scene.image.to_str().unwrap(), "--image", "web01", "--time", "20261102T020000Z"]);
    let third = scene.store("third", false);
    let outcome = scene.run("push", &near, &third, "nothing but the truth", Arc::new(|_, _| None));
    assert!(outcome.is_done, "{}", outcome.what);
    assert_eq!(third.snapshots(), near.snapshots());
    third.run(["verify"]);
    third.assert_holds("web01@20261102T020000Z", &scene.image);
}
