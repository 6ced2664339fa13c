//! Control messages, encoded by postcard; ids are sent as plain bytes.

use std::fmt;

use chunkstore::store::Claim;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::locations::{Locations, ReservedExtent};
use super::packed::{Bits, Ids, Prefixes, as_bytes};

/// The first message of a client.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The client's program and version, for messages.
    pub program: String,
    /// Its token, if it needs one.
    pub token: Option<String>,
}

impl fmt::Debug for Hello {
    /// The token is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello").field("program", &self.program).finish_non_exhaustive()
    }
}

/// The first message of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's program and version, for messages.
    pub program: String,
    /// The store's id.
    pub store_id: String,
    /// The minimum, average and maximum bytes of a chunk, and the shortest run of zeros: fixed for the store.
    pub chunk_params: [u32; 4],
    /// The store's compression level.
    pub zstd_level: i32,
    /// The client's role, in words.
    pub role: String,
}

/// A session to write or to read in; the number that the client of one connection chose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct SessionId(pub u32);

/// Lets another connection join a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionSecret(pub [u8; 16]);

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret")
    }
}

/// The purpose of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// To ingest: the client made the records itself.
    Ingest,
    /// To receive snapshots of another store: every record is verified.
    Receive,
    /// To read a snapshot, which gc keeps meanwhile.
    Read,
}

/// The requested form of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Fetch {
    /// As stored, perhaps as deltas.
    Stored,
    /// As stored, each delta after its base unless that was sent before in the same answer.
    WithBases,
    /// Never as deltas.
    Whole,
}

/// A client's request. New variants are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Begins a session that protects a snapshot: the parent of a new one, or the one to read.
    Begin {
        /// The client's number for it.
        session: SessionId,
        /// Its purpose.
        purpose: Purpose,
        /// The snapshot's name.
        snapshot: Option<String>,
    },
    /// Joins a session of another connection.
    Attach {
        /// This connection's number for it.
        session: SessionId,
        /// From the session's [`Reply::Begun`].
        secret: SessionSecret,
    },
    /// Ends a session without publishing.
    End {
        /// Which.
        session: SessionId,
    },
    /// Claims the records that the store lacks.
    Claim {
        /// On whose behalf.
        session: SessionId,
        /// Which records.
        ids: Ids,
    },
    /// Asks for the outcome of this connection's claims that were [`Claim::Elsewhere`]. Answered when some are decided,
    /// or after a while.
    Await {
        /// On whose behalf.
        session: SessionId,
    },
    /// Asks which records can be bases: present, full and undamaged.
    Full {
        /// Which.
        ids: Ids,
    },
    /// Asks for the bases of new records.
    Bases {
        /// On whose behalf.
        session: SessionId,
        /// The records or sketches that they resemble.
        like: Vec<Resemblance>,
    },
    /// Publishes a snapshot whose records are all present.
    Publish {
        /// The session that put them; it ends.
        session: SessionId,
        /// The snapshot's entry, as its maker encoded it.
        entry: Vec<u8>,
        /// The report of an ingest, as JSON.
        report: Option<Vec<u8>>,
    },
    /// Asks for records.
    Get {
        /// Which.
        ids: Ids,
        /// In which form.
        fetch: Fetch,
    },
    /// Asks which snapshots the store lacks.
    Lacks {
        /// The first bytes of their entries' ids.
        prefixes: Prefixes,
    },
    /// Asks for the snapshots that the client lacks.
    Select {
        /// Of which images or single snapshots.
        names: Names,
        /// The first bytes of the ids of the entries that the client has.
        have: Prefixes,
    },
    /// Runs a job at the store's owner.
    Do(Job),
    /// Asks the owner to accept no new clients, and to end once all are gone.
    Leave,
    /// Asks where records lie, to read them from the packs' files.
    Locate {
        /// Which.
        ids: Ids,
    },
    /// As [`Request::Bases`], for a client that reads the bases itself.
    BaseIds {
        /// On whose behalf.
        session: SessionId,
        /// The records or sketches that they resemble.
        like: Vec<Resemblance>,
    },
    /// Publishes a snapshot of which nothing need be present.
    PublishPartial {
        /// The snapshot's entry, as its maker encoded it.
        entry: Vec<u8>,
    },
    /// Makes the records of a session durable and readable.
    Flush {
        /// Which.
        session: SessionId,
    },
    /// Asks which records are present.
    Has {
        /// Which.
        ids: Ids,
    },
    /// Reports records that could not be read. Asks which of them the owner can't read either.
    Suspect {
        /// Which.
        ids: Ids,
    },
    /// Asks for the order in which a guest first read a snapshot.
    BootOrder {
        /// The snapshot's name.
        snapshot: String,
        /// Whether another snapshot of the image will do.
        or_nearest: bool,
    },
    /// Stores a snapshot's boot order.
    PutBootOrder {
        /// The snapshot's name.
        snapshot: String,
        /// The order's file.
        order: Vec<u8>,
    },
    /// Reserves an extent in a pack, to write records into its file directly.
    Reserve {
        /// On whose behalf.
        session: SessionId,
        /// The class of the records.
        class: u8,
        /// Their bytes.
        bytes: u32,
    },
    /// Adds records that the client wrote into such an extent.
    AppendWritten {
        /// Into which session.
        session: SessionId,
        /// Where they lie.
        extent: ReservedExtent,
        /// Their headers, one after another.
        #[serde(with = "as_bytes")]
        headers: Vec<u8>,
    },
    /// A request of a family that the program of the owner registered. Since version 2.
    Family {
        /// The family's name.
        name: String,
        /// The request, in the family's own encoding.
        #[serde(with = "as_bytes")]
        body: Vec<u8>,
    },
}

