//! Reading a store's packs without its index, by what it tells of locations.

use super::*;
use crate::format::manifest::{ChunkSource, Node};
use crate::format::{Chunk, ChunkId, NodeId, RecordCodec, RecordId};
use crate::maintenance::gc;
use crate::pack::RecordLocation;
use crate::pack::record_reader::{Locator, RecordReader};
use crate::progress::Progress;
use crate::store::Store;
use crate::testing::{init, night, noise, open, put};

/// Keeps the first location that it was told of a record, as a client does.
struct Kept<'a> {
    store: &'a Store,
    files: PackFiles,
    locations: Mutex<HashMap<RecordId, RecordLocation>>,
}

impl<'a> Kept<'a> {
    fn new(store: &'a Store) -> Self {
        Self { store, files: PackFiles::new(store.dir()), locations: Mutex::default() }
    }

    fn keep(&self, id: RecordId, location: Option<RecordLocation>) -> Option<RecordLocation> {
        let location = location?;
        self.files.note(self.store.packs().row(location.pack).map(|row| row.id).into_iter());
        self.locations.lock().insert(id, location);
        Some(location)
    }
}

impl Locator for Kept<'_> {
    fn codec(&self) -> &RecordCodec {
        self.store.codec()
    }

    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        let find = |id: &RecordId| {
            let kept = self.locations.lock().get(id).copied();
            Ok(match kept {
                Some(location) => Some(location),
                None => self.keep(*id, self.store.locate(&[*id])?[0]),
            })
        };
        ids.iter().map(find).collect()
    }

    fn locate_again(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        Ok(ids.iter().zip(self.store.locate(ids)?).map(|(id, location)| self.keep(*id, location)).collect())
    }

    fn pack(&self, number: u32) -> Result<Arc<PackReader>> {
        self.files.reader(number)
    }

    fn absent(&self, what: &str) -> Error {
        Error::damaged(what, "nobody knows its place")
    }
}

fn chunks_of(store: &Store, root: NodeId) -> Vec<ChunkId> {
    let Ok(Node::Leaf(leaf)) = store.node(root) else { panic!("a leaf") };
    leaf.chunks().map(|(_, id, _)| id).collect()
}

fn read(locations: &Kept<'_>, ids: &[ChunkId]) -> usize {
    let mut read = 0;
    let each = &mut |at: usize, chunk: Result<Chunk>| {
        assert_eq!(chunk.unwrap().id(), ids[at]);
        read += 1;
        Ok(())
    };
    RecordReader::new(locations).chunks(ids, each).unwrap();
    read
}

#[test]
fn kept_places_serve_until_gc_moves_what_lies_there_and_removed_packs_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let store = open(dir.path());
    let mut image = noise(1 << 20, 1);
    for day in 0..8 {
        let at = day as usize * 100_000;
        image[at..at + 50_000].copy_from_slice(&noise(50_000, 2 + u64::from(day)));
        image[at + 70_000] ^= 1;
        put(&store, night("web01", day), &image);
    }
    let root = store.catalog().read(&night("web01", 7)).unwrap().entry().root.unwrap();
    let ids = chunks_of(&store, root);
    let kept = Kept::new(&store);
    assert_eq!(read(&kept, &ids), ids.len());
    let open: Vec<u32> = kept.files.open().readers.keys().copied().collect();
    (0..7).for_each(|day| store.catalog().remove(&night("web01", day)).unwrap());
    gc::collect(&store, false, 1, &Progress::default()).unwrap();
    let gone: Vec<u32> = open.into_iter().filter(|number| store.packs().row(*number).is_none()).collect();
    assert!(!gone.is_empty());
    assert_eq!(read(&kept, &ids), ids.len(), "what is open can be read");
    kept.files.close_unused();
    assert!(gone.iter().all(|number| !kept.files.open().readers.contains_key(number)), "its bytes are freed");
    assert_eq!(read(&kept, &ids), ids.len(), "what moved is found where it is");
    kept.files.close_unused();
    assert!(!kept.files.open().readers.is_empty());
    kept.files.close_unused();
    assert!(kept.files.open().readers.is_empty(), "nobody used them");
}

#[test]
fn the_name_of_a_pack_may_change_and_open_packs_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("packs")).unwrap();
    let files = PackFiles::new(dir.path());
    let name = |number: u32, tag: u32| {
        let id = PackId { number, tag };
        std::fs::write(dir.path().join(crate::pack::path(id)), b"").unwrap();
        id
    };
    assert!(files.reader(1).is_err(), "its name is not known");
    for tag in [7, 8] {
        files.note([name(1, tag)].into_iter());
        assert_eq!(files.reader(1).unwrap().id().tag, tag);
    }
    for number in 0..600 {
        files.note([name(number, 1)].into_iter());
        files.reader(number).unwrap();
        assert!(files.open().readers.len() <= 256);
    }
}
