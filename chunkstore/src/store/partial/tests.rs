//! Partial snapshots: published, collected, verified, completed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::*;
use crate::catalog::{Snapshot, State};
use crate::format::{Chunk, ChunkId, Codec, HEADER_BYTES, Kind, Record, manifest};
use crate::ingest::{Base, ingest};
use crate::maintenance::gc;
use crate::maintenance::stats;
use crate::maintenance::verify::{VerifyReport, verify};
use crate::pack::RecordLocation;
use crate::progress::Progress;
use crate::store::WriteSession;
use crate::store::damaged::BadRecord;
use crate::store::sink::Claim;
use crate::testing::{disk, init, night, noise, open, options, put, read_back};

const DAY: u32 = 1;

/// A store with a snapshot, and an empty one.
struct Sites {
    _dirs: [tempfile::TempDir; 2],
    far: Arc<Store>,
    near: Arc<Store>,
    snapshot: Snapshot,
    image: Vec<u8>,
}

impl Sites {
    fn new() -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        dirs.iter().for_each(|dir| init(dir.path()));
        let [far, near] = [open(dirs[0].path()), open(dirs[1].path())];
        let image = noise(9 << 20, 1);
        let snapshot = put(&far, night("web01", DAY), &image);
        Self { _dirs: dirs, far, near, snapshot, image }
    }

    /// The snapshot as it arrives from elsewhere.
    fn received(&self) -> Snapshot {
        let encoding = self.snapshot.entry_encoding().to_vec();
        Snapshot::from_entry(self.snapshot.entry_id(), encoding, State::default()).unwrap()
    }

    /// The far store's records below the snapshot: the nodes from the top down, then the chunks in order.
    fn records(&self) -> Vec<Record> {
        let entry = self.snapshot.entry();
        let (mut nodes, mut chunks) = (vec![RecordId::from(entry.root.unwrap())], Vec::new());
        manifest::walk(&*self.far, entry.root, entry.virtual_bytes, &mut |segment| {
            nodes.push(segment.leaf.into());
            let leaf = manifest::read_leaf(&*self.far, segment.leaf)?;
            chunks.extend(leaf.chunks().map(|(_, id, _)| RecordId::from(id)));
            Ok(())
        })
        .unwrap();
        nodes.append(&mut chunks);
        nodes.dedup();
        let mut records: Vec<Option<Record>> = vec![None; nodes.len()];
        self.far
            .records(&nodes, &mut |at, record| {
                records[at] = Some(record?);
                Ok(())
            })
            .unwrap();
        records.into_iter().map(Option::unwrap).collect()
    }

    fn session(&self) -> WriteSession {
        self.near.session(None).unwrap()
    }

    fn publish_partial(&self) -> Snapshot {
        self.session().publish_partial(&self.received()).unwrap()
    }

    /// Copies these records.
    fn bring(&self, records: &[Record]) {
        let session = self.session();
        session.put_verified(records.to_vec()).unwrap();
        session.flush().unwrap();
    }

    fn presence(&self) -> Presence {
        note_presence(&self.near, &self.snapshot.name()).unwrap().expect("it is partial")
    }

    fn verify(&self) -> VerifyReport {
        verify(&self.near, &[], 2, &Progress::default()).unwrap()
    }

    fn collect(&self) -> gc::GcReport {
        gc::collect(&self.near, false, 2, &Progress::default()).unwrap()
    }

    fn has(&self, record: &Record) -> Option<RecordLocation> {
        self.near.locate(&[record.header.id]).unwrap()[0]
    }
}

#[test]
fn what_is_here_of_a_partial_snapshot_is_counted_and_kept_and_the_rest_is_absent() {
    let sites = Sites::new();
    sites.publish_partial();
    assert_eq!(sites.presence().percent(), 0);
    let records = sites.records();
    // The root, one of the three leaves, and no chunk; then half of the chunks and nodes; then all but one chunk.
    let mut before = 0;
    for count in [2, records.len() / 2, records.len() - 1] {
        sites.bring(&records[..count]);
        let report = sites.collect();
        assert_eq!((report.missing_records, report.dead_records), (0, 0), "{count}: {report:?}");
        assert!(records[..count].iter().all(|record| sites.has(record).is_some()), "{count}");
        let presence = sites.presence();
        assert!(presence.percent() >= before && presence.percent() < 100, "{count}: {presence:?}");
        before = presence.percent();
        let report = sites.verify();
        assert!(report.is_sound() && report.partial_snapshots == 1 && report.absent_records > 0, "{count}: {report:?}");
        assert!(sites.near.damaged().is_empty(), "absent is not damaged");
        stats::stats(&sites.near, 2, &Progress::default()).unwrap();
    }
    assert!(before >= 90, "{before} %");
    let there = sites.near.catalog().read(&sites.snapshot.name()).unwrap();
    assert_eq!(there.state.presence, Some(sites.presence()));
    assert!(matches!(there.check_whole(), Err(Error::Refused { what }) if what.contains("vmstore pull")));
    // Without the snapshot none of its records is needed.
    sites.near.catalog().remove(&sites.snapshot.name()).unwrap();
    sites.collect();
    assert!(records[..records.len() - 1].iter().all(|record| sites.has(record).is_none()));
}

