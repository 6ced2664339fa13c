//! A session at the store's owner: its records become visible with [`ClientSession::publish`], and gc keeps the records
//! that it relies on until it ends.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use chunkstore::Result;
use chunkstore::catalog::{IngestReport, Snapshot, SnapshotName};
use chunkstore::format::{EntryId, Record, RecordId};
use chunkstore::pack::DirectWriter;
use chunkstore::store::Claim;
use parking_lot::Mutex;

use super::Client;
use super::multiplex::{Answer, broken};
use super::requests::unexpected;
use crate::rpc::wire::{
    ForStream, Ids, Kind, Purpose, RecordBatch, Reply, Request, SessionId, SessionSecret, claims_from_bytes,
};

/// Batches of an ingest that are under way to the store.
const UNANSWERED_MAX: usize = 8;

/// Fewer bytes of records are sent through the connection, without waiting for an answer.
const DIRECT_BYTES_MIN: u64 = 256 << 10;

static NEXT_SESSION: AtomicU32 = AtomicU32::new(1);

/// A session of one connection. Ends at the owner when it is dropped.
pub struct ClientSession {
    client: Client,
    id: SessionId,
    secret: SessionSecret,
    trusts_parent: bool,
    published: AtomicBool,
    /// Answers to batches of an ingest that were not awaited yet.
    unanswered: Mutex<VecDeque<Answer>>,
    /// For writing into packs.
    pub(super) direct_writer: DirectWriter,
}

/// The outcome for a record that another session had claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The number of the claim.
    pub request: u32,
    /// The position in it.
    pub position: usize,
    /// The record's claim now.
    pub claim: Claim,
}

