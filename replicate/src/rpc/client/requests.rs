//! Requests of a client outside of sessions.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chunkstore::format::{Record, RecordId};
use chunkstore::metrics::Sample;
use chunkstore::{Error, Progress, Result};

use super::Client;
use super::multiplex::broken;
use crate::rpc::wire::{
    Bits, FAMILY_BODY_BYTES_MAX, FAMILY_VERSION, Fetch, ForStream, Ids, Job, Kind, Located, Locations, Names, Prefixes,
    Reply, Request, records_of,
};

/// Longest report of a job.
const REPORT_BYTES_MAX: usize = 256 << 20;
/// Most bytes of entries in one selection: some hundred thousand snapshots.
const SELECTED_BYTES_MAX: usize = 64 << 20;

/// Snapshots that another store has and this one lacks.
#[derive(Debug, Default)]
pub struct Selected {
    /// Encodings of the entries that were not named as present.
    pub entries: Vec<Vec<u8>>,
    /// Which of the snapshots that were named as present the other store has, too.
    pub common: Bits,
    /// How many snapshots were selected in all.
    pub selected: u32,
}

/// One result of a request for records.
#[derive(Debug)]
pub enum Arrived {
    /// A base of deltas that follow ([`Fetch::WithBases`]).
    Base(Record),
    /// The record requested at this position, or the reason why it can't be given.
    Wanted(usize, Result<Record>),
}

/// An unexpected answer.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    let debug = format!("{reply:?}");
    broken(format!("an answer of the wrong kind: {}", debug.split([' ', '(']).next().unwrap_or_default()))
}

impl Client {
    /// Fetches records and passes each to `each`, in any order; a record that can't be given is passed as an error. A
    /// base comes before the deltas against it.
    ///
    /// # Errors
    /// If the connection fails, or `each` does.
    pub async fn records(
        &self,
        ids: &[RecordId],
        fetch: Fetch,
        each: &mut (dyn FnMut(Arrived) -> Result<()> + Send),
    ) -> Result<()> {
        match self.packs() {
            Some(packs) => self.read_records(packs, ids, fetch, each).await,
            None => self.fetch_records(ids, fetch, each).await,
        }
    }

    /// [`Client::records`] through the connection.
    pub(super) async fn fetch_records(
        &self,
        ids: &[RecordId],
        fetch: Fetch,
        each: &mut (dyn FnMut(Arrived) -> Result<()> + Send),
    ) -> Result<()> {
        let mut wanted = Wanted::new(ids);
        let request = Request::Get { ids: Ids(wanted.distinct()), fetch };
        let mut answer = self.send(Kind::Request, request.to_bytes()).await?;
        let mut bases = 0;
        loop {
            let frame = answer.frame().await?;
            match frame.kind {
                Kind::Records => {
                    let records = records_of(&frame.payload).map_err(broken)?;
                    records.iter().try_for_each(|record| wanted.give(record, each))?;
                }
                Kind::Bases => {
                    let records = records_of(&frame.payload).map_err(broken)?;
                    bases += records.len();
                    if bases > ids.len() {
                        return Err(broken("it sends more bases than there are deltas"));
                    }
                    records.into_iter().try_for_each(|record| each(Arrived::Base(record)))?;
                }
                Kind::Reply => return wanted.missing(&Reply::from_bytes(&frame.payload).map_err(broken)?, each),
                _ => return Err(broken("an answer with a frame that has no records")),
            }
        }
    }

