//! Handlers of requests for records, sessions and snapshots.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use chunkstore::catalog::{Catalog, ImageName, Selector, SnapshotName};
use chunkstore::format::manifest::ChunkSource;
use chunkstore::format::{ChunkId, Codec, EntryId, Kind as RecordKind, NodeId, Record, RecordId};
use chunkstore::pack::RecordLocation;
use chunkstore::store::{Like, Store, WriteSession};
use chunkstore::{Error, Result};

use super::connection::Connection;
use crate::rpc::auth::Grant;
use crate::rpc::wire::{
    Bits, ENTRY_PREFIX_BYTES, Fetch, ForStream, IDS_MAX, Ids, Kind, Located, Locations, Names, Prefixes, RecordBatch,
    Reply, Resemblance, ReservedExtent, SessionId, WireError, claims_to_bytes, class_of, headers_from_bytes,
    records_of,
};

/// Records read from the store at a time.
const GROUP_IDS: usize = 32;
/// Bytes of entries sent in one frame.
const GROUP_ENTRIES_BYTES: usize = 256 << 10;

impl Connection {
    /// Puts records into a session.
    pub(super) async fn put(self: Arc<Self>, session: SessionId, records: Bytes) -> Result<Reply> {
        let (session, server) = (self.session(session)?, Arc::clone(&self.server));
        let put = move |_: &Arc<Store>| session.put(&server, records_of(&records).map_err(Error::invalid)?);
        self.server.work(put).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn end_session(self: Arc<Self>, session: SessionId) -> Result<Reply> {
        let ended = self.end(session);
        // Dropping it may block on the disk.
        let drop_it = move |_: &Arc<Store>| {
            drop(ended);
            Ok(())
        };
        self.server.work(drop_it).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn claim(self: Arc<Self>, number: u32, session: SessionId, Ids(ids): Ids) -> Result<Reply> {
        let session = self.session(session)?;
        let claims = self.server.work(move |_| session.claim(number, &ids)).await?;
        Ok(Reply::Claims(claims_to_bytes(&claims)))
    }

    pub(super) async fn await_claims(self: Arc<Self>, session: SessionId) -> Result<Reply> {
        let decided = self.server.decided(&self.session(session)?).await?;
        let byte = |(request, position, claim)| (request, position, claims_to_bytes(&[claim])[0]);
        Ok(Reply::Decided(decided.into_iter().map(byte).collect()))
    }

    pub(super) async fn full(self: Arc<Self>, Ids(ids): Ids) -> Result<Reply> {
        let full = self.server.work(move |store| store.is_full(&ids)).await?;
        Ok(Reply::Bits(full.into_iter().collect()))
    }

    pub(super) async fn publish(
        self: Arc<Self>,
        session: SessionId,
        entry: Vec<u8>,
        report: Option<Vec<u8>>,
    ) -> Result<Reply> {
        let (publishing, server) = (self.session(session)?, Arc::clone(&self.server));
        let publish = move |_: &Arc<Store>| publishing.publish(&server, entry, report.as_deref());
        let snapshot = self.server.work(publish).await?;
        self.end(session);
        Ok(Reply::Published(snapshot.encode()))
    }

    pub(super) async fn lacks(self: Arc<Self>, prefixes: Prefixes) -> Result<Reply> {
        Ok(Reply::Bits(self.server.work(move |store| lacks(store.catalog(), &prefixes)).await?))
    }

    pub(super) async fn leave(self: Arc<Self>) -> Result<Reply> {
        self.server.allow_leaving().await?;
        self.server.leave();
        Ok(Reply::Done)
    }

    pub(super) async fn locate(self: Arc<Self>, Ids(ids): Ids) -> Result<Reply> {
        Ok(Reply::Locations(self.server.work(move |store| locations(store, &ids)).await?))
    }

    pub(super) async fn reserve(self: Arc<Self>, session: SessionId, class: u8, bytes: u32) -> Result<Reply> {
        let session = self.session(session)?;
        let class = class_of(class).map_err(Error::invalid)?;
        let extent = self.server.work(move |_| session.reserve(class, bytes)).await?;
        Ok(Reply::Reserved(extent.into()))
    }

    pub(super) async fn append_written(
        self: Arc<Self>,
        session: SessionId,
        extent: ReservedExtent,
        headers: Vec<u8>,
    ) -> Result<Reply> {
        let (session, server) = (self.session(session)?, Arc::clone(&self.server));
        let extent = extent.extent().map_err(Error::invalid)?;
        let headers = headers_from_bytes(&headers).map_err(Error::invalid)?;
        let is_appended = self.server.work(move |_| session.append_written(&server, extent, &headers)).await?;
        Ok(Reply::Appended(is_appended))
    }

    pub(super) async fn bases(
        self: Arc<Self>,
        number: u32,
        session: SessionId,
        like: Vec<Resemblance>,
    ) -> Result<Reply> {
        if like.len() > IDS_MAX {
            return Err(Error::invalid("too many bases are asked for"));
        }
        let session = self.session(session)?;
        let mut sent = HashSet::new();
        let mut answer = Vec::with_capacity(like.len());
        for group in like.chunks(GROUP_IDS) {
            let like: Vec<Like> = group.iter().map(like_of).collect();
            let asked = Arc::clone(&session);
            let known = std::mem::take(&mut sent);
            let read = self.server.work(move |store| Bases::read(store, asked.writer(), &like, known)).await?;
            let mut batch = RecordBatch::new();
            for base in &read.records {
                self.add_to(&mut batch, Kind::Bases, number, base).await?;
            }
            answer.extend(read.ids.into_iter().map(|id| id.map(|id| *id.as_bytes())));
            sent = read.sent;
            self.send_rest(batch, Kind::Bases, number).await?;
        }
        Ok(Reply::Bases(answer))
    }

    pub(super) async fn base_ids(self: Arc<Self>, session: SessionId, like: Vec<Resemblance>) -> Result<Reply> {
        if like.len() > IDS_MAX {
            return Err(Error::invalid("too many bases are asked for"));
        }
        let session = self.session(session)?;
        let like: Vec<Like> = like.iter().map(like_of).collect();
        let find = move |store: &Arc<Store>| {
            let ids = session.writer().base_ids(&like)?;
            let found: Vec<RecordId> = ids.iter().flatten().copied().collect();
            let ids = ids.into_iter().map(|id| id.map(|id| *id.as_bytes())).collect();
            Ok(Reply::BaseIds { ids, locations: locations(store, &found)? })
        };
        self.server.work(find).await
    }

    /// Sends records in groups, so that no answer is in memory at once.
    pub(super) async fn get(self: Arc<Self>, number: u32, Ids(ids): Ids, fetch: Fetch) -> Result<Reply> {
        let mut missing = Vec::new();
        let mut bases_sent = HashSet::new();
        for (group, ids) in ids.chunks(GROUP_IDS).enumerate() {
            let wanted = ids.to_vec();
            let read = self.server.work(move |store| read(store, &wanted, fetch)).await?;
            let mut batch = RecordBatch::new();
            for base in read.bases.iter().filter(|base| bases_sent.insert(base.header.id)) {
                self.add_to(&mut batch, Kind::Bases, number, base).await?;
            }
            self.send_rest(batch, Kind::Bases, number).await?;
            let mut batch = RecordBatch::new();
            for record in &read.records {
                self.add_to(&mut batch, Kind::Records, number, record).await?;
            }
            self.send_rest(batch, Kind::Records, number).await?;
            let position = |(at, error)| ((group * GROUP_IDS + at) as u32, error);
            missing.extend(read.missing.into_iter().map(position));
        }
        Ok(Reply::Given { missing })
    }

    async fn add_to(&self, batch: &mut RecordBatch, kind: Kind, number: u32, record: &Record) -> Result<()> {
        batch.push(record);
        if batch.is_full() {
            self.part(kind, number, std::mem::take(batch).into_payload()).await?;
        }
        Ok(())
    }

    async fn send_rest(&self, batch: RecordBatch, kind: Kind, number: u32) -> Result<()> {
        if batch.is_empty() { Ok(()) } else { self.part(kind, number, batch.into_payload()).await }
    }

    pub(super) async fn select(self: Arc<Self>, number: u32, names: Names, have: Prefixes) -> Result<Reply> {
        let grant = self.grant.clone();
        let (selection, common) = self
            .server
            .work(move |store| {
                let selection = Selection::make(store.catalog(), &grant, &names, &have)?;
                let lacks = lacks(store.catalog(), &have)?;
                let common: Bits = (0..have.0.len()).map(|at| !lacks.has(at)).collect();
                Ok((selection, common))
            })
            .await?;
        let mut rest = selection.entries.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut bytes, mut group) = (0, Vec::new());
            while let Some(entry) = rest.next_if(|_| bytes < GROUP_ENTRIES_BYTES) {
                bytes += entry.len();
                group.push(entry);
            }
            self.part(Kind::Part, number, Reply::Entries(group).to_bytes()).await?;
        }
        Ok(Reply::Selected { common, selected: selection.selected })
    }
}

