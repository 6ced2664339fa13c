//! Extents that are reserved, written and reported; and every way in which that fails.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::error::Error;
use crate::format::limits::PACK_BYTES_TARGET;
use crate::format::manifest::ChunkSource;
use crate::format::{ChunkId, Codec, Header, Kind, PackId, RecordCodec, RecordId};
use crate::maintenance::verify::verify;
use crate::pack::direct_writer::bytes_of;
use crate::pack::{self, Class, EXTENT_BYTES_MAX, Extent, ExtentAllocator, PackReader};
use crate::progress::Progress;
use crate::storage::Storage;
use crate::store::crash_tests::{new_storage, open_on};
use crate::store::sink::Claim::{Elsewhere as Taken, Present, Yours};
use crate::store::{OpenOptions, Store};
use crate::testing::{init, noise, open, open_options};

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    (dir, store)
}

/// A chunk that takes about as many bytes in a pack.
fn chunk(seed: u64) -> Record {
    let bytes = noise(4000, seed);
    Record::new(Kind::Chunk, id(seed), bytes.len(), Codec::Raw, bytes, None)
}

fn id(seed: u64) -> RecordId {
    ChunkId::of(&noise(4000, seed)).into()
}

fn reserve(session: &WriteSession, records: &[Record]) -> Extent {
    session.reserve(Class::Data, bytes_of(records) as u32).unwrap()
}

fn write(session: &WriteSession, room: Extent, records: &[Record]) {
    pack::write_records(&**session.store().storage(), room.pack, room.offset, records).unwrap();
}

fn tell(session: &WriteSession, room: Extent, records: &[Record]) -> Result<bool> {
    session.append_written(room, &headers(records))
}

fn headers(records: &[Record]) -> Vec<Header> {
    records.iter().map(|record| record.header).collect()
}

