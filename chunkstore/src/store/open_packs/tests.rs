//! Packs between their adoption by the index and the end of their sealing.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::format::codec::Codec;
use crate::format::id::ChunkId;
use crate::format::record::{Kind, Record};
use crate::maintenance::gc;
use crate::progress::Progress;
use crate::testing::{init, open};

#[test]
fn a_pack_whose_records_are_pending_still_is_not_collected() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let session = store.session(None).unwrap();
    let id = ChunkId::of(b"garbage").into();
    session.put(vec![Record::new(Kind::Chunk, id, 7, Codec::Raw, b"garbage".to_vec(), None)]).unwrap();
    session.flush().unwrap();
    drop(session);
    let number = store.packs().rows()[0].id.number;
    // As between the pack's adoption and the end of its sealing.
    store.open_packs.lock().sealing.insert(number);
    let collect = || gc::collect(&store, false, 1, &Progress::default()).unwrap().removed_packs;
    assert_eq!(collect(), 0);
    store.open_packs.lock().sealing.remove(&number);
    assert_eq!(collect(), 1);
}
