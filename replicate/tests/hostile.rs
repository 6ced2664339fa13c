//! Clients that break the protocol, lie, or do nothing: the server serves others on, stores nothing wrong, and says why
//! where it can.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use chunkstore::Error;
use chunkstore::catalog::Snapshot;
use chunkstore::format::manifest::{self, ChunkSource, Node};
use chunkstore::format::{ChunkId, Codec, EntryId, Kind as RecordKind, NodeId, Record, RecordCodec, RecordId};
use common::{Site, local, night, noise, push_all, read_back, run};
use replicate::rpc::client::{Client, ClientSession, Link};
use replicate::rpc::wire::{ForStream, Frame, Hello, Ids, Kind, Prefixes, Purpose, Request, SessionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const PREAMBLE: &[u8] = b"VMSTORE\0\x01\0\x01\0";

fn frame(kind: u8, request: u32, payload: &[u8]) -> Vec<u8> {
    let head = [&(payload.len() as u32).to_le_bytes()[..], &[kind, 0, 0, 0], &request.to_le_bytes()].concat();
    [head, payload.to_vec()].concat()
}

fn hello() -> Vec<u8> {
    [PREAMBLE, &frame(Kind::Request as u8, 0, &Hello::default().to_bytes())].concat()
}

/// The bytes of a correct client of one connection: a session, a claim, a record, a look at the catalog.
fn good() -> Vec<u8> {
    let session = SessionId(7);
    let record = raw(b"some content of a chunk");
    let put = [&7_u32.to_le_bytes()[..], &record.header.encode(), &record.payload].concat();
    let requests = [
        Request::Begin { session, purpose: Purpose::Receive, snapshot: None },
        Request::Claim { session, ids: Ids(vec![record.header.id]) },
        Request::Lacks { prefixes: Prefixes(vec![[1; 12]]) },
    ];
    let mut said = hello();
    for (number, request) in (1..).zip(requests) {
        said.extend(frame(Kind::Request as u8, number, &request.to_bytes()));
    }
    said.extend(frame(Kind::Records as u8, 9, &put));
    said
}

fn raw(bytes: &[u8]) -> Record {
    Record::new(RecordKind::Chunk, ChunkId::of(bytes).into(), bytes.len(), Codec::Raw, bytes.to_vec(), None)
}

/// Says these bytes, closes, and reads whatever comes until the server closes.
async fn say(site: &Site, bytes: &[u8]) -> Vec<u8> {
    let mut stream = site.stream(local());
    let mut answer = Vec::new();
    // The server may have closed before it heard all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    read.expect("the server ends what breaks the protocol").unwrap_or(0);
    answer
}

async fn assert_serves(site: &Site) {
    let client = site.client().await;
    assert!(client.lacks(Prefixes(vec![[9; 12]])).await.unwrap().has(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_truncation_and_flip_of_what_a_client_says_leaves_the_server_alive_and_the_store_sound() {
    let site = Site::new(1);
    let before = site.ingest(night("web01", 0), &noise(100_000, 1));
    let said = good();
    for len in (0..said.len()).step_by(3) {
        say(&site, &said[..len]).await;
    }
    for at in 0..said.len() {
        let mut flipped = said.clone();
        flipped[at] ^= 1 << (at % 8);
        // A length that grew makes the server wait for more: the end of the stream ends that.
        say(&site, &flipped).await;
    }
    assert_serves(&site).await;
    site.collect();
    site.assert_sound();
    assert_eq!(site.snapshots(), [before.name()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_duplicated_or_reordered_do_no_harm() {
    let site = Site::new(1);
    let begin = Request::Begin { session: SessionId(7), purpose: Purpose::Receive, snapshot: None };
    let begin = frame(Kind::Request as u8, 1, &begin.to_bytes());
    let claim = Request::Claim { session: SessionId(7), ids: Ids(vec![ChunkId::of(b"x").into()]) };
    let claim = frame(Kind::Request as u8, 2, &claim.to_bytes());
    for said in [
        [hello(), claim.clone(), begin.clone()].concat(),
        [hello(), begin.clone(), begin.clone(), claim.clone()].concat(),
        [hello(), hello(), begin.clone()].concat(),
        [hello(), begin, claim.clone(), claim].concat(),
        [hello(), frame(Kind::Reply as u8, 3, b""), frame(Kind::Progress as u8, 0, b"xx")].concat(),
        [PREAMBLE, PREAMBLE].concat(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"VMSTORE\0\x03\0\x09\0".to_vec(),
    ] {
        say(&site, &said).await;
    }
    assert_serves(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_are_refused_with_a_reason() {
    let site = Site::new(1);
    let answer = say(&site, &[b"VMSTORE\0\x03\0\x09\0".as_slice(), &hello()[12..]].concat()).await;
    assert!(answer.starts_with(b"VMSTORE\0\x01\0\x02\0"), "the server says what it speaks");
    assert!(String::from_utf8_lossy(&answer).contains("speaks versions 3 to 9"), "{answer:?}");
}

/// Records that are not what they say, and what has to be said of each.
fn lies() -> Vec<(&'static str, Record)> {
    let mut wrong_id = raw(b"one content");
    wrong_id.header.id = ChunkId::of(b"another content").into();
    let bomb = |plain: usize, said: usize| {
        let bytes = vec![0; plain];
        let payload = RecordCodec::new(1).payload(&bytes, None).1;
        Record::new(RecordKind::Chunk, ChunkId::of(&bytes).into(), said, Codec::Zstd, payload, None)
    };
    let base: RecordId = ChunkId::of(b"a base that is nowhere").into();
    let orphan = Record::new(RecordKind::Chunk, ChunkId::of(b"x").into(), 1, Codec::Delta, vec![1; 20], Some(base));
    let entry = br#"{"image":"db01","time":"20990101T000000Z","root":null,"virtual_bytes":4096,"origin":"x","created":"2026-11-01T02:00:00Z"}"#;
    let entry =
        Record::new(RecordKind::Entry, EntryId::of(entry).into(), entry.len(), Codec::Raw, entry.to_vec(), None);
    let not_a_node = b"not a node".to_vec();
    let id = chunkstore::format::NodeId::of(&not_a_node).into();
    vec![
        ("wrong id", wrong_id),
        ("larger than it says", bomb(1 << 20, 1000)),
        ("smaller than it says", bomb(1000, 1 << 20)),
        ("garbage", Record::new(RecordKind::Chunk, ChunkId::of(b"x").into(), 1, Codec::Zstd, vec![7; 50], None)),
        ("a delta without base", orphan),
        ("an entry", entry),
        ("no node", Record::new(RecordKind::Node, id, not_a_node.len(), Codec::Raw, not_a_node, None)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_lie_are_not_taken() {
    for (what, record) in lies() {
        let site = Site::new(1);
        let client = site.client().await;
        let session = ClientSession::begin(&client, Purpose::Receive, None).await.unwrap();
        session.claim(&[record.header.id]).await.unwrap();
        let refused = session.put_all(std::slice::from_ref(&record)).await.expect_err(what);
        assert!(
            matches!(refused, Error::Damaged { .. } | Error::Refused { .. } | Error::Invalid { .. }),
            "{what}: {refused}"
        );
        assert!(!client.full(&[record.header.id]).await.unwrap()[0], "{what}");
        drop((session, client));
        site.collect();
        site.assert_sound();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_snapshots_are_not_published() {
    let (from, to) = (Site::new(1), Site::new(2));
    let snapshot = from.ingest(night("web01", 0), &noise(300_000, 1));
    let client = to.client().await;
    let session = ClientSession::begin(&client, Purpose::Receive, None).await.unwrap();
    session.publish(snapshot.entry_encoding().to_vec(), None).await.expect_err("nothing was put");
    assert!(to.snapshots().is_empty());
    drop(session);
    run(&from, &to, &push_all()).await;
    let client = to.client().await;
    // Methods for plain threads block.
    let image = tokio::task::block_in_place(|| read_back(&client, &snapshot));
    assert!(image == noise(300_000, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_neither_replaced_nor_of_the_future() {
    let (from, to) = (Site::new(1), Site::new(2));
    let there = to.ingest(night("web01", 0), &noise(100_000, 1));
    from.ingest(night("web01", 0), &noise(100_000, 2));
    let refused = common::try_transfer(&from, to.client().await, &push_all()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert_eq!(to.store.catalog().read(&there.name()).unwrap().entry_id(), there.entry_id());

    let (from, to) = (Site::new(1), Site::new(2));
    from.ingest(night("web01", 40_000), &noise(100_000, 2));
    let refused = common::try_transfer(&from, to.client().await, &push_all()).await.unwrap_err();
    assert!(refused.to_string().contains("future"), "{refused}");
    assert!(to.snapshots().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_half_open_connections_delay_no_others() {
    let site = Site::new(1);
    let mut open: Vec<DuplexStream> = Vec::new();
    for number in 0..2000 {
        let mut stream = site.stream(local());
        let said = hello();
        let part = number % said.len();
        stream.write_all(&said[..part]).await.unwrap();
        open.push(stream);
    }
    assert_serves(&site).await;
    // One that promises a large frame and sends little takes no memory for the rest.
    let mut slow = site.stream(local());
    slow.write_all(&hello()).await.unwrap();
    slow.write_all(&frame(Kind::Records as u8, 1, &[0; 64])[..40]).await.unwrap();
    assert_serves(&site).await;
    drop(open);
    assert_serves(&site).await;
}

/// Takes about a minute, which is how long the server bears it.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_drip_are_dropped_and_delay_no_others() {
    const EACH: Duration = Duration::from_millis(500);
    const PATIENCE: Duration = Duration::from_mins(5);
    let site = Site::new(1);
    let snapshot = site.ingest(night("web01", 0), &noise(3_000_000, 1));
    let mut drips = tokio::task::JoinSet::new();
    // One sends a frame a byte at a time, the other takes its answer a byte at a time.
    let mut sender = site.stream(local());
    drips.spawn(async move {
        sender
            .write_all(&[hello(), frame(Kind::Records as u8, 1, &vec![0; 100_000])[..40].to_vec()].concat())
            .await
            .unwrap();
        while sender.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(EACH).await;
        }
    });
    let ids = chunk_ids(&site, &snapshot);
    let mut taker = site.stream(local());
    drips.spawn(async move {
        let get = Request::Get { ids: Ids(ids), fetch: replicate::rpc::wire::Fetch::Stored };
        taker.write_all(&[hello(), frame(Kind::Request as u8, 1, &get.to_bytes())].concat()).await.unwrap();
        while matches!(taker.read(&mut [0]).await, Ok(1)) {
            // Bytes sent before the server gave up may still be read, at any speed.
            if taker.write_all(&[]).await.is_err() || taker.write_all(&frame(Kind::Ping as u8, 0, &[])).await.is_err() {
                return;
            }
            tokio::time::sleep(EACH).await;
        }
    });
    assert_serves(&site).await;
    let both = async { while drips.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, both).await.expect("the server lets go of peers that drip");
    assert_serves(&site).await;
}

/// The ids of all chunks of a snapshot.
fn chunk_ids(site: &Site, snapshot: &Snapshot) -> Vec<RecordId> {
    let mut ids = Vec::new();
    let entry = snapshot.entry();
    manifest::walk(&*site.store, entry.root, entry.virtual_bytes, &mut |segment| {
        let Node::Leaf(leaf) = site.store.node(segment.leaf)? else { panic!("a leaf is a leaf") };
        ids.extend(leaf.chunks().map(|(_, id, _)| RecordId::from(id)));
        Ok(())
    })
    .unwrap();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lies_to_a_client_is_noticed() {
    let site = Site::new(1);
    let snapshot = site.ingest(night("web01", 0), &noise(100_000, 1));
    let root: RecordId = snapshot.entry().root.unwrap().into();
    // A server of one answer: another record than was asked for, one that is damaged, none at all.
    for answer in ["another", "damaged", "none", "unasked"] {
        let (here, mut there) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            let mut heard = vec![0; 12 + 12 + Hello::default().to_bytes().len()];
            there.read_exact(&mut heard).await.unwrap();
            there.write_all(PREAMBLE).await.unwrap();
            let welcome = replicate::rpc::wire::Welcome::default().to_bytes();
            there.write_all(&frame(Kind::Reply as u8, 0, &welcome)).await.unwrap();
            let mut head = [0; 12];
            there.read_exact(&mut head).await.unwrap();
            let record = raw(b"not what was asked for");
            let mut bytes = [&record.header.encode()[..], &record.payload].concat();
            match answer {
                "another" => {}
                "damaged" => *bytes.last_mut().unwrap() ^= 1,
                _ => bytes.clear(),
            }
            let number = if answer == "unasked" { 99 } else { 1 };
            there.write_all(&frame(Kind::Records as u8, number, &bytes)).await.unwrap();
            let given = replicate::rpc::wire::Reply::Given { missing: Vec::new() }.to_bytes();
            there.write_all(&frame(Kind::Reply as u8, number, &given)).await.unwrap();
            let _ = there.read_to_end(&mut Vec::new()).await;
        });
        let client = site.client_over(Box::new(here)).await;
        let failed = client.records(&[root], replicate::rpc::wire::Fetch::Stored, &mut |_| Ok(())).await;
        assert!(matches!(failed, Err(Error::Unreachable { .. })), "{answer}: {failed:?}");
    }
}

#[test]
fn waits_for_answers_end_with_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let (here, mut there) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            there.write_all(PREAMBLE).await.unwrap();
            let welcome = replicate::rpc::wire::Welcome::default().to_bytes();
            there.write_all(&frame(Kind::Reply as u8, 0, &welcome)).await.unwrap();
            // It hears everything and answers nothing.
            let _ = there.read_to_end(&mut Vec::new()).await;
        });
        Client::start(Box::new(here), &Hello::default(), &Link::default()).await.unwrap()
    });
    let (told, answer) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || told.send(client.node(NodeId::of(b"x")).map(drop)));
    std::thread::sleep(Duration::from_millis(200));
    runtime.shutdown_background();
    let answer = answer.recv_timeout(Duration::from_mins(1)).expect("the wait ends with the runtime");
    assert!(matches!(answer, Err(Error::Unreachable { .. })), "{answer:?}");
    waiting.join().unwrap().unwrap();
}

fn begins(sessions: u32) -> Vec<u8> {
    let begin = |number: u32| {
        let request = Request::Begin { session: SessionId(number), purpose: Purpose::Receive, snapshot: None };
        frame(Kind::Request as u8, number, &request.to_bytes())
    };
    [hello(), (1..=sessions).flat_map(begin).collect()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_its_connections_own() {
    let site = Site::new(1);
    let mut first = site.stream(local());
    first.write_all(&begins(1)).await.unwrap();
    assert_serves(&site).await;
    let claim = Request::Claim { session: SessionId(1), ids: Ids(vec![ChunkId::of(b"x").into()]) };
    let guess = Request::Attach { session: SessionId(1), secret: replicate::rpc::wire::SessionSecret([7; 16]) };
    for request in [claim, guess] {
        let answer = ask(&site, &frame(Kind::Request as u8, 1, &request.to_bytes())).await;
        assert!(answer.contains("the session"), "{request:?}: {answer:?}");
    }
    let put = [&1_u32.to_le_bytes()[..], &raw(b"x").header.encode(), b"x"].concat();
    let answer = ask(&site, &frame(Kind::Records as u8, 1, &put)).await;
    assert!(answer.contains("the session"), "{answer:?}");
}

/// The payload of the answer to one frame, as text.
async fn ask(site: &Site, said: &[u8]) -> String {
    let mut stream = site.stream(local());
    stream.write_all(&[&hello(), said].concat()).await.unwrap();
    stream.read_exact(&mut [0; PREAMBLE.len()]).await.unwrap();
    let mut payload = Vec::new();
    // The welcome comes first.
    for _ in 0..2 {
        let mut header = [0; 12];
        stream.read_exact(&mut header).await.unwrap();
        payload = vec![0; u32::from_le_bytes(*header.first_chunk().unwrap()) as usize];
        stream.read_exact(&mut payload).await.unwrap();
    }
    String::from_utf8_lossy(&payload).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sessions_delay_no_others() {
    let site = Site::new(1);
    let too_many = say(&site, &begins(65)).await;
    assert!(String::from_utf8_lossy(&too_many).contains("at most 64 sessions"), "{too_many:?}");
    let mut open: Vec<DuplexStream> = Vec::new();
    for _ in 0..157 {
        let mut stream = site.stream(local());
        stream.write_all(&begins(64)).await.unwrap();
        open.push(stream);
    }
    assert_serves(&site).await;
    drop(open);
    assert_serves(&site).await;
    site.collect();
    site.assert_sound();
}

#[test]
fn a_frame_knows_its_length() {
    assert_eq!(Frame::new(Kind::Ping, 1, vec![0; 5]).wire_bytes(), frame(7, 1, &[0; 5]).len() as u64);
}