/// Checks that all records of these seeds are there and intact, and so is the store, also after its index was lost.
fn assert_sound(dir: &Path, store: Arc<Store>, seeds: &[u64]) {
    let read = |store: &Store| {
        for seed in seeds {
            assert_eq!(store.chunk(ChunkId::of(&noise(4000, *seed))).unwrap().bytes(), noise(4000, *seed), "{seed}");
        }
    };
    read(&store);
    let report = verify(&store, &[], 1, &Progress::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    drop(store);
    fs::remove_dir_all(dir.join("index")).unwrap();
    let store = open(dir);
    read(&store);
    let report = verify(&store, &[], 1, &Progress::default()).unwrap();
    assert!(report.is_sound(), "after its index was lost: {report:?}");
}

#[test]
fn what_was_written_into_lent_room_is_as_any_other_record() {
    let (dir, store) = store();
    let (session, other) = (store.session(None).unwrap(), store.session(None).unwrap());
    let records = [chunk(1), chunk(2)];
    let ids = [id(1), id(2)];
    assert_eq!(session.claim(&ids).unwrap(), [Yours, Yours]);
    let room = reserve(&session, &records);
    write(&session, room, &records);
    assert_eq!(other.claim(&ids).unwrap(), [Taken; 2], "not told of yet");
    assert!(tell(&session, room, &records).unwrap());
    assert_eq!(other.claim(&ids).unwrap(), [Present, Present]);
    assert_eq!(session.stored_bytes(), 64 + 64 + 2 * (96 + 4000 + 84));
    other.flush().unwrap();
    assert_eq!(store.is_full(&ids).unwrap(), [true, true], "who counts on it can seal it");
    drop((session, other));
    assert_sound(dir.path(), store, &[1, 2]);
}

#[test]
fn only_the_room_that_was_lent_last_is_taken_and_only_from_whom_it_was_lent_to() {
    let (dir, store) = store();
    let (session, other) = (store.session(None).unwrap(), store.session(None).unwrap());
    let records = [chunk(1)];
    let old = reserve(&session, &records);
    let room = reserve(&session, &records);
    assert!(old.pack == room.pack && old.offset < room.offset, "what was lent before is left to its borrower");
    write(&session, room, &records);
    let elsewhere = [
        old,
        Extent { offset: room.offset + 1, ..room },
        Extent { pack: PackId { number: room.pack.number + 1, ..room.pack }, ..room },
    ];
    for wrong in elsewhere {
        assert!(!tell(&session, wrong, &records).unwrap(), "{wrong:?}");
    }
    assert!(!tell(&other, room, &records).unwrap());
    for (wrong, records) in [
        (Extent { bytes: room.bytes - 1, ..room }, &records[..]),
        (Extent { class: Class::Meta, ..room }, &records),
        (room, &[chunk(1), chunk(2)]),
        (room, &[]),
    ] {
        assert!(matches!(tell(&session, wrong, records), Err(Error::Invalid { .. })), "{wrong:?}");
    }
    assert!(matches!(session.reserve(Class::Data, EXTENT_BYTES_MAX + 1), Err(Error::Invalid { .. })));
    assert_ne!(store.session(None).unwrap().claim(&[id(1)]).unwrap(), [Present], "nothing was put");
    assert!(tell(&session, room, &records).unwrap());
    assert!(!tell(&session, room, &records).unwrap(), "once");
    session.flush().unwrap();
    drop((session, other));
    assert_sound(dir.path(), store, &[1]);
}

#[test]
fn who_writes_late_harms_nothing() {
    let (dir, store) = store();
    let (slow, other) = (store.session(None).unwrap(), store.session(None).unwrap());
    let first = [chunk(1)];
    let room = reserve(&slow, &first);
    write(&slow, room, &first);
    assert!(tell(&slow, room, &first).unwrap());
    // Another session relies on records that are already in the pack, and does not wait for its writer.
    assert_eq!(other.claim(&[id(1)]).unwrap(), [Present]);
    let late = [chunk(2), chunk(3)];
    let room = reserve(&slow, &late);
    other.flush().unwrap();
    let storage = Arc::clone(store.storage());
    let before = PackReader::open(&*storage, room.pack).unwrap().table().unwrap();
    let pack = dir.path().join(pack::path(room.pack));
    let file = fs::File::options().write(true).open(pack).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; room.bytes as usize], room.offset.into()).unwrap();
    assert_eq!(PackReader::open(&*storage, room.pack).unwrap().table().unwrap(), before);
    assert!(!tell(&slow, room, &late).unwrap(), "the pack is sealed");
    slow.put(late.to_vec()).unwrap();
    slow.flush().unwrap();
    drop((slow, other));
    assert_sound(dir.path(), store, &[1, 2, 3]);
}

#[test]
fn a_pack_is_everybodys_after_its_borrower_and_a_gap_is_where_it_may_still_write() {
    let (dir, store) = store();
    let (gone, next) = (store.session(None).unwrap(), store.session(None).unwrap());
    let (first, never) = ([chunk(1)], [chunk(2)]);
    let room = reserve(&gone, &first);
    write(&gone, room, &first);
    assert!(tell(&gone, room, &first).unwrap());
    let room = reserve(&gone, &never);
    next.put(vec![chunk(3)]).unwrap();
    drop(gone);
    next.put(vec![chunk(4)]).unwrap();
    write(&next, room, &never);
    store.flush_open_packs().unwrap();
    let table = |number: u32| store.packs().reader(number).unwrap().table().unwrap();
    let offsets: Vec<u32> = table(room.pack.number).iter().map(|entry| entry.offset).collect();
    assert_eq!((offsets.len(), offsets[0]), (2, 64));
    assert!(offsets[1..].iter().all(|offset| *offset >= room.offset + room.bytes), "{offsets:?}");
    drop(next);
    assert_sound(dir.path(), store, &[1, 3, 4]);
}

#[test]
fn what_is_there_already_becomes_a_gap() {
    let (dir, store) = store();
    let session = store.session(None).unwrap();
    session.put(vec![chunk(2)]).unwrap();
    let records = [chunk(1), chunk(2), chunk(3), chunk(3)];
    let room = reserve(&session, &records);
    write(&session, room, &records);
    assert!(tell(&session, room, &records).unwrap());
    session.flush().unwrap();
    assert_eq!(store.packs().reader(room.pack.number).unwrap().table().unwrap().len(), 3);
    drop(session);
    assert_sound(dir.path(), store, &[1, 2, 3]);
}