#[test]
fn it_becomes_an_ordinary_one_only_when_all_is_here() {
    let sites = Sites::new();
    sites.publish_partial();
    let records = sites.records();
    sites.bring(&records[..records.len() - 1]);
    let incomplete = sites.session().publish_snapshot(sites.received(), None);
    assert!(matches!(incomplete, Err(Error::Damaged { .. })), "{incomplete:?}");
    assert!(sites.near.catalog().read(&sites.snapshot.name()).unwrap().state.partial);
    sites.bring(&records[records.len() - 1..]);
    let complete = sites.session().publish_snapshot(sites.received(), None).unwrap();
    assert!(!complete.state.partial && complete.state.presence.is_none() && complete.check_whole().is_ok());
    assert_eq!(sites.near.catalog().read(&sites.snapshot.name()).unwrap(), complete);
    assert_eq!(note_presence(&sites.near, &sites.snapshot.name()).unwrap(), None);
    let report = sites.verify();
    assert!(report.is_sound() && report.partial_snapshots == 0 && report.absent_records == 0, "{report:?}");
    assert!(read_back(&*sites.near, complete.entry()).unwrap() == sites.image);
    // A second time fails.
    assert!(sites.session().publish_snapshot(sites.received(), None).is_err());
}

#[test]
fn what_a_whole_snapshot_lacks_stops_gc_also_beside_a_partial_one_of_the_same_root() {
    let sites = Sites::new();
    let records = sites.records();
    sites.bring(&records);
    sites.session().publish_snapshot(sites.received(), None).unwrap();
    let mut other = sites.snapshot.entry().clone();
    // Before the complete one in the catalog.
    other.image = "a".parse().unwrap();
    let other = sites.session().publish_partial(&Snapshot::create(other, State::default()).unwrap()).unwrap();
    assert!(other.state.partial);
    sites.collect();
    let leaf = sites.has(&records[1]).unwrap();
    let pack = sites.near.packs().row(leaf.pack).unwrap().id;
    let bad = BadRecord { pack, offset: leaf.offset, id: records[1].header.id, base_lost: false };
    sites.near.add_damaged(&[bad]).unwrap();
    let stopped = gc::collect(&sites.near, false, 2, &Progress::default());
    assert!(matches!(&stopped, Err(Error::Damaged { detail, .. }) if detail.contains("web01")), "{stopped:?}");
    // Below the partial snapshot alone it may be missing.
    sites.near.catalog().remove(&sites.snapshot.name()).unwrap();
    sites.collect();
}

#[test]
fn publishing_a_partial_one_again_changes_nothing_and_another_of_its_name_is_refused() {
    let sites = Sites::new();
    let first = sites.publish_partial();
    assert_eq!(sites.publish_partial(), first);
    let mut other = sites.snapshot.entry().clone();
    other.virtual_bytes += 4096;
    let other = Snapshot::create(other, State::default()).unwrap();
    assert!(matches!(sites.session().publish_partial(&other), Err(Error::Refused { .. })));
    assert!(matches!(sites.session().publish_snapshot(other, None), Err(Error::Refused { .. })));
    let mut zeros = sites.snapshot.entry().clone();
    (zeros.image, zeros.root) = ("zeros".parse().unwrap(), None);
    let zeros = sites.session().publish_partial(&Snapshot::create(zeros, State::default()).unwrap()).unwrap();
    assert!(!zeros.state.partial, "of zeros nothing is missing");
}

#[test]
fn of_many_who_publish_the_same_partial_one_at_once_none_fails() {
    let sites = Sites::new();
    let published: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| sites.publish_partial())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(published.iter().all(|snapshot| *snapshot == published[0] && snapshot.state.partial));
    assert!(sites.near.catalog().tombstones().unwrap().is_empty());
    assert!(sites.verify().is_sound());
}

