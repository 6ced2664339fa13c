//! Valid inputs of the targets that read what other sites and their users send.

use chunkstore::catalog::State;
use chunkstore::format::{ChunkId, Codec, Kind as RecordKind, PackId, RecordId};
use chunkstore::pack::{Class, Extent, RecordLocation};
use chunkstore::store::Claim;
use replicate::rpc::wire::{
    ENTRY_PREFIX_BYTES, Fetch, ForStream, Frame, FrameWriter, Hello, Ids, Job, Kind, Located, Locations, Names,
    Prefixes, Purpose, RecordBatch, Reply, Request, Resemblance, ReservedExtent, SessionId, SessionSecret, Welcome,
    WireError, claims_to_bytes, headers_to_bytes, write_preamble,
};
use tokio::runtime::Builder;

use super::super::Example;
use super::{ENTRY, catalog_file, delta_chunk, raw_chunk, zstd_chunk};

const SESSION: SessionId = SessionId(3);

fn ids() -> Ids {
    Ids((0..3_u8).map(|n| RecordId::from(ChunkId::of(&[n]))).collect())
}

fn prefixes() -> Prefixes {
    Prefixes(vec![[1; ENTRY_PREFIX_BYTES], [2; ENTRY_PREFIX_BYTES]])
}

pub(in super::super) fn frames() -> Vec<Example> {
    let hello = Frame::new(Kind::Request, 0, hello().to_bytes());
    let claim = Frame::new(Kind::Request, 1, Request::Claim { session: SESSION, ids: ids() }.to_bytes());
    let records = Frame::new(Kind::Records, 2, records());
    let ping = Frame::new(Kind::Ping, 0, Vec::new());
    let error = Frame::new(Kind::Error, 1, WireError::Interrupted.to_bytes());
    vec![
        ("silent", connection(&[])),
        ("greeting", connection(std::slice::from_ref(&hello))),
        ("work", connection(&[hello, claim, records, ping, error])),
    ]
}

/// The messages of one side of a connection.
fn connection(frames: &[Frame]) -> Vec<u8> {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
    let mut bytes = Vec::new();
    runtime.block_on(async {
        write_preamble(&mut bytes, &replicate::rpc::wire::Meter::default())
            .await
            .expect("memory can always be written");
        let mut writer = FrameWriter::new(&mut bytes, std::sync::Arc::default());
        for frame in frames {
            writer.write(frame).await.expect("memory can always be written");
        }
    });
    bytes
}

fn hello() -> Hello {
    Hello { program: "vmstore 0.1.0".to_owned(), token: Some("vms_".to_owned() + &"7".repeat(64)) }
}

pub(in super::super) fn messages() -> Vec<Example> {
    let mut all = requests();
    all.extend(replies());
    let welcome = Welcome {
        program: "vmstore 0.1.0".to_owned(),
        store_id: "07".repeat(16),
        chunk_params: [16 << 10, 64 << 10, 256 << 10, 64 << 10],
        zstd_level: 1,
        role: "push".to_owned(),
    };
    let damaged = WireError::Damaged { what: "pack 17 at offset 4096".to_owned(), detail: "a\u{1b}[2J".to_owned() };
    all.extend([
        ("hello", hello().to_bytes()),
        ("welcome", welcome.to_bytes()),
        ("error", damaged.to_bytes()),
        ("progress", (1_u64, u64::MAX).to_bytes()),
    ]);
    all
}

fn requests() -> Vec<Example> {
    let session = SESSION;
    let snapshot = "web01@20261120T020000Z".to_owned();
    let like = vec![Resemblance::Record([7; 32]), Resemblance::Sketch(9)];
    let report = serde_json::to_vec(&State::default().ingest).ok();
    let headers = headers_to_bytes(&[zstd_chunk().header, delta_chunk().header, raw_chunk().header]);
    let requests = [
        ("begin", Request::Begin { session, purpose: Purpose::Receive, snapshot: Some(snapshot.clone()) }),
        ("attach", Request::Attach { session, secret: SessionSecret([9; 16]) }),
        ("claim", Request::Claim { session, ids: ids() }),
        ("bases", Request::Bases { session, like }),
        ("publish", Request::Publish { session, entry: ENTRY.into(), report }),
        ("get", Request::Get { ids: ids(), fetch: Fetch::WithBases }),
        ("lacks", Request::Lacks { prefixes: prefixes() }),
        ("select", Request::Select { names: Names::Selectors(vec![snapshot.clone()]), have: prefixes() }),
        ("hold", Request::Do(Job::Hold { snapshot, reason: "operator".to_owned() })),
        ("leave", Request::Leave),
        ("places", Request::Locate { ids: ids() }),
        ("base-ids", Request::BaseIds { session, like: vec![Resemblance::Sketch(9)] }),
        ("lend", Request::Reserve { session, class: Class::Data as u8, bytes: 70_000 }),
        ("put-written", Request::AppendWritten { session, extent: extent(), headers }),
        ("family", Request::Family { name: "echo".to_owned(), body: b"anything".to_vec() }),
        ("metrics", Request::Do(Job::Metrics)),
    ];
    requests.map(|(name, request)| (name, request.to_bytes())).into()
}

