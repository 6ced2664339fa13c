//! Reads a store's packs directly; the owner only says where records lie.
//!
//! For clients on the store's own machine that may open its packs. The owner's answer is a hint: every record is
//! checked against its id, so gc may move a record meanwhile, and a wrong answer causes an error and no more. Records
//! that can't be read here are requested from the owner as by a client on another machine, and the owner reports the
//! reason. If packs can't be opened at all, or the owner gives no locations, all records are.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chunkstore::format::manifest::{ChunkSource, Node};
use chunkstore::format::{Chunk, ChunkId, NodeId, RecordCodec, RecordId};
use chunkstore::pack::{Locator, PackFiles, PackReader, RecordLocation, RecordReader};
use chunkstore::storage::Storage;
use chunkstore::{Error, Result};
use quick_cache::sync::Cache;
use tokio::runtime::Handle;

use crate::rpc::wire::{IDS_MAX, Located};

/// Cached locations, of about 80 bytes each.
const PLACES_KEPT: usize = 1 << 19;
/// A pack is closed after this time without use, and at the latest this long after it was removed.
const CLOSE_AFTER: Duration = Duration::from_secs(10);

/// Shared by the local clients of one store: cached locations and open packs.
pub struct LocalPacks {
    files: PackFiles,
    places: Cache<RecordId, Located>,
    /// The store's, set by the first connection.
    codec: OnceLock<RecordCodec>,
    /// Everything is requested from the owner.
    is_disabled: AtomicBool,
}

impl fmt::Debug for LocalPacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPacks").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

impl LocalPacks {
    /// The packs of the store in `dir`. The runtime closes unused ones.
    pub fn new(dir: &Path, runtime: &Handle) -> Arc<Self> {
        let places = Cache::new(PLACES_KEPT);
        let (codec, is_disabled) = (OnceLock::new(), AtomicBool::new(false));
        let packs = Arc::new(Self { files: PackFiles::new(dir), places, codec, is_disabled });
        let weak = Arc::downgrade(&packs);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(CLOSE_AFTER).await;
                let Some(packs) = weak.upgrade() else { return };
                packs.files.close_unused();
            }
        });
        packs
    }

    /// Takes the codec of the store whose owner was connected to.
    pub(crate) fn set_codec(&self, codec: &RecordCodec) {
        self.codec.get_or_init(|| codec.clone());
    }

    fn codec(&self) -> &RecordCodec {
        self.codec.get().expect("an owner locates records only after its welcome")
    }

    /// Whether packs are read here.
    pub(crate) fn are_readable(&self) -> bool {
        !self.is_disabled.load(Ordering::Relaxed)
    }

    /// The storage of the packs' files.
    pub(crate) fn storage(&self) -> &dyn Storage {
        self.files.storage()
    }

    fn disable(&self, why: &Error) {
        if !self.is_disabled.swap(true, Ordering::Relaxed) {
            tracing::info!("packs are not read beside the store's owner: {why}");
        }
    }

    /// Caches locations from the owner.
    pub(crate) fn keep(&self, ids: &[RecordId], located: &[Option<Located>]) {
        for (id, located) in ids.iter().zip(located) {
            match located {
                Some(located) => self.places.insert(*id, *located),
                None => {
                    self.places.remove(id);
                }
            }
        }
    }

    fn known(&self, ids: &[RecordId]) -> Vec<Option<Located>> {
        ids.iter().map(|id| self.places.get(id)).collect()
    }

    fn note(&self, located: &[Option<Located>]) -> Vec<Option<RecordLocation>> {
        self.files.note(located.iter().flatten().map(|located| located.pack));
        located.iter().map(|located| located.map(|located| located.location)).collect()
    }
}

/// A connection to the owner, which gives locations, and records that can't be read at them.
pub(crate) trait OwnerConnection: Send + Sync {
    /// Where records lie; as many as were asked for, at most [`IDS_MAX`].
    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<Located>>>;

    /// As [`ChunkSource::chunks`], through the connection.
    fn fetch_chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()>;

    /// As [`ChunkSource::nodes`], through the connection.
    fn fetch_nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()>;
}

/// Reads packs with locations from the owner.
pub(crate) struct LocalReader<'a> {
    packs: &'a LocalPacks,
    owner: &'a dyn OwnerConnection,
}

impl<'a> LocalReader<'a> {
    pub(crate) fn new(packs: &'a LocalPacks, owner: &'a dyn OwnerConnection) -> Self {
        Self { packs, owner }
    }

    /// Asks for locations and caches them. An owner that gives none is not asked again.
    fn ask_owner(&self, ids: &[RecordId]) -> Result<Vec<Option<Located>>> {
        let mut located = Vec::with_capacity(ids.len());
        for group in ids.chunks(IDS_MAX) {
            match self.owner.locate(group) {
                Ok(found) => {
                    self.packs.keep(group, &found);
                    located.extend(found);
                }
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => {
                    self.packs.disable(&error);
                    located.extend(group.iter().map(|_| None));
                }
            }
        }
        Ok(located)
    }

