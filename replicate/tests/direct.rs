//! A client that reads packs directly is a correct source whatever gc does, whatever the owner answers, and when either
//! ends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use chunkstore::catalog::Snapshot;
use chunkstore::format::limits::STORED_BYTES_MAX;
use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{ChunkId, Codec, Header, Kind as RecordKind, NodeId, PackId, Record, RecordId};
use chunkstore::pack::{Class, Extent, ExtentAllocator};
use chunkstore::store::{Like, Sink};
use chunkstore::testing::contract;
use chunkstore::{Error, Progress};
use common::{Site, ingest_by, local, night, noise, read_back};
use replicate::rpc::client::{Client, ClientSession, Link, LocalPacks};
use replicate::rpc::server::serve_stream;
use replicate::rpc::wire::{
    ForStream, Frame, FrameReader, FrameWriter, Hello, Ids, Kind, Located, Locations, Meter, Purpose, Reply, Request,
    Welcome, WireError, read_preamble, write_preamble,
};
use tokio::io::DuplexStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A site whose owner runs on a runtime of its own: the tests' threads wait for it, as a command's do.
struct Owned {
    site: Site,
    runtime: Runtime,
}

impl Owned {
    fn new(seed: u8) -> Self {
        Self { site: Site::new(seed), runtime: Runtime::new().unwrap() }
    }

    fn link(&self, packs: &Path) -> Link {
        Link { packs: Some(LocalPacks::new(packs, self.runtime.handle())), ..Link::default() }
    }

    /// A client that reads packs, and what ends its connection.
    fn direct(&self) -> (Client, JoinHandle<()>) {
        self.client(&self.link(self.site.path()))
    }

    fn client(&self, link: &Link) -> (Client, JoinHandle<()>) {
        let (here, there) = tokio::io::duplex(64 << 10);
        let _runtime = self.runtime.enter();
        let serving = tokio::spawn(serve_stream(Arc::clone(&self.site.server), Box::new(there), local()));
        let client = self.runtime.block_on(Client::start(Box::new(here), &Hello::default(), link));
        (client.unwrap(), serving)
    }
}

/// Nights of which each changes a little: some chunks new, some as deltas.
fn nights(site: &Site, count: u32) -> (Snapshot, Vec<u8>) {
    let mut image = noise(1 << 20, 1);
    let mut last = None;
    for day in 0..count {
        let at = day as usize % 8 * 100_000;
        image[at..at + 50_000].copy_from_slice(&noise(50_000, 2 + u64::from(day)));
        image[at + 70_000] ^= 1;
        last = Some(site.ingest(night("web01", day), &image));
    }
    (last.unwrap(), image)
}

fn chunks_of(source: &dyn ChunkSource, root: NodeId) -> Vec<ChunkId> {
    let Node::Leaf(leaf) = source.node(root).unwrap() else { panic!("one segment is one leaf") };
    leaf.chunks().map(|(_, id, _)| id).collect()
}

fn packs_in(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir.join("packs")).unwrap().map(|file| file.unwrap().path()).collect()
}

#[test]
fn a_client_that_reads_packs_keeps_the_contract_and_moves_no_records() {
    let owned = Owned::new(1);
    let (snapshot, _) = nights(&owned.site, 3);
    let before = owned.site.store.catalog().read(&night("web01", 0)).unwrap().entry().root.unwrap();
    let root = snapshot.entry().root.unwrap();
    let (client, _serving) = owned.direct();
    contract::chunk_source(&client, &chunks_of(&client, root), &[before, root]);
    assert_eq!(client.meter().record_bytes(), 0, "all that is there was read beside the owner");
    let (client, _serving) = owned.client(&Link::default());
    contract::chunk_source(&client, &chunks_of(&client, root), &[before, root]);
    assert!(client.meter().record_bytes() > 0);
}