fn replies() -> Vec<Example> {
    let claims = [Claim::Present, Claim::Yours, Claim::YoursWhole, Claim::Elsewhere];
    let published = catalog_file().remove(0).1;
    let replies = [
        ("begun", Reply::Begun { secret: SessionSecret([9; 16]), trusts_parent: true }),
        ("claims", Reply::Claims(claims_to_bytes(&claims))),
        ("decided", Reply::Decided(vec![(1, 2, 3), (u32::MAX, 0, 0)])),
        ("bits", Reply::Bits((0..19).map(|n| n % 3 == 0).collect())),
        ("published", Reply::Published(published)),
        ("given", Reply::Given { missing: vec![(3, WireError::Interrupted)] }),
        ("entries", Reply::Entries(vec![ENTRY.into(), Vec::new()])),
        ("located", Reply::Locations(locations())),
        ("based", Reply::BaseIds { ids: vec![None, Some([7; 32]), Some([8; 32])], locations: locations() }),
        ("lent", Reply::Reserved(extent())),
        ("taken", Reply::Appended(true)),
    ];
    replies.map(|(name, reply)| (name, reply.to_bytes())).into()
}

fn locations() -> Locations {
    let pack = PackId { number: 3, tag: 0xdead_beef };
    let (kind, codec) = (RecordKind::Chunk, Codec::Delta);
    let location =
        RecordLocation { pack: 3, ordinal: 0, offset: 4096, stored_bytes: 700, plain_bytes: 70_000, kind, codec };
    Locations(vec![None, Some(Located { pack, location })])
}

fn extent() -> ReservedExtent {
    Extent { pack: PackId { number: 3, tag: 0xdead_beef }, class: Class::Data, offset: 4096, bytes: 70_000 }.into()
}

fn records() -> Vec<u8> {
    let mut batch = RecordBatch::new();
    for record in [zstd_chunk(), delta_chunk(), raw_chunk()] {
        batch.push(&record);
    }
    batch.into_payload().into()
}

pub(in super::super) fn wire_records() -> Vec<Example> {
    vec![("three", records())]
}

pub(in super::super) fn peer_names() -> Vec<Example> {
    let texts = [
        ("path", "./store"),
        ("unix", "unix:/run/vmstore.sock"),
        ("ssh", "ssh://backup@site-b:2222/srv/vmstore"),
        ("ssh_home", "ssh://site-b/~/store"),
        ("tls", "tls://site-b"),
        ("tls_ipv6", "tls://[fe80::1%eth0]:7879"),
        ("tcp", "tcp://[::1]:7879"),
        ("fingerprint", "sha256:0af10af10af10af10af10af10af10af10af10af10af10af10af10af10af10af1"),
        ("pattern", "web*.disk-?"),
        ("role", "push"),
        ("token", "vms_7777777777777777777777777777777777777777777777777777777777777777"),
    ];
    texts.map(|(name, text)| (name, text.into())).into()
}

pub(in super::super) fn remotes() -> Vec<Example> {
    let text = r#"# Other stores.
[remote.site-b]
address = "tls://site-b"
pin = "sha256:0af10af10af10af10af10af10af10af10af10af10af10af10af10af10af10af1"
cert = "client.pem"
key = "/etc/vmstore/key.pem"
token_file = "../token"
limit_rate_bytes_per_s = 1048576
streams = 4

[remote.nas]
address = "../nas/store"
"#;
    vec![("two", text.into())]
}

pub(in super::super) fn tokens() -> Vec<Example> {
    let text = r#"# Who may use this store.
[[token]]
name = "site-b"
role = "push"
images = ["web*", "db-0?"]
quota_bytes = 1099511627776
created = "2026-11-20T00:00:00Z"
sha256 = "0af10af10af10af10af10af10af10af10af10af10af10af10af10af10af10af1"

[[token]]
name = "monitor"
role = "read"
created = "2026-11-20T00:00:00Z"
client_name = "monitor.example"
"#;
    vec![("two", text.into())]
}

pub(in super::super) fn quotas() -> Vec<Example> {
    vec![("used", "[used_bytes]\nsite-b = 123456789\nmonitor = 0\n".into())]
}

/// A key made for this alone.
pub(in super::super) fn pem() -> Vec<Example> {
    vec![("identity", include_bytes!("identity.pem").into())]
}