    fn expect_records(&self, mut ids: Vec<RecordId>) {
        ids.retain(|id| !self.packs.places.contains_key(id));
        if !ids.is_empty()
            && self.packs.are_readable()
            && let Err(error) = self.ask_owner(&ids)
        {
            tracing::debug!("locations are requested later: {error}");
        }
    }
}

impl Locator for LocalReader<'_> {
    fn codec(&self) -> &RecordCodec {
        self.packs.codec()
    }

    /// While the owner is gone, the cached locations.
    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        let mut known = self.packs.known(ids);
        let unknown: Vec<usize> = (0..ids.len()).filter(|at| known[*at].is_none()).collect();
        let asked: Vec<RecordId> = unknown.iter().map(|at| ids[*at]).collect();
        match self.ask_owner(&asked) {
            Ok(located) => unknown.into_iter().zip(located).for_each(|(at, located)| known[at] = located),
            Err(error) if unknown.len() == ids.len() => return Err(error),
            Err(error) => tracing::debug!("only records with cached locations are read: {error}"),
        }
        Ok(self.packs.note(&known))
    }

    fn locate_again(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        if !self.packs.are_readable() {
            return Ok(vec![None; ids.len()]);
        }
        Ok(self.packs.note(&self.ask_owner(ids)?))
    }

    fn pack(&self, number: u32) -> Result<Arc<PackReader>> {
        let pack = self.packs.files.reader(number);
        if let Err(Error::Io { source, .. }) = &pack
            && source.kind() == std::io::ErrorKind::PermissionDenied
        {
            self.packs.disable(&Error::denied("the store's packs can't be opened"));
        }
        pack
    }

    fn absent(&self, what: &str) -> Error {
        Error::damaged(what, "the store's owner has no location for it")
    }
}

/// Cached locations only.
struct CachedLocator<'a>(&'a LocalPacks);

impl Locator for CachedLocator<'_> {
    fn codec(&self) -> &RecordCodec {
        self.0.codec()
    }

    fn locate(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        Ok(self.0.note(&self.0.known(ids)))
    }

    fn locate_again(&self, ids: &[RecordId]) -> Result<Vec<Option<RecordLocation>>> {
        Ok(vec![None; ids.len()])
    }

    fn pack(&self, number: u32) -> Result<Arc<PackReader>> {
        self.0.files.reader(number)
    }

    fn absent(&self, what: &str) -> Error {
        Error::not_found(what)
    }
}

impl ChunkSource for LocalReader<'_> {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        if !self.packs.are_readable() {
            return self.owner.fetch_chunks(ids, each);
        }
        let mut left = Vec::new();
        RecordReader::new(self).chunks(ids, &mut |at, chunk| hand_over(at, chunk, each, &mut left))?;
        let asked: Vec<ChunkId> = left.iter().map(|at| ids[*at]).collect();
        self.owner.fetch_chunks(&asked, &mut |at, chunk| each(left[at], chunk))
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        let mut node = None;
        self.nodes(&[id], &mut |_, read| {
            node = Some(read);
            Ok(())
        })?;
        node.expect("every position is handed over")
    }

    fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        if !self.packs.are_readable() {
            return self.owner.fetch_nodes(ids, each);
        }
        let mut left = Vec::new();
        RecordReader::new(self).nodes(ids, &mut |at, node| hand_over(at, node, each, &mut left))?;
        let asked: Vec<NodeId> = left.iter().map(|at| ids[*at]).collect();
        self.owner.fetch_nodes(&asked, &mut |at, node| each(left[at], node))
    }

    fn chunk_at_hand(&self, id: ChunkId) -> Option<Chunk> {
        if !self.packs.are_readable() || !self.packs.places.contains_key(&RecordId::from(id)) {
            return None;
        }
        let mut chunk = None;
        let read = RecordReader::new(&CachedLocator(self.packs)).chunks(&[id], &mut |_, read| {
            chunk = read.ok();
            Ok(())
        });
        read.ok().and(chunk)
    }

    fn expect(&self, ids: &[ChunkId]) {
        self.expect_records(ids.iter().map(|id| (*id).into()).collect());
    }

    fn expect_nodes(&self, ids: &[NodeId]) {
        self.expect_records(ids.iter().map(|id| (*id).into()).collect());
    }
}

/// Hands over a record that was read; one that was not is left to the owner, which knows the reason.
fn hand_over<T>(
    at: usize,
    read: Result<T>,
    each: &mut dyn FnMut(usize, Result<T>) -> Result<()>,
    left: &mut Vec<usize>,
) -> Result<()> {
    match read {
        Ok(read) => each(at, Ok(read)),
        Err(error) => {
            tracing::debug!("left to the store's owner: {error}");
            left.push(at);
            Ok(())
        }
    }
}