#[test]
fn a_partial_parent_is_not_trusted_and_the_next_night_is_whole() {
    let sites = Sites::new();
    sites.publish_partial();
    let records = sites.records();
    sites.bring(&records[..records.len() / 2]);
    let session = sites.near.session(Some(&sites.snapshot.name())).unwrap();
    assert!(!session.trusts_parent());
    drop(session);
    let mut image = sites.image.clone();
    image[5_000_000] ^= 1;
    let next = put(&sites.near, night("web01", DAY + 1), &image);
    assert!(read_back(&*sites.near, next.entry()).unwrap() == image);
    assert!(sites.verify().is_sound());
    sites.collect();
    assert!(read_back(&*sites.near, next.entry()).unwrap() == image);
}

#[test]
fn a_damaged_record_that_a_reader_reports_is_put_again_whole() {
    let sites = Sites::new();
    let records = sites.records();
    sites.bring(&records);
    sites.session().publish_snapshot(sites.received(), None).unwrap();
    let mut image = sites.image.clone();
    image[5_000_000] ^= 1;
    let base = Base::Snapshot(sites.snapshot.name());
    let second = ingest(&sites.near, disk(&image), &options(night("web01", 2), base), &Progress::default()).unwrap();
    let delta = delta_below(&sites.near, &second);
    let sound = records.last().unwrap().header.id;
    // (the broken record, the reported one)
    for (broken, reported) in [(base_of(&sites.near, delta), delta), (delta, delta), (sound, sound)] {
        assert_eq!(sites.near.check_suspects(&[reported]).unwrap(), [false], "sound before");
        let whole = Chunk::hash(plain(&sites.near, broken));
        break_record(&sites, broken);
        assert_eq!(sites.near.check_suspects(&[reported]).unwrap(), [true]);
        let session = sites.session();
        assert_eq!(session.claim(&[broken]).unwrap(), [Claim::YoursWhole]);
        let record = Record::new(Kind::Chunk, broken, whole.bytes().len(), Codec::Raw, whole.bytes().to_vec(), None);
        session.put_verified(vec![record]).unwrap();
        session.flush().unwrap();
        assert_eq!(sites.near.check_suspects(&[reported, broken]).unwrap(), [false, false], "healed");
    }
    assert!(read_back(&*sites.near, second.entry()).unwrap() == image);
    assert_eq!(sites.near.check_suspects(&[ChunkId::of(b"nowhere").into()]).unwrap(), [true]);
}

fn plain(store: &Store, id: RecordId) -> Vec<u8> {
    store.chunk(ChunkId::from_bytes(*id.as_bytes())).unwrap().into_bytes()
}

fn stored(store: &Store, id: RecordId) -> Record {
    let mut stored = None;
    store
        .records(&[id], &mut |_, record| {
            stored = Some(record?);
            Ok(())
        })
        .unwrap();
    stored.unwrap()
}

fn base_of(store: &Store, id: RecordId) -> RecordId {
    stored(store, id).header.base.unwrap()
}

/// A chunk of the snapshot that is stored as a delta.
fn delta_below(store: &Store, snapshot: &Snapshot) -> RecordId {
    let (mut found, entry) = (None, snapshot.entry());
    manifest::walk(store, entry.root, entry.virtual_bytes, &mut |segment| {
        let leaf = manifest::read_leaf(store, segment.leaf)?;
        let mut ids = leaf.chunks().map(|(_, id, _)| RecordId::from(id));
        found = found.or_else(|| ids.find(|id| stored(store, *id).header.base.is_some()));
        Ok(())
    })
    .unwrap();
    found.expect("a changed chunk is a delta")
}

/// Flips a byte in the middle of a record's payload.
fn break_record(sites: &Sites, id: RecordId) {
    let location = sites.near.locate(&[id]).unwrap()[0].unwrap();
    let pack = sites.near.packs().row(location.pack).unwrap().id;
    let packs = fs::read_dir(sites.near.dir().join("packs")).unwrap();
    let path = packs
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().contains(&format!("{pack}")));
    let file = fs::OpenOptions::new().read(true).write(true).open(path.expect("the pack has a file")).unwrap();
    let at = u64::from(location.offset) + HEADER_BYTES as u64 + u64::from(location.stored_bytes) / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}