/// The locations of records in sealed packs.
fn locations(store: &Store, ids: &[RecordId]) -> Result<Locations> {
    let located = |location: RecordLocation| Some(Located { pack: store.packs().row(location.pack)?.id, location });
    Ok(Locations(store.locate(ids)?.into_iter().map(|location| location.and_then(located)).collect()))
}

fn like_of(like: &Resemblance) -> Like {
    match like {
        Resemblance::Record(id) => Like::Record(RecordId::from_bytes(*id)),
        Resemblance::Sketch(sketch) => Like::Sketch(*sketch),
    }
}

/// Bases found for one group of new records, as stored: the client decodes and verifies them.
struct Bases {
    ids: Vec<Option<RecordId>>,
    records: Vec<Record>,
    /// All bases of this answer, sent or about to be.
    sent: HashSet<RecordId>,
}

impl Bases {
    fn read(store: &Store, writer: &WriteSession, like: &[Like], mut sent: HashSet<RecordId>) -> Result<Self> {
        let ids = writer.base_ids(like)?;
        let mut wanted: Vec<_> = ids.iter().flatten().copied().filter(|id| sent.insert(*id)).collect();
        wanted.dedup();
        let mut records = Vec::with_capacity(wanted.len());
        store.records(&wanted, &mut |_, record| {
            // An unreadable record is no base; the client encodes without one.
            records.extend(record.ok().filter(|record| record.header.codec != Codec::Delta));
            Ok(())
        })?;
        Ok(Self { ids, records, sent })
    }
}