/// A record or sketch that a new record resembles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resemblance {
    /// This record.
    Record([u8; 32]),
    /// Records with this sketch.
    Sketch(u32),
}

/// A job on a whole store. Its report is JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Frees records that no snapshot needs.
    Collect {
        /// Only reports what would be freed.
        dry_run: bool,
        /// Threads.
        threads: u32,
    },
    /// Verifies everything, or the records that some snapshots need.
    Verify {
        /// Which.
        snapshots: Vec<String>,
        /// Threads.
        threads: u32,
    },
    /// Sums up.
    Stats {
        /// Threads.
        threads: u32,
    },
    /// Removes a snapshot.
    Remove {
        /// Which.
        snapshot: String,
    },
    /// Holds a snapshot.
    Hold {
        /// Which.
        snapshot: String,
        /// Why.
        reason: String,
    },
    /// Releases a snapshot.
    Release {
        /// Which.
        snapshot: String,
        /// The reason of the hold; all holds if not given.
        reason: Option<String>,
    },
    /// Counts how much of a partial snapshot is present, and stores the result.
    NotePresence {
        /// Which.
        snapshot: String,
    },
    /// Repairs damage, as far as the store can by itself.
    Repair {
        /// Only reports what would be done.
        dry_run: bool,
        /// Threads.
        threads: u32,
    },
    /// Reads the registry of metrics. Since version 2.
    Metrics,
}

/// Which snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Names {
    /// All.
    All,
    /// Those of an image.
    Image(String),
    /// Those that these selectors match, such as `web01@latest`.
    Selectors(Vec<String>),
}

/// An answer. New variants are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// A session began.
    Begun {
        /// For other connections to join.
        secret: SessionSecret,
        /// Whether chunks that the parent has need not be claimed.
        trusts_parent: bool,
    },
    /// One byte a record: the result of a claim.
    Claims(#[serde(with = "as_bytes")] Vec<u8>),
    /// Of records that others had claimed: the claim's request, the position in it, and the result.
    Decided(Vec<(u32, u32, u8)>),
    /// One bit for each that was asked for.
    Bits(Bits),
    /// The bases' ids; their records came before, each once.
    Bases(Vec<Option<[u8; 32]>>),
    /// A published snapshot's catalog file.
    Published(#[serde(with = "as_bytes")] Vec<u8>),
    /// Records could not be given: their position in the request, and why. All others came before.
    Given {
        /// The missing ones.
        missing: Vec<(u32, super::WireError)>,
    },
    /// Entries of snapshots that the client lacks.
    Entries(Vec<Vec<u8>>),
    /// The end of a selection: which of the client's snapshots the store has, too.
    Selected {
        /// One bit for each prefix that was sent.
        common: Bits,
        /// How many snapshots were selected in all.
        selected: u32,
    },
    /// A job's report, as JSON, or the answer of a family.
    Report(#[serde(with = "as_bytes")] Vec<u8>),
    /// The location of each requested record, if it can be read.
    Locations(Locations),
    /// Bases that the client reads itself.
    BaseIds {
        /// Their ids.
        ids: Vec<Option<[u8; 32]>>,
        /// The locations of those that exist, in their order.
        locations: Locations,
    },
    /// The file of a boot order, if there is one.
    BootOrder(Option<Vec<u8>>),
    /// An extent that the session may write to.
    Reserved(ReservedExtent),
    /// Whether the written records were added: the owner may have sealed their pack.
    Appended(bool),
}

/// A message with an encoding.
pub trait ForStream: Serialize + DeserializeOwned {
    /// The message's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a message has no type that postcard lacks")
    }

    /// Reads a message.
    ///
    /// # Errors
    /// A description of the problem; also if bytes are left over.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            Ok(_) => Err("bytes are left over after a message".into()),
            Err(error) => Err(format!("a message can't be read: {error}")),
        }
    }
}