#[test]
fn a_delta_is_taken_only_if_its_base_is_there() {
    let (dir, store) = store();
    let session = store.session(None).unwrap();
    let base = noise(4000, 1);
    let near = [&base[..3000], &[7; 3000]].concat();
    let (codec, payload) = RecordCodec::new(1).payload(&near, Some(&base));
    let delta = [Record::new(Kind::Chunk, ChunkId::of(&near).into(), near.len(), codec, payload, Some(id(1)))];
    let put = |session: &WriteSession| {
        let room = session.reserve(Class::DataDelta, bytes_of(&delta) as u32).unwrap();
        write(session, room, &delta);
        tell(session, room, &delta)
    };
    assert!(matches!(put(&session), Err(Error::Refused { .. })));
    session.put(vec![chunk(1)]).unwrap();
    session.flush().unwrap();
    assert!(put(&session).unwrap());
    session.flush().unwrap();
    drop(session);
    assert_eq!(store.chunk(ChunkId::of(&near)).unwrap().bytes(), near);
    assert_sound(dir.path(), store, &[1]);
}

#[test]
fn packs_that_are_lent_are_sealed_when_they_are_full() {
    let (dir, _) = store();
    let pack_bytes = 20_000;
    let store = Arc::new(Store::open(dir.path(), &OpenOptions { pack_bytes, ..open_options() }).unwrap());
    assert!(PACK_BYTES_TARGET > pack_bytes);
    let session = store.session(None).unwrap();
    let beside = DirectWriteSession::new(&session);
    (0..12).for_each(|seed| beside.put(vec![chunk(2 * seed), chunk(2 * seed + 1)]).unwrap());
    session.flush().unwrap();
    assert_eq!(store.packs().rows().len(), 4, "three times two records make a pack");
    drop(session);
    assert_sound(dir.path(), store, &(0..24).collect::<Vec<_>>());
}

#[test]
fn what_is_lent_again_and_again_fills_packs_and_is_never_lent_twice() {
    let (dir, store) = store();
    let session = store.session(None).unwrap();
    let told = [chunk(1)];
    let room = reserve(&session, &told);
    write(&session, room, &told);
    assert!(tell(&session, room, &told).unwrap());
    let mut rooms: Vec<Extent> = (0..300).map(|_| session.reserve(Class::Data, EXTENT_BYTES_MAX).unwrap()).collect();
    rooms.sort_unstable_by_key(|room| (room.pack.number, room.offset));
    let overlaps = |pair: &[Extent]| pair[0].pack == pair[1].pack && pair[0].offset + pair[0].bytes > pair[1].offset;
    assert!(!rooms.windows(2).any(overlaps));
    assert!(rooms.iter().all(|room| u64::from(room.offset) < PACK_BYTES_TARGET));
    drop(session);
    assert_eq!(store.packs().rows().len(), 1, "packs without records are gone");
    let files = fs::read_dir(dir.path().join("packs")).unwrap().count();
    assert_eq!(files, 1);
    assert_sound(dir.path(), store, &[1]);
}

#[test]
fn sessions_that_only_borrow_do_not_make_a_pack_grow_without_end() {
    let (dir, store) = store();
    let first = store.session(None).unwrap();
    first.put(vec![chunk(1)]).unwrap();
    for _ in 0..10 {
        let room = store.session(None).unwrap().reserve(Class::Data, EXTENT_BYTES_MAX).unwrap();
        assert!(u64::from(room.offset) < PACK_BYTES_TARGET, "{room:?}");
    }
    first.flush().unwrap();
    drop(first);
    assert_sound(dir.path(), store, &[1]);
}

#[test]
fn as_many_packs_are_lent_as_have_files_open() {
    let (dir, store) = store();
    let sessions: Vec<WriteSession> = (0..70).map(|_| store.session(None).unwrap()).collect();
    let lent = sessions.iter().filter(|session| match session.reserve(Class::Data, 5000) {
        Ok(_) => true,
        Err(Error::Busy { .. }) => false,
        Err(error) => panic!("{error}"),
    });
    assert_eq!(lent.count(), 64);
    let last = sessions.last().unwrap();
    assert_eq!(DirectWriter::new(0).put(last, &**store.storage(), vec![chunk(1)]).unwrap().len(), 1);
    last.put(vec![chunk(1)]).unwrap();
    last.flush().unwrap();
    drop(sessions);
    assert_sound(dir.path(), store, &[1]);
}

