//! Sessions at the owner: they receive a client's records and keep from gc the records that it relies on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use chunkstore::catalog::{IngestReport, Snapshot, SnapshotName, State};
use chunkstore::format::{EntryId, Header, Kind, Record, RecordId};
use chunkstore::pack::{Class, Extent};
use chunkstore::store::{Claim, Store, WriteSession};
use chunkstore::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::Server;
use super::rights;
use crate::rpc::auth::Grant;
use crate::rpc::wire::{Purpose, SessionSecret};

/// Most records of one session that other sessions have claimed.
const ELSEWHERE_MAX: usize = 128 << 10;
/// Longest wait for records that others send.
const AWAIT_TIME_MAX: Duration = Duration::from_secs(8);
const AWAIT_POLL: Duration = Duration::from_millis(50);
/// Waiting records that are checked in one poll.
const AWAIT_LOOKED_AT: usize = 4096;
/// Approximate bytes of a published snapshot besides its entry: a pack's header and table, and the rest of its catalog
/// file.
const PUBLISHED_BYTES: u64 = 4 << 10;
/// How far a pushed snapshot's time may be ahead of this machine's clock.
const CLOCK_SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);

/// A session of one or more connections.
pub(super) struct Session {
    purpose: Purpose,
    grant: Grant,
    writer: WriteSession,
    secret: SessionSecret,
    elsewhere: Mutex<Vec<Waiting>>,
    /// Whether unpublished records were put.
    has_put: AtomicBool,
    flushes: Arc<Flushes>,
}

/// Threads that make the records of ended sessions durable; `None` once the owner ends.
pub(super) struct Flushes(Mutex<Option<Vec<JoinHandle<()>>>>);

impl Default for Flushes {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Flushes {
    fn begin(&self, store: Arc<Store>) {
        let mut flushes = self.0.lock();
        let Some(flushes) = &mut *flushes else { return };
        flushes.retain(|flush| !flush.is_finished());
        let flush = move || {
            if let Err(error) = store.flush_open_packs() {
                tracing::warn!("the records of a session are lost: {error}");
            }
        };
        match std::thread::Builder::new().name("flush".into()).spawn(flush) {
            Ok(flush) => flushes.push(flush),
            // It stays in the open packs, which the next session that needs it seals.
            Err(error) => tracing::warn!("what a session had put is not sealed now: {error}"),
        }
    }

    /// Waits for all running ones, and allows no new ones: a process that exits during one may crash.
    pub(super) fn finish(&self) {
        let flushes = self.0.lock().take();
        for flush in flushes.into_iter().flatten() {
            let _ = flush.join();
        }
    }
}

/// A record that another session has claimed.
#[derive(Clone, Copy)]
struct Waiting {
    request: u32,
    position: u32,
    id: RecordId,
}

impl Session {
    /// Begins a session that protects a snapshot, if one is named.
    pub(super) fn begin(
        server: &Server,
        store: &Arc<Store>,
        grant: Grant,
        purpose: Purpose,
        snapshot: Option<&str>,
    ) -> Result<Self> {
        let snapshot = snapshot.map(str::parse::<SnapshotName>).transpose()?;
        let writer = store.session(snapshot.as_ref())?;
        let (elsewhere, has_put) = (Mutex::default(), AtomicBool::new(false));
        let flushes = Arc::clone(&server.flushes);
        Ok(Self { purpose, grant, writer, secret: server.new_secret(), elsewhere, has_put, flushes })
    }

    pub(super) fn secret(&self) -> SessionSecret {
        self.secret
    }

    pub(super) fn writer(&self) -> &WriteSession {
        &self.writer
    }

    fn check_writes(&self) -> Result<()> {
        if self.purpose == Purpose::Read { Err(Error::refused("this session only reads")) } else { Ok(()) }
    }

    /// Claims records that the store lacks; remembers those that others have claimed.
    pub(super) fn claim(&self, request: u32, ids: &[RecordId]) -> Result<Vec<Claim>> {
        self.check_writes()?;
        let claims = self.writer.claim(ids)?;
        let mut elsewhere = self.elsewhere.lock();
        for (position, (id, claim)) in ids.iter().zip(&claims).enumerate() {
            if *claim == Claim::Elsewhere {
                elsewhere.push(Waiting { request, position: position as u32, id: *id });
            }
        }
        if elsewhere.len() > ELSEWHERE_MAX {
            return Err(Error::refused("too many records of this session wait for others"));
        }
        Ok(claims)
    }

    /// The outcomes for records that others had claimed, as far as they are known.
    pub(super) fn decided(&self) -> Result<Vec<(u32, u32, Claim)>> {
        let looked_at: Vec<Waiting> = self.elsewhere.lock().iter().take(AWAIT_LOOKED_AT).copied().collect();
        let ids: Vec<_> = looked_at.iter().map(|waiting| waiting.id).collect();
        let claims = self.writer.claim(&ids)?;
        let mut elsewhere = self.elsewhere.lock();
        let looked_at_now = looked_at.len().min(elsewhere.len());
        let rest = elsewhere.split_off(looked_at_now);
        let (still, decided): (Vec<_>, Vec<_>) =
            looked_at.into_iter().zip(claims).partition(|(_, claim)| *claim == Claim::Elsewhere);
        *elsewhere = rest;
        elsewhere.extend(still.into_iter().map(|(waiting, _)| waiting));
        Ok(decided.into_iter().map(|(waiting, claim)| (waiting.request, waiting.position, claim)).collect())
    }