/// The records read for one group of ids.
struct Read {
    records: Vec<Record>,
    bases: Vec<Record>,
    missing: Vec<(usize, WireError)>,
}

fn read(store: &Arc<Store>, ids: &[RecordId], fetch: Fetch) -> Result<Read> {
    let mut read = Read { records: Vec::new(), bases: Vec::new(), missing: Vec::new() };
    store.records(ids, &mut |at, record| {
        match record.and_then(|record| if fetch == Fetch::Whole { whole(store, record) } else { Ok(record) }) {
            Ok(record) => read.records.push(record),
            Err(error) => read.missing.push((at, WireError::from(&error))),
        }
        Ok(())
    })?;
    if fetch == Fetch::WithBases {
        let mut bases: Vec<_> = read.records.iter().filter_map(|record| record.header.base).collect();
        bases.sort_unstable();
        bases.dedup();
        store.records(&bases, &mut |_, record| {
            // A delta whose base is missing is noticed when it is decoded.
            read.bases.extend(record);
            Ok(())
        })?;
    }
    Ok(read)
}

/// A delta's content as a record of its own.
fn whole(store: &Store, record: Record) -> Result<Record> {
    let header = record.header;
    if header.codec != Codec::Delta {
        return Ok(record);
    }
    let plain = match header.kind {
        RecordKind::Chunk => store.chunk(ChunkId::from_bytes(*header.id.as_bytes()))?.into_bytes(),
        _ => store.node(NodeId::from_bytes(*header.id.as_bytes()))?.encode(),
    };
    Ok(store.codec().encode(header.kind, header.id, &plain, None))
}

/// The first bytes of an entry's id.
pub(crate) fn prefix_of(id: EntryId) -> [u8; ENTRY_PREFIX_BYTES] {
    *id.as_bytes().first_chunk().expect("an id is longer than its beginning")
}

fn lacks(catalog: &Catalog, prefixes: &Prefixes) -> Result<Bits> {
    let listed = catalog.list(None)?;
    // A partial snapshot lacks records.
    let whole = listed.iter().flat_map(|listed| &listed.snapshot).filter(|snapshot| !snapshot.state.partial);
    let there: HashSet<_> = whole.map(|snapshot| prefix_of(snapshot.entry_id())).collect();
    Ok(prefixes.0.iter().map(|prefix| !there.contains(prefix)).collect())
}

/// Snapshots that a client asked for and lacks.
struct Selection {
    entries: Vec<Vec<u8>>,
    selected: u32,
}

impl Selection {
    fn make(catalog: &Catalog, grant: &Grant, names: &Names, have: &Prefixes) -> Result<Self> {
        let have: HashSet<_> = have.0.iter().collect();
        let mut selection = Self { entries: Vec::new(), selected: 0 };
        for name in names_of(catalog, names)?.iter().filter(|name| grant.covers(&name.image)) {
            let snapshot = match catalog.read(name) {
                // Removed since it was listed.
                Err(Error::NotFound { .. }) => continue,
                snapshot => snapshot?,
            };
            if snapshot.state.partial {
                // A partial snapshot can't be sent.
                continue;
            }
            selection.selected += 1;
            if !have.contains(&prefix_of(snapshot.entry_id())) {
                selection.entries.push(snapshot.entry_encoding().to_vec());
            }
        }
        Ok(selection)
    }
}

fn names_of(catalog: &Catalog, names: &Names) -> Result<Vec<SnapshotName>> {
    let images = match names {
        Names::Selectors(selectors) => {
            if selectors.len() > IDS_MAX {
                return Err(Error::invalid("too many snapshots are named"));
            }
            let resolve = |selector: &String| catalog.resolve(&selector.parse::<Selector>()?);
            let names: Result<BTreeSet<SnapshotName>> = selectors.iter().map(resolve).collect();
            return Ok(names?.into_iter().collect());
        }
        Names::Image(image) => vec![image.parse::<ImageName>()?],
        Names::All => catalog.images()?,
    };
    let mut names = Vec::new();
    for image in images {
        names.extend(catalog.times(&image)?.into_iter().map(|time| SnapshotName::new(image.clone(), time)));
    }
    Ok(names)
}