/// Seals packs between the reservation and the write.
struct SealsFirst<'a>(&'a WriteSession);

impl ExtentAllocator for SealsFirst<'_> {
    fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        let room = self.0.reserve(class, bytes)?;
        self.0.flush()?;
        Ok(room)
    }

    fn append_written(&self, room: Extent, headers: &[Header]) -> Result<bool> {
        self.0.append_written(room, headers)
    }
}

#[test]
fn who_finds_a_pack_sealed_goes_on_with_another() {
    let (dir, store) = store();
    let session = store.session(None).unwrap();
    let storage = Arc::clone(store.storage());
    let beside = DirectWriter::new(0);
    let left =
        |lender: &dyn ExtentAllocator, seed: u64| beside.put(lender, &*storage, vec![chunk(seed)]).unwrap().len();
    assert_eq!(left(&session, 1), 0);
    assert_eq!(left(&SealsFirst(&session), 2), 1, "it has another name by now");
    assert_eq!(left(&session, 3), 0);
    session.flush().unwrap();
    drop(session);
    assert_sound(dir.path(), store, &[1, 3]);
}

/// Reserves an extent in a file that does not exist.
struct Elsewhere<'a>(&'a WriteSession, fn(Extent) -> Result<Extent>);

impl ExtentAllocator for Elsewhere<'_> {
    fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        self.1(self.0.reserve(class, bytes)?)
    }

    fn append_written(&self, _: Extent, _: &[Header]) -> Result<bool> {
        panic!("nothing can be written")
    }
}

#[test]
fn what_can_not_be_written_here_is_left() {
    let (_dir, store) = store();
    let session = store.session(None).unwrap();
    let storage = Arc::clone(store.storage());
    let records = || vec![chunk(1), chunk(2)];
    let left =
        |lender: &dyn ExtentAllocator, beside: &DirectWriter| beside.put(lender, &*storage, records()).unwrap().len();
    let elsewhere =
        Elsewhere(&session, |room| Ok(Extent { pack: PackId { tag: !room.pack.tag, ..room.pack }, ..room }));
    let denying = Elsewhere(&session, |_| Err(Error::denied("not here")));
    for lender in [elsewhere, denying] {
        let beside = DirectWriter::new(0);
        assert_eq!(left(&lender, &beside), 2);
        assert_eq!(left(&session, &beside), 2, "nobody is asked again");
    }
    assert_eq!(left(&session, &DirectWriter::new(9000)), 2, "too little");
    let full = Elsewhere(&session, |_| Err(Error::OutOfSpace { path: "packs".into(), is_quota: false }));
    assert!(matches!(DirectWriter::new(0).put(&full, &*storage, records()), Err(Error::OutOfSpace { .. })));
    assert_eq!(left(&session, &DirectWriter::new(0)), 0);
}

#[test]
fn a_write_that_fails_takes_nobody_else_along() {
    let dir = tempfile::tempdir().unwrap();
    let storage = new_storage();
    let store = open_on(dir.path(), &storage).unwrap();
    let (failing, other) = (store.session(None).unwrap(), store.session(None).unwrap());
    let first = [chunk(1)];
    let room = reserve(&failing, &first);
    write(&failing, room, &first);
    assert!(tell(&failing, room, &first).unwrap());
    assert_eq!(other.claim(&[id(1)]).unwrap(), [Present]);
    storage.fail_at(storage.calls() + 1, ErrorKind::StorageFull);
    let put = DirectWriter::new(0).put(&failing, &storage, vec![chunk(2)]);
    assert!(matches!(put, Err(Error::OutOfSpace { .. })));
    drop(failing);
    other.put(vec![chunk(3)]).unwrap();
    other.flush().unwrap();
    assert_eq!(store.is_full(&[id(1), id(2), id(3)]).unwrap(), [true, false, true]);
    let files = storage.list("packs").unwrap().files.concat();
    assert!(!files.contains(".part"), "{files}");
}