    /// Puts records. Records from another store, or from a client that could not write packs itself, are decoded and
    /// checked against their ids.
    pub(super) fn put(&self, server: &Server, records: Vec<Record>) -> Result<()> {
        self.check_put(server, records.iter().map(|record| &record.header))?;
        if self.purpose == Purpose::Receive || !self.grant.is_local() {
            return self.writer.put_verified(records);
        }
        self.writer.put(records)
    }

    fn check_put<'a>(&self, server: &Server, headers: impl Iterator<Item = &'a Header> + Clone) -> Result<()> {
        self.check_writes()?;
        // `verify` would take it for the entry of a lost snapshot, and `repair` would publish it without any check.
        if headers.clone().any(|header| header.kind == Kind::Entry) {
            return Err(Error::refused("entries are accepted only by Publish"));
        }
        server.quota.charge(&self.grant, headers.map(Header::record_bytes).sum())?;
        self.has_put.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reserves an extent in a pack, which the client writes itself.
    pub(super) fn reserve(&self, class: Class, bytes: u32) -> Result<Extent> {
        self.check_ingests()?;
        self.writer.reserve(class, bytes)
    }

    /// Adds records that the client wrote into an extent. Returns whether the extent still existed.
    pub(super) fn append_written(&self, server: &Server, room: Extent, headers: &[Header]) -> Result<bool> {
        self.check_ingests()?;
        self.check_put(server, headers.iter())?;
        self.writer.append_written(room, headers)
    }

    /// Records from another store go through [`Session::put`], which verifies them.
    fn check_ingests(&self) -> Result<()> {
        if self.purpose == Purpose::Ingest && self.grant.is_local() {
            Ok(())
        } else {
            Err(Error::refused("only an ingest on this machine writes into packs"))
        }
    }

    /// Makes the records of the session durable and readable.
    pub(super) fn flush(&self) -> Result<()> {
        self.check_writes()?;
        self.writer.flush()?;
        self.has_put.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Publishes a snapshot.
    pub(super) fn publish(&self, server: &Server, entry: Vec<u8>, report: Option<&[u8]>) -> Result<Snapshot> {
        self.check_writes()?;
        let mut snapshot = Snapshot::from_entry(EntryId::of(&entry), entry, State::default())?;
        let name = snapshot.name();
        rights::check_push(&self.grant, &name.image)?;
        if self.purpose == Purpose::Receive {
            if report.is_some() {
                return Err(Error::refused("only an ingest reports of itself"));
            }
            check_time(&name, server.now())?;
            snapshot.state.received_from = self.grant.received_from();
        }
        // The entry is in a pack and in the catalog.
        server.quota.charge(&self.grant, PUBLISHED_BYTES + 2 * snapshot.entry_encoding().len() as u64)?;
        server.quota.save()?;
        let report = report.map(parse_report).transpose()?;
        let received = (self.purpose == Purpose::Receive).then(|| snapshot.clone());
        let published = self.writer.publish_snapshot(snapshot, report);
        let published = published.or_else(|error| received.filter(|own| self.is_there(own)).ok_or(error))?;
        self.has_put.store(false, Ordering::Relaxed);
        if self.purpose == Purpose::Receive {
            server.counters.pushes.increment();
        }
        Ok(published)
    }

    /// Whether this very snapshot is already present, whole and durable: an earlier attempt of a repeated push, or
    /// another site, has published it.
    fn is_there(&self, snapshot: &Snapshot) -> bool {
        let catalog = self.writer.store().catalog();
        let there = catalog.read(&snapshot.name());
        let is_whole = there.is_ok_and(|there| there.entry_id() == snapshot.entry_id() && !there.state.partial);
        is_whole && catalog.sync().is_ok()
    }
}

/// A snapshot with a time in the future would be the newest until then, and retention would drop others for it.
fn check_time(name: &SnapshotName, now: Timestamp) -> Result<()> {
    if name.time.timestamp() > now + CLOCK_SKEW_MAX {
        return Err(Error::refused(format!("the time of snapshot {name} is in the future")));
    }
    Ok(())
}

fn parse_report(report: &[u8]) -> Result<IngestReport> {
    serde_json::from_slice(report).map_err(|error| Error::invalid(format!("an ingest's report: {error}")))
}

impl Drop for Session {
    /// Records from a broken connection are kept for the next attempt.
    fn drop(&mut self) {
        if self.has_put.load(Ordering::Relaxed) {
            self.flushes.begin(Arc::clone(self.writer.store()));
        }
    }
}

impl Server {
    /// An unguessable secret.
    fn new_secret(&self) -> SessionSecret {
        let number = self.next_secret.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.secret_seed, &number.to_le_bytes());
        SessionSecret(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
    }

    #[expect(clippy::unused_self, reason = "a clock will be the server's")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    pub(super) fn register(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, session| session.strong_count() > 0);
        sessions.insert(session.secret, Arc::downgrade(session));
    }

    /// The session with this secret, if it has not ended.
    pub(super) fn session(&self, secret: SessionSecret) -> Result<Arc<Session>> {
        let session = self.sessions.lock().get(&secret).and_then(std::sync::Weak::upgrade);
        session.ok_or_else(|| Error::not_found("the session"))
    }

    /// Waits for the outcome of any of a session's records that others have claimed.
    pub(super) async fn decided(self: &Arc<Self>, session: &Arc<Session>) -> Result<Vec<(u32, u32, Claim)>> {
        let until = tokio::time::Instant::now() + AWAIT_TIME_MAX;
        loop {
            let asking = Arc::clone(session);
            let decided = self.work(move |_| asking.decided()).await?;
            if !decided.is_empty() || tokio::time::Instant::now() >= until {
                return Ok(decided);
            }
            tokio::time::sleep(AWAIT_POLL).await;
        }
    }
}