impl ForStream for Hello {}
impl ForStream for Welcome {}
impl ForStream for Request {}
impl ForStream for Reply {}
impl ForStream for super::WireError {}
impl ForStream for (u64, u64) {}

/// Encodes claims.
pub fn claims_to_bytes(claims: &[Claim]) -> Vec<u8> {
    let number = |claim: &Claim| match claim {
        Claim::Present => 0,
        Claim::Yours => 1,
        Claim::YoursWhole => 2,
        Claim::Elsewhere => 3,
    };
    claims.iter().map(number).collect()
}

/// Reads claims.
///
/// # Errors
/// If one is unknown.
pub fn claims_from_bytes(bytes: &[u8]) -> Result<Vec<Claim>, String> {
    let claim = |byte: &u8| match byte {
        0 => Ok(Claim::Present),
        1 => Ok(Claim::Yours),
        2 => Ok(Claim::YoursWhole),
        3 => Ok(Claim::Elsewhere),
        _ => Err(format!("an unknown answer to a claim: {byte}")),
    };
    bytes.iter().map(claim).collect()
}

#[cfg(test)]
mod tests {
    use chunkstore::format::ChunkId;
    use proptest::prelude::*;

    use super::*;

    fn ids() -> Ids {
        Ids((0..9_u8).map(|n| ChunkId::of(&[n]).into()).collect())
    }

    fn requests() -> Vec<Request> {
        let session = SessionId(3);
        vec![
            Request::Begin { session, purpose: Purpose::Receive, snapshot: Some("web01@20261120T020000Z".into()) },
            Request::Claim { session, ids: ids() },
            Request::Get { ids: ids(), fetch: Fetch::WithBases },
            Request::Bases { session, like: vec![Resemblance::Record([7; 32]), Resemblance::Sketch(9)] },
            Request::Publish { session, entry: b"{}".to_vec(), report: None },
            Request::Lacks { prefixes: Prefixes(vec![[1; 12], [2; 12]]) },
            Request::Select { names: Names::Image("web01".into()), have: Prefixes::default() },
            Request::Do(Job::Collect { dry_run: true, threads: 2 }),
            Request::Locate { ids: ids() },
            Request::BaseIds { session, like: vec![Resemblance::Sketch(9)] },
            Request::PublishPartial { entry: b"{}".to_vec() },
            Request::Has { ids: ids() },
            Request::BootOrder { snapshot: "web01@20261120T020000Z".into(), or_nearest: true },
            Request::PutBootOrder { snapshot: "web01@20261120T020000Z".into(), order: b"x".to_vec() },
            Request::Do(Job::Metrics),
            Request::Family { name: "disks".into(), body: b"x".to_vec() },
        ]
    }

    #[test]
    fn messages_survive_and_cuts_and_left_overs_are_refused() {
        for request in requests() {
            let bytes = request.to_bytes();
            assert_eq!(Request::from_bytes(&bytes).as_ref(), Ok(&request));
            for len in 0..bytes.len() {
                assert!(Request::from_bytes(&bytes[..len]).is_err(), "{request:?} cut at {len}");
            }
            assert!(Request::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
        }
        let reply = Reply::Given { missing: vec![(3, super::super::WireError::Interrupted)] };
        assert_eq!(Reply::from_bytes(&reply.to_bytes()).unwrap(), reply);
    }

    #[test]
    fn claims_survive() {
        let claims = [Claim::Present, Claim::Yours, Claim::YoursWhole, Claim::Elsewhere];
        assert_eq!(claims_from_bytes(&claims_to_bytes(&claims)).unwrap(), claims);
        assert!(claims_from_bytes(&[4]).is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let hello = Hello { program: "vmstore".into(), token: Some("vms_secret".into()) };
        assert!(!format!("{hello:?} {:?}", SessionSecret([b's'; 16])).contains("115"));
        assert!(!format!("{hello:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_fail_otherwise_than_by_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Request::from_bytes(&bytes), Reply::from_bytes(&bytes), Hello::from_bytes(&bytes));
            let _ = (Welcome::from_bytes(&bytes), super::super::WireError::from_bytes(&bytes), super::super::records_of(&bytes));
        }
    }
}