#[test]
fn places_that_were_expected_are_not_asked_for_again() {
    let owned = Owned::new(1);
    let (snapshot, _) = nights(&owned.site, 1);
    let (client, _serving) = owned.direct();
    let ids = chunks_of(&client, snapshot.entry().root.unwrap());
    client.expect(&ids);
    let asked = client.round_trips();
    for id in &ids {
        assert_eq!(client.chunk(*id).unwrap().id(), *id);
    }
    assert_eq!(client.round_trips(), asked);
}

#[test]
fn a_reader_finds_what_gc_moves_under_it() {
    let owned = Owned::new(1);
    let site = &owned.site;
    let (snapshot, image) = nights(site, 8);
    let (client, _serving) = owned.direct();
    // All places are known, and of packs that are about to go.
    assert!(read_back(&client, &snapshot) == image);
    let ends = AtomicBool::new(false);
    let moved = AtomicUsize::new(0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                assert!(read_back(&client, &snapshot) == image);
            }
        });
        (0..7).for_each(|day| site.store.catalog().remove(&night("web01", day)).unwrap());
        for round in 0..6 {
            let before = packs_in(site.path());
            site.ingest(night("db01", round), &noise(300_000, 100 + u64::from(round)));
            site.store.catalog().remove(&night("db01", round)).unwrap();
            site.collect();
            let after = packs_in(site.path());
            moved.fetch_add(before.iter().filter(|pack| !after.contains(pack)).count(), Ordering::Relaxed);
        }
        ends.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert!(moved.into_inner() > 4, "packs went");
    assert!(read_back(&client, &snapshot) == image);
    assert_eq!(client.meter().record_bytes(), 0, "what moved was found where it is now");
}