impl ClientSession {
    /// Begins a session that protects a snapshot, if one is given.
    ///
    /// # Errors
    /// [`chunkstore::Error::NotFound`] if there is no such snapshot; [`chunkstore::Error::Denied`].
    pub async fn begin(client: &Client, purpose: Purpose, snapshot: Option<&SnapshotName>) -> Result<Self> {
        let session = SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed));
        let request = Request::Begin { session, purpose, snapshot: snapshot.map(ToString::to_string) };
        match client.call(&request).await? {
            Reply::Begun { secret, trusts_parent } => Ok(Self::new(client, session, secret, trusts_parent)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// [`ClientSession::begin`] for threads.
    ///
    /// # Errors
    /// As [`ClientSession::begin`].
    pub fn begin_blocking(client: &Client, purpose: Purpose, snapshot: Option<&SnapshotName>) -> Result<Self> {
        client.wait(Self::begin(client, purpose, snapshot))
    }

    /// Joins the session from another connection.
    ///
    /// # Errors
    /// If there is no such session any more.
    pub async fn attach(&self, client: &Client) -> Result<Self> {
        let session = SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed));
        match client.call(&Request::Attach { session, secret: self.secret }).await? {
            Reply::Done => Ok(Self::new(client, session, self.secret, self.trusts_parent)),
            reply => Err(unexpected(&reply)),
        }
    }

    fn new(client: &Client, id: SessionId, secret: SessionSecret, trusts_parent: bool) -> Self {
        Self {
            client: client.clone(),
            id,
            secret,
            trusts_parent,
            published: AtomicBool::new(false),
            unanswered: Mutex::default(),
            direct_writer: DirectWriter::new(DIRECT_BYTES_MIN),
        }
    }

    /// This connection's number for it.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether chunks that the parent has need not be claimed.
    pub fn trusts_parent(&self) -> bool {
        self.trusts_parent
    }

    /// Claims the records that the store lacks. Returns the claim's number too.
    ///
    /// # Errors
    /// If the session or the connection failed.
    pub async fn claim(&self, ids: &[RecordId]) -> Result<(u32, Vec<Claim>)> {
        let request = Request::Claim { session: self.id, ids: Ids(ids.to_vec()) };
        let answer = self.client.send(Kind::Request, request.to_bytes()).await?;
        let number = answer.request();
        let claims = match answer.reply().await? {
            Reply::Claims(bytes) => claims_from_bytes(&bytes).map_err(broken)?,
            reply => return Err(unexpected(&reply)),
        };
        if claims.len() == ids.len() { Ok((number, claims)) } else { Err(broken("a claim has another length")) }
    }

    /// Waits for the outcome of records that were [`Claim::Elsewhere`]; the result may be empty.
    ///
    /// # Errors
    /// If the session or the connection failed.
    pub async fn decided(&self) -> Result<Vec<Decided>> {
        match self.client.call(&Request::Await { session: self.id }).await? {
            Reply::Decided(decided) => decided
                .into_iter()
                .map(|(request, position, claim)| {
                    let claim = claims_from_bytes(&[claim]).map_err(broken)?[0];
                    Ok(Decided { request, position: position as usize, claim })
                })
                .collect(),
            reply => Err(unexpected(&reply)),
        }
    }

    /// An empty batch of records for this session.
    pub fn batch(&self) -> RecordBatch {
        RecordBatch::for_session(self.id)
    }

    /// Puts a batch of records. The store has them when the result yields success; they are durable when published.
    pub(crate) async fn put(&self, batch: RecordBatch) -> Result<Answer> {
        self.client.send(Kind::Records, batch.into_payload()).await
    }

    /// Puts records and waits until the store has taken them.
    ///
    /// # Errors
    /// If the session or the connection failed, or a record is not what it says.
    pub async fn put_all(&self, records: &[Record]) -> Result<()> {
        let mut answers = Vec::new();
        let mut batch = self.batch();
        for record in records {
            batch.push(record);
            if batch.is_full() {
                answers.push(self.put(std::mem::replace(&mut batch, self.batch())).await?);
            }
        }
        if !batch.is_empty() {
            answers.push(self.put(batch).await?);
        }
        for answer in answers {
            expect_done(&answer.reply().await?)?;
        }
        Ok(())
    }

    /// Puts records without waiting for the answer; [`ClientSession::settle`] waits for it and reports failures. The
    /// number of batches in flight is bounded.
    ///
    /// # Errors
    /// As [`ClientSession::put_all`], also of an earlier batch.
    pub(crate) async fn put_soon(&self, records: &[Record]) -> Result<()> {
        let mut batch = self.batch();
        for record in records {
            batch.push(record);
            if batch.is_full() {
                self.put_batch(std::mem::replace(&mut batch, self.batch())).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.put_batch(batch).await }
    }

    async fn put_batch(&self, batch: RecordBatch) -> Result<()> {
        let answer = self.put(batch).await?;
        let oldest = {
            let mut unanswered = self.unanswered.lock();
            unanswered.push_back(answer);
            if unanswered.len() > UNANSWERED_MAX { unanswered.pop_front() } else { None }
        };
        match oldest {
            Some(oldest) => expect_done(&oldest.reply().await?),
            None => Ok(()),
        }
    }

    /// Waits until the store has all records that were put.
    ///
    /// # Errors
    /// If it refused some of them.
    pub(crate) async fn settle(&self) -> Result<()> {
        let unanswered = std::mem::take(&mut *self.unanswered.lock());
        for answer in unanswered {
            expect_done(&answer.reply().await?)?;
        }
        Ok(())
    }

    /// Publishes a snapshot from its entry's encoding. It is durable when this returns.
    ///
    /// # Errors
    /// [`chunkstore::Error::Refused`] if there is one of this name; [`chunkstore::Error::Damaged`] if records are
    /// missing.
    pub async fn publish(&self, entry: Vec<u8>, report: Option<&IngestReport>) -> Result<Snapshot> {
        let report = report.map(|report| serde_json::to_vec(report).expect("a report has only plain fields"));
        let id = EntryId::of(&entry);
        let reply = self.client.call(&Request::Publish { session: self.id, entry, report }).await?;
        let snapshot = published(&reply, id)?;
        self.published.store(true, Ordering::Relaxed);
        Ok(snapshot)
    }
}

/// The published snapshot, which must have this entry.
pub(crate) fn published(reply: &Reply, entry: EntryId) -> Result<Snapshot> {
    let Reply::Published(file) = reply else { return Err(unexpected(reply)) };
    let snapshot = Snapshot::read_file(file)?;
    if snapshot.entry_id() == entry {
        Ok(snapshot)
    } else {
        Err(broken("it says that it has published another snapshot"))
    }
}

/// Fails unless the answer is [`Reply::Done`].
pub(crate) fn expect_done(reply: &Reply) -> Result<()> {
    if *reply == Reply::Done { Ok(()) } else { Err(unexpected(reply)) }
}

impl Drop for ClientSession {
    fn drop(&mut self) {
        if self.published.load(Ordering::Relaxed) {
            return;
        }
        let (client, request) = (self.client.clone(), Request::End { session: self.id });
        self.client.spawn(async move { client.call(&request).await });
    }
}