    /// Which records are present as full ones, so that they can be bases.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn full(&self, ids: &[RecordId]) -> Result<Vec<bool>> {
        match self.call(&Request::Full { ids: Ids(ids.to_vec()) }).await? {
            Reply::Bits(bits) => Ok((0..ids.len()).map(|at| bits.has(at)).collect()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Where records lie; no location for those that can't be read, or not yet.
    ///
    /// # Errors
    /// If the connection fails; [`Error::Denied`] for clients on other machines.
    pub async fn locations(&self, ids: &[RecordId]) -> Result<Vec<Option<Located>>> {
        match self.call(&Request::Locate { ids: Ids(ids.to_vec()) }).await? {
            Reply::Locations(Locations(places)) if places.len() == ids.len() => Ok(places),
            Reply::Locations(_) => Err(broken("locations for a different number of records")),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Which of these snapshots the other store lacks.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn lacks(&self, prefixes: Prefixes) -> Result<Bits> {
        match self.call(&Request::Lacks { prefixes }).await? {
            Reply::Bits(bits) => Ok(bits),
            reply => Err(unexpected(&reply)),
        }
    }

    /// The entries of snapshots that the other store has and that are not among `have`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if a selector matches nothing; [`Error::Refused`] if there are more than fit into memory.
    pub async fn select(&self, names: Names, have: Prefixes) -> Result<Selected> {
        let mut answer = self.send(Kind::Request, Request::Select { names, have }.to_bytes()).await?;
        let (mut selected, mut bytes) = (Selected::default(), 0);
        loop {
            let frame = answer.frame().await?;
            match Reply::from_bytes(&frame.payload).map_err(broken)? {
                Reply::Entries(entries) => {
                    bytes += frame.payload.len();
                    if bytes > SELECTED_BYTES_MAX {
                        return Err(Error::refused(
                            "the other side lists more snapshots than are taken at once; name an image, or some of them",
                        ));
                    }
                    selected.entries.extend(entries);
                }
                Reply::Selected { common, selected: count } => {
                    (selected.common, selected.selected) = (common, count);
                    return Ok(selected);
                }
                reply => return Err(unexpected(&reply)),
            }
        }
    }

    /// Makes the owner run a job and returns its report as JSON. `progress` follows the job; if `progress` is asked to
    /// stop, the request is abandoned and the owner stops the job.
    ///
    /// # Errors
    /// As the job.
    pub async fn run(&self, job: Job, progress: &Progress) -> Result<Vec<u8>> {
        self.report(&Request::Do(job), progress).await
    }

    /// Reads the registry of metrics of the owner and its store.
    ///
    /// # Errors
    /// [`Error::Refused`] if the owner is too old; [`Error::Denied`].
    pub async fn metrics(&self) -> Result<Vec<Sample>> {
        self.check_version(FAMILY_VERSION, "metrics")?;
        let report = self.run(Job::Metrics, &Progress::default()).await?;
        serde_json::from_slice(&report).map_err(|error| broken(format!("metrics that can't be read: {error}")))
    }

    /// Sends a request of a family that the owner's program registered.
    ///
    /// # Errors
    /// [`Error::Refused`] if the owner is too old or does not have the family; [`Error::Invalid`] if the body is longer
    /// than [`FAMILY_BODY_BYTES_MAX`]; [`Error::Denied`]; the family's own errors.
    pub async fn family(&self, name: &str, body: Vec<u8>) -> Result<Vec<u8>> {
        self.check_version(FAMILY_VERSION, "families of requests")?;
        if body.len() > FAMILY_BODY_BYTES_MAX {
            return Err(Error::invalid(format!("a request of {} bytes is over the limit", body.len())));
        }
        self.report(&Request::Family { name: name.to_owned(), body }, &Progress::default()).await
    }

    /// Sends a request whose answer may be longer than a frame.
    async fn report(&self, request: &Request, progress: &Progress) -> Result<Vec<u8>> {
        let mut answer = self.send(Kind::Request, request.to_bytes()).await?;
        let mut report = Vec::new();
        loop {
            let frame = tokio::select! {
                frame = answer.frame() => frame?,
                () = stopped(progress) => return Err(Error::Interrupted),
            };
            if frame.kind == Kind::Progress {
                let (done, total) = <(u64, u64)>::from_bytes(&frame.payload).map_err(broken)?;
                progress.follow(done, total);
                continue;
            }
            match Reply::from_bytes(&frame.payload).map_err(broken)? {
                Reply::Report(part) => report.extend(part),
                reply => return Err(unexpected(&reply)),
            }
            if frame.kind == Kind::Reply {
                return Ok(report);
            }
            if report.len() > REPORT_BYTES_MAX {
                return Err(broken("a report without end"));
            }
        }
    }

    /// Asks the owner to end once its clients are gone.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is a service, or others use it.
    pub async fn leave(&self) -> Result<()> {
        match self.call(&Request::Leave).await? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// [`Client::run`] for threads.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub fn run_blocking(&self, job: Job, progress: &Progress) -> Result<Vec<u8>> {
        self.wait(self.run(job, progress))
    }

    /// [`Client::leave`] for threads.
    ///
    /// # Errors
    /// As [`Client::leave`].
    pub fn leave_blocking(&self) -> Result<()> {
        self.wait(self.leave())
    }
}

/// Waits until the user asks to stop.
async fn stopped(progress: &Progress) {
    while progress.check().is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Positions that still need a record.
struct Wanted<'a> {
    ids: &'a [RecordId],
    positions: HashMap<RecordId, Vec<usize>>,
}

impl<'a> Wanted<'a> {
    fn new(ids: &'a [RecordId]) -> Self {
        let mut positions: HashMap<_, Vec<_>> = HashMap::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            positions.entry(*id).or_default().push(at);
        }
        Self { ids, positions }
    }

    /// Each id once, in order.
    fn distinct(&self) -> Vec<RecordId> {
        let mut seen = HashSet::with_capacity(self.ids.len());
        self.ids.iter().copied().filter(|id| seen.insert(*id)).collect()
    }

    fn give(&mut self, record: &Record, each: &mut (dyn FnMut(Arrived) -> Result<()> + Send)) -> Result<()> {
        let positions = self.positions.remove(&record.header.id);
        let positions = positions.ok_or_else(|| broken("it sends records that were not asked for"))?;
        positions.into_iter().try_for_each(|position| each(Arrived::Wanted(position, Ok(record.clone()))))
    }

    /// Passes on the reasons why the rest was not given.
    fn missing(mut self, reply: &Reply, each: &mut (dyn FnMut(Arrived) -> Result<()> + Send)) -> Result<()> {
        let Reply::Given { missing } = reply else { return Err(unexpected(reply)) };
        let distinct = self.distinct();
        for (at, error) in missing {
            let id = distinct.get(*at as usize).ok_or_else(|| broken("it lacks what was not asked for"))?;
            for position in self.positions.remove(id).unwrap_or_default() {
                each(Arrived::Wanted(position, Err(error.clone().into())))?;
            }
        }
        if self.positions.is_empty() { Ok(()) } else { Err(broken("records are missing from an answer")) }
    }
}