#[test]
fn what_is_known_is_read_after_the_owner_went_and_the_rest_fails() {
    let owned = Owned::new(1);
    let (snapshot, image) = nights(&owned.site, 3);
    let other = owned.site.ingest(night("db01", 0), &noise(100_000, 77));
    let (client, serving) = owned.direct();
    assert!(read_back(&client, &snapshot) == image);
    serving.abort();
    let _ = owned.runtime.block_on(serving);
    assert!(read_back(&client, &snapshot) == image);
    let error = client.node(other.entry().root.unwrap()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let known = chunks_of(&client, snapshot.entry().root.unwrap())[0];
    let mut read = Vec::new();
    let ended = client.chunks(&[ChunkId::of(b"unknown"), known], &mut |at, chunk| {
        read.push((at, chunk.is_ok()));
        Ok(())
    });
    assert!(matches!(ended, Err(Error::Unreachable { .. })) && read == [(1, true)], "{ended:?} {read:?}");
}

#[test]
fn who_may_not_open_packs_gets_everything_from_the_owner() {
    let owned = Owned::new(1);
    let (snapshot, image) = nights(&owned.site, 3);
    let forbidden = tempfile::tempdir().unwrap();
    fs::create_dir(forbidden.path().join("packs")).unwrap();
    fs::set_permissions(forbidden.path().join("packs"), PermissionsExt::from_mode(0o000)).unwrap();
    let empty = tempfile::tempdir().unwrap();
    // How it reads packs, and whether it asks for places in the end.
    let links = [(Link::default(), false), (owned.link(forbidden.path()), false), (owned.link(empty.path()), true)];
    let asked = links.map(|(link, asks)| {
        let (client, _serving) = owned.client(&link);
        let as_nobody = || {
            // SAFETY: a plain system call that concerns this thread only: root may open everything, nobody may not.
            unsafe { libc::setfsuid(65534) };
            assert!(read_back(&client, &snapshot) == image);
        };
        thread::scope(|scope| scope.spawn(as_nobody).join().unwrap());
        let before = client.meter().sent_bytes();
        assert!(read_back(&client, &snapshot) == image);
        (client.meter().sent_bytes() - before, asks)
    });
    let (fewest, _) = asked[0];
    assert!(asked.iter().all(|(bytes, asks)| (*bytes > fewest) == *asks), "{asked:?}");
}

#[test]
fn damage_is_named_and_takes_no_neighbours_along() {
    let owned = Owned::new(1);
    let snapshot = owned.site.ingest(night("web01", 0), &noise(300_000, 1));
    let (client, _serving) = owned.direct();
    let ids = chunks_of(&client, snapshot.entry().root.unwrap());
    let harmed = owned.site.store.locate(&[ids[3].into()]).unwrap()[0].unwrap();
    let pack = owned.site.store.packs().row(harmed.pack).unwrap().id;
    let path = owned.site.path().join("packs").join(format!("{pack}.pack"));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0x55; 20], u64::from(harmed.offset) + 200).unwrap();
    client
        .chunks(&ids, &mut |at, chunk| {
            match chunk {
                Ok(chunk) => assert!(at != 3 && chunk.id() == ids[at]),
                Err(error) => {
                    assert!(at == 3 && matches!(error, Error::Damaged { .. }), "{at}: {error}");
                    assert!(error.to_string().contains(&pack.to_string()), "{error}");
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_session_reads_the_bases_that_it_is_told() {
    let owned = Owned::new(1);
    let (snapshot, _) = nights(&owned.site, 3);
    let root = snapshot.entry().root.unwrap();
    let ids = chunks_of(&*owned.site.store, root);
    let absent = ChunkId::of(b"nobody has this");
    let like: Vec<Like> = ids.iter().chain([&absent, &ids[0]]).map(|id| Like::Record((*id).into())).collect();
    let empty = tempfile::tempdir().unwrap();
    let links = [Link::default(), owned.link(owned.site.path()), owned.link(empty.path())];
    let found = links.map(|link| {
        let (client, _serving) = owned.client(&link);
        let session = ClientSession::begin_blocking(&client, Purpose::Ingest, Some(&snapshot.name())).unwrap();
        let bases = session.bases(&like).unwrap();
        let found: Vec<_> = bases.into_iter().map(|base| base.map(|base| (base.id, base.bytes))).collect();
        (found, client.meter().record_bytes())
    });
    let [(fetched, moved), (read, nothing), (fallen_back, as_before)] = found;
    assert!(fetched.iter().filter(|base| base.is_some()).count() == ids.len() + 1 && fetched[ids.len()].is_none());
    assert!(read == fetched && fallen_back == fetched);
    assert!(moved > 0 && nothing == 0 && as_before == moved);
}

#[test]
fn an_ingest_writes_packs_beside_their_owner_and_where_it_can_not_it_sends_records() {
    let (elsewhere, forbidden) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&elsewhere, &forbidden] {
        fs::create_dir(dir.path().join("packs")).unwrap();
    }
    fs::set_permissions(forbidden.path().join("packs"), PermissionsExt::from_mode(0o000)).unwrap();
    // A store, where the client looks for its packs, whether it may open them, and whether it writes them then.
    let cases: [(u8, Option<&Path>, bool, bool); 4] = [
        (1, Some(Path::new("")), true, true),
        (2, Some(elsewhere.path()), true, false),
        (3, Some(forbidden.path()), false, false),
        (4, None, true, false),
    ];
    let image = noise(9 << 20, 5);
    let roots = cases.map(|(seed, looks_in, may_open, writes)| {
        let owned = Owned::new(seed);
        // An absolute path stays what it is.
        let link = looks_in.map_or_else(Link::default, |dir| owned.link(&owned.site.path().join(dir)));
        let (client, _serving) = owned.client(&link);
        let ingest = || {
            if !may_open {
                // SAFETY: a plain system call that concerns this thread only, and those that it starts.
                unsafe { libc::setfsuid(65534) };
            }
            ingest_by(&client, night("web01", 1), &image)
        };
        let snapshot = thread::scope(|scope| scope.spawn(ingest).join().unwrap());
        let sent = client.meter().record_bytes() as usize;
        assert!(if writes { sent < image.len() / 50 } else { sent > image.len() }, "case {seed}: {sent} bytes sent");
        assert!(read_back(&client, &snapshot) == image);
        let report = chunkstore::maintenance::verify::verify(&owned.site.store, &[], 2, &Progress::default()).unwrap();
        assert!(report.is_sound(), "case {seed}: {report:?}");
        let stored = snapshot.state.ingest.as_ref().unwrap().stored_bytes as usize;
        assert!((image.len()..image.len() * 103 / 100).contains(&stored), "case {seed}: {stored}");
        snapshot.entry().root
    });
    assert!(roots.iter().all(|root| *root == roots[0] && root.is_some()));
}

#[test]
fn room_is_lent_to_ingests_alone_and_what_was_never_lent_is_not_taken() {
    let owned = Owned::new(1);
    let (client, _serving) = owned.direct();
    let begin = |purpose| ClientSession::begin_blocking(&client, purpose, None).unwrap();
    for purpose in [Purpose::Receive, Purpose::Read] {
        let session = begin(purpose);
        assert!(matches!(session.reserve(Class::Data, 1000), Err(Error::Refused { .. })), "{purpose:?}");
    }
    let session = begin(Purpose::Ingest);
    let bytes = noise(5000, 1);
    let id: RecordId = ChunkId::of(&bytes).into();
    let header = Record::new(RecordKind::Chunk, id, bytes.len(), Codec::Raw, bytes, None).header;
    let entry = Header { kind: RecordKind::Entry, ..header };
    let room = session.reserve(Class::Data, 5096).unwrap();
    let never = PackId { number: room.pack.number + 1, ..room.pack };
    assert!(!session.append_written(Extent { pack: never, ..room }, &[header]).unwrap());
    assert!(!begin(Purpose::Ingest).append_written(room, &[header]).unwrap());
    assert!(matches!(session.append_written(room, &[header, header]), Err(Error::Invalid { .. })));
    let room = session.reserve(Class::Meta, 5096).unwrap();
    assert!(matches!(session.append_written(room, &[entry]), Err(Error::Refused { .. })), "names of snapshots");
    assert!(matches!(session.reserve(Class::Data, u32::MAX), Err(Error::Invalid { .. })));
}

/// A hostile owner's answer to a request for locations.
type Lie = fn(&Truth, &[RecordId]) -> Vec<Option<Located>>;

/// The locations that it knows.
struct Truth {
    places: Vec<(RecordId, Located)>,
}

impl Truth {
    fn of(site: &Site, ids: &[RecordId]) -> Self {
        let located = |(id, place): (&RecordId, Option<chunkstore::pack::RecordLocation>)| {
            let place = place.unwrap();
            (*id, Located { pack: site.store.packs().row(place.pack).unwrap().id, location: place })
        };
        Self { places: ids.iter().zip(site.store.locate(ids).unwrap()).map(located).collect() }
    }

    fn place(&self, id: &RecordId) -> Option<Located> {
        self.places.iter().find(|(known, _)| known == id).map(|(_, located)| *located)
    }

    fn with(&self, ids: &[RecordId], change: impl Fn(&mut Located)) -> Vec<Option<Located>> {
        let changed = |id| {
            let mut located = self.place(id)?;
            change(&mut located);
            Some(located)
        };
        ids.iter().map(changed).collect()
    }
}

/// An owner that answers to nothing but where records lie; counts how often it is asked.
async fn lie(stream: DuplexStream, truth: Arc<Truth>, lie: Lie, asked: Arc<Mutex<usize>>) {
    let meter = Arc::new(Meter::default());
    let (mut read, mut write) = tokio::io::split(stream);
    write_preamble(&mut write, &meter).await.unwrap();
    read_preamble(&mut read, &meter).await.unwrap();
    let mut reader = FrameReader::new(read, Arc::clone(&meter));
    let mut writer = FrameWriter::new(write, meter);
    let patience = std::time::Duration::from_mins(1);
    while let Ok(Some(frame)) = reader.read(patience).await {
        let (kind, payload) = match Request::from_bytes(&frame.payload) {
            _ if frame.request == 0 => (Kind::Reply, Welcome::default().to_bytes()),
            Ok(Request::Locate { ids: Ids(ids) }) => {
                *asked.lock().unwrap() += 1;
                (Kind::Reply, Reply::Locations(Locations(lie(&truth, &ids))).to_bytes())
            }
            Ok(Request::Get { ids, .. }) => {
                let error = WireError::from(&Error::damaged("the record", "says the owner"));
                let missing = (0..ids.0.len() as u32).map(|at| (at, error.clone())).collect();
                (Kind::Reply, Reply::Given { missing }.to_bytes())
            }
            _ => (Kind::Error, WireError::from(&Error::invalid("nothing else")).to_bytes()),
        };
        writer.write(&Frame::new(kind, frame.request, payload)).await.unwrap();
        writer.flush().await.unwrap();
    }
}

#[test]
fn an_owner_that_lies_about_places_achieves_errors() {
    let owned = Owned::new(1);
    let (snapshot, _) = nights(&owned.site, 4);
    let store = &owned.site.store;
    let chunks = chunks_of(&**store, snapshot.entry().root.unwrap());
    let ids: Vec<RecordId> = chunks.iter().map(|id| (*id).into()).collect();
    let is_delta = |id: &RecordId| !store.is_full(&[*id]).unwrap()[0];
    assert!(ids.iter().any(is_delta) && !ids.iter().all(is_delta));
    let truth = Arc::new(Truth::of(&owned.site, &ids));
    let lies: [(&str, Lie); 9] = [
        ("another record", |truth, ids| vec![Some(truth.places[0].1); ids.len()]),
        ("a delta, said to be full, as every base", |truth, ids| {
            let delta = truth.places.iter().find(|(_, located)| located.location.codec == Codec::Delta).unwrap().1;
            let mut full = delta;
            full.location.codec = Codec::Raw;
            vec![Some(full); ids.len()]
        }),
        ("beyond the end", |truth, ids| truth.with(ids, |located| located.location.offset = u32::MAX)),
        ("amid a record", |truth, ids| truth.with(ids, |located| located.location.offset += 7)),
        ("longest", |truth, ids| truth.with(ids, |located| located.location.stored_bytes = STORED_BYTES_MAX as u32)),
        ("shortest", |truth, ids| truth.with(ids, |located| located.location.stored_bytes = 0)),
        ("no pack", |truth, ids| truth.with(ids, |located| located.pack = PackId { number: 900, tag: 1 })),
        ("another kind", |truth, ids| truth.with(ids, |located| located.location.kind = RecordKind::Node)),
        ("too few", |_, _| Vec::new()),
    ];
    for (what, how) in lies {
        let asked = Arc::new(Mutex::new(0));
        let (here, there) = tokio::io::duplex(64 << 10);
        let lying = owned.runtime.spawn(lie(there, Arc::clone(&truth), how, Arc::clone(&asked)));
        let link = owned.link(owned.site.path());
        let client = owned.runtime.block_on(Client::start(Box::new(here), &Hello::default(), &link)).unwrap();
        let mut wrong = 0;
        let fetched = client.chunks(&chunks, &mut |at, chunk| {
            match chunk {
                Ok(chunk) => assert_eq!(chunk.id(), chunks[at], "{what}"),
                Err(error) => {
                    assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
                    wrong += 1;
                }
            }
            Ok(())
        });
        // A violation of the protocol ends the batch; otherwise each chunk has its own error.
        assert!(fetched.is_err() == (what == "too few") || wrong > 0, "{what}: {fetched:?}");
        assert!(fetched.is_err() || wrong > 0 || what == "another kind", "{what}");
        assert!(*asked.lock().unwrap() < 40, "{what}: asked {} times", asked.lock().unwrap());
        drop(client);
        owned.runtime.block_on(lying).unwrap();
    }
}
