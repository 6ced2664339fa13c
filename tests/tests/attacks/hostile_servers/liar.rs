//! A proxy before an honest store that changes what it answers.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chunkstore::format::{Codec, HEADER_BYTES, Record, RecordCodec};
use replicate::rpc::wire::{
    Bits, FRAME_HEADER_BYTES, ForStream, Frame, FrameReader, Kind, Meter, RecordBatch, Reply, Request, WireError,
    records_of,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const PREAMBLE_BYTES: usize = 12;
const PATIENCE: Duration = Duration::from_mins(10);
/// Frames of a flood, half a MiB each.
const FLOOD_FRAMES: usize = 4000;

/// How it changes answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    Nothing,
    /// One bit of each frame of records is another.
    Flip,
    /// Other bytes under the ids that were asked for, with right checksums.
    OtherBytes,
    /// Records of one kind under the ids of another.
    OtherKind,
    /// The ids of records exchanged.
    Exchanged,
    /// Payloads that decode to far more than they say.
    Bomb,
    /// Records that say that they are longer than anything.
    RecordLengths,
    /// Frames that say that they are longer than anything.
    FrameLengths,
    /// Each record many times.
    Again,
    /// Bases without an end.
    Bases,
    /// Progress without an end.
    Progress,
    /// Nothing is claimed to be there.
    Lacks,
    /// Records are claimed to be missing that were never asked for.
    LacksNonsense,
    /// Answers of another kind.
    OtherAnswer,
    /// Boot orders of places that no image has.
    BootOrder,
    Silence,
    /// A byte at a time.
    Drip,
    /// The connection ends within an answer.
    Cut,
    /// Entries of snapshots that can't be.
    Entries,
    /// Entries of a hundred thousand snapshots.
    Crowd,
}

impl Lie {
    /// All that concern the content of snapshots.
    pub(crate) fn of_records() -> Vec<Self> {
        vec![
            Self::Flip,
            Self::OtherBytes,
            Self::Silence,
            Self::OtherKind,
            Self::Exchanged,
            Self::Bomb,
            Self::RecordLengths,
            Self::FrameLengths,
            Self::Again,
            Self::Bases,
            Self::Progress,
            Self::Lacks,
            Self::LacksNonsense,
            Self::OtherAnswer,
            Self::Drip,
            Self::Cut,
            Self::BootOrder,
        ]
    }

    /// Whether nothing of what is far can come through.
    pub(crate) fn hides_all(self) -> bool {
        matches!(self, Self::OtherBytes | Self::Silence | Self::Lacks | Self::Bomb)
    }
}

struct State {
    lie: Mutex<Lie>,
    told: AtomicU64,
    server: SocketAddr,
}

impl State {
    fn lie(&self) -> Lie {
        *self.lie.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests whose answers are under way.
type Asked = Arc<Mutex<HashMap<u32, Request>>>;

/// The proxy.
pub(crate) struct Liar {
    state: Arc<State>,
    address: SocketAddr,
    _runtime: Runtime,
}

impl Liar {
    /// Starts one before the server at this address; it is honest at first.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = Arc::new(State { lie: Mutex::new(Lie::Nothing), told: AtomicU64::new(0), server });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                // Either side may close a connection at any time.
                tokio::spawn(async move { drop(serve(client, &state).await) });
            }
        });
        Self { state, address, _runtime: runtime }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it lies so.
    pub(crate) fn tell(&self, lie: Lie) {
        *self.state.lie.lock().unwrap() = lie;
        self.state.told.store(0, Ordering::SeqCst);
    }

    /// How often it has told the present lie.
    pub(crate) fn told(&self) -> u64 {
        self.state.told.load(Ordering::SeqCst)
    }
}

async fn serve(client: TcpStream, state: &Arc<State>) -> io::Result<()> {
    let server = TcpStream::connect(state.server).await?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let mut preamble = [0; PREAMBLE_BYTES];
    from_client.read_exact(&mut preamble).await?;
    to_server.write_all(&preamble).await?;
    from_server.read_exact(&mut preamble).await?;
    to_client.write_all(&preamble).await?;
    let asked = Asked::default();
    let heard = Arc::clone(&asked);
    let forwarding = tokio::spawn(async move { forward(from_client, to_server, &heard).await });
    let answered = answer(from_server, to_client, &asked, state).await;
    forwarding.abort();
    answered
}

async fn forward(from_client: OwnedReadHalf, mut to_server: OwnedWriteHalf, asked: &Asked) -> io::Result<()> {
    let mut reader = FrameReader::new(from_client, Arc::new(Meter::default()));
    while let Ok(Some(frame)) = reader.read(PATIENCE).await {
        if let Ok(request) = Request::from_bytes(&frame.payload)
            && frame.kind == Kind::Request
            && frame.request > 0
        {
            asked.lock().unwrap().insert(frame.request, request);
        }
        to_server.write_all(&bytes_of(&frame)).await?;
    }
    Ok(())
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    framed(frame.kind, frame.request, &frame.payload)
}

fn framed(kind: Kind, request: u32, payload: &[u8]) -> Vec<u8> {
    let head = [&(payload.len() as u32).to_le_bytes()[..], &[kind as u8, 0, 0, 0], &request.to_le_bytes()].concat();
    assert_eq!(head.len(), FRAME_HEADER_BYTES);
    [head, payload.to_vec()].concat()
}

async fn answer(from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: &Asked, state: &State) -> io::Result<()> {
    let mut reader = FrameReader::new(from, Arc::new(Meter::default()));
    while let Ok(Some(frame)) = reader.read(PATIENCE).await {
        let request = asked.lock().unwrap().get(&frame.request).cloned();
        let lie = state.lie();
        let Some(lies) = changed(lie, &frame, request.as_ref()) else {
            to.write_all(&bytes_of(&frame)).await?;
            continue;
        };
        state.told.fetch_add(1, Ordering::SeqCst);
        match lie {
            Lie::Silence => {
                while state.lie() == lie {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                return Ok(());
            }
            Lie::Drip => {
                for byte in lies.concat() {
                    to.write_all(&[byte]).await?;
                    if state.lie() == lie {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
            Lie::Cut => {
                let bytes = lies.concat();
                to.write_all(&bytes[..bytes.len() / 2]).await?;
                return to.shutdown().await;
            }
            Lie::Bases | Lie::Progress => {
                for _ in 0..FLOOD_FRAMES {
                    if state.lie() != lie {
                        return Ok(());
                    }
                    to.write_all(&lies[0]).await?;
                }
                // And no end.
                while state.lie() == lie {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                return Ok(());
            }
            _ => {
                for bytes in lies {
                    to.write_all(&bytes).await?;
                }
            }
        }
    }
    Ok(())
}

/// The bytes sent in place of a frame; none for the truth.
fn changed(lie: Lie, frame: &Frame, request: Option<&Request>) -> Option<Vec<Vec<u8>>> {
    let request = request?;
    if matches!(lie, Lie::Entries | Lie::Crowd) {
        return entries(lie, frame, request);
    }
    if lie == Lie::BootOrder {
        let is_asked = matches!(request, Request::BootOrder { .. }) && frame.kind == Kind::Reply;
        return is_asked.then(|| vec![framed(Kind::Reply, frame.request, &boot_order())]);
    }
    if !matches!(request, Request::Get { .. }) {
        return None;
    }
    let said = |payload: &[u8]| Some(vec![framed(frame.kind, frame.request, payload)]);
    let same = Some(vec![bytes_of(frame)]);
    if frame.kind == Kind::Reply {
        let missing = |at: u32| (at, WireError::NotFound { what: "\u{1b}[2J".repeat(1000) });
        return match lie {
            Lie::LacksNonsense => said(&Reply::Given { missing: vec![missing(u32::MAX), missing(7)] }.to_bytes()),
            Lie::OtherAnswer => said(&Reply::Done.to_bytes()),
            Lie::Silence | Lie::Cut | Lie::Drip => same,
            Lie::Lacks => {
                let Request::Get { ids, .. } = request else { return None };
                said(&Reply::Given { missing: (0..ids.0.len() as u32).map(missing).collect() }.to_bytes())
            }
            _ => None,
        };
    }
    if frame.kind != Kind::Records {
        return None;
    }
    let records = records_of(&frame.payload).expect("the server is honest");
    let batch = |records: &[Record]| {
        let mut batch = RecordBatch::new();
        for record in records {
            batch.push(record);
        }
        batch.into_payload().to_vec()
    };
    let each = |change: &dyn Fn(&Record) -> Record| batch(&records.iter().map(change).collect::<Vec<_>>());
    match lie {
        Lie::Flip => {
            let mut payload = frame.payload.to_vec();
            let at = payload.len() * 2 / 3;
            payload[at] ^= 4;
            said(&payload)
        }
        Lie::OtherBytes => said(&each(&|record| {
            let bytes = vec![0x5a; record.header.plain_bytes as usize];
            Record::new(record.header.kind, record.header.id, bytes.len(), Codec::Raw, bytes, None)
        })),
        Lie::OtherKind => said(&each(&|record| {
            let mut other = record.clone();
            other.header.kind =
                chunkstore::format::Kind::from_number(3 - other.header.kind as u8).unwrap_or(record.header.kind);
            other
        })),
        Lie::Exchanged => {
            let mut exchanged = records.clone();
            for (at, record) in exchanged.iter_mut().enumerate() {
                record.header.id = records[(at + 1) % records.len()].header.id;
            }
            said(&batch(&exchanged))
        }
        Lie::Bomb => said(&each(&|record| {
            let payload = RecordCodec::new(1).payload(&vec![0; 64 << 20], None).1;
            let plain_bytes = record.header.plain_bytes as usize;
            Record::new(record.header.kind, record.header.id, plain_bytes, Codec::Zstd, payload, None)
        })),
        Lie::RecordLengths => {
            let mut payload = frame.payload.to_vec();
            payload[8..16].fill(0xff);
            let checksum = crc32c::crc32c_append(crc32c::crc32c(&payload[..20]), &payload[24..HEADER_BYTES]);
            payload[20..24].copy_from_slice(&checksum.to_le_bytes());
            said(&payload)
        }
        Lie::FrameLengths => {
            let mut bytes = bytes_of(frame);
            bytes[..4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
            Some(vec![bytes])
        }
        Lie::Again => Some(vec![bytes_of(frame); 50]),
        Lie::Bases => {
            let noise: Vec<u8> = (0..64_u32 << 10).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let id = chunkstore::format::ChunkId::of(&noise).into();
            let base = Record::new(chunkstore::format::Kind::Chunk, id, noise.len(), Codec::Raw, noise, None);
            Some(vec![framed(Kind::Bases, frame.request, &batch(&vec![base; 8]))])
        }
        Lie::Progress => Some(vec![framed(Kind::Progress, frame.request, &(1_u64, u64::MAX).to_bytes())]),
        Lie::Lacks => Some(Vec::new()),
        Lie::Silence | Lie::Cut | Lie::Drip => same,
        _ => None,
    }
}

/// The file of a boot order that checks, of places beyond every image.
fn boot_order() -> Vec<u8> {
    let lines = ["0 18446744073709551615", "18446744073709551615 1", "1152921504606846976 4096", "4096 0", "1 1"];
    let body = format!("vmstore-boot-order 1\n{}\n", lines.join("\n"));
    let file = format!("{body}blake3 {}\n", blake3::hash(body.as_bytes()).to_hex());
    Reply::BootOrder(Some(file.into_bytes())).to_bytes()
}

/// Entries instead of the true ones, but with those.
fn entries(lie: Lie, frame: &Frame, request: &Request) -> Option<Vec<Vec<u8>>> {
    let Request::Select { have, .. } = request else { return None };
    match Reply::from_bytes(&frame.payload).expect("the server is honest") {
        Reply::Entries(honest) => {
            let forged = if lie == Lie::Crowd { crowd(&honest[0]) } else { forged(&honest[0]) };
            let all = [honest, forged].concat();
            Some(
                all.chunks(1000)
                    .map(|part| framed(Kind::Part, frame.request, &Reply::Entries(part.to_vec()).to_bytes()))
                    .collect(),
            )
        }
        Reply::Selected { .. } => {
            let reply = Reply::Selected { common: have.0.iter().map(|_| true).collect::<Bits>(), selected: u32::MAX };
            Some(vec![framed(Kind::Reply, frame.request, &reply.to_bytes())])
        }
        _ => None,
    }
}

fn crowd(honest: &[u8]) -> Vec<Vec<u8>> {
    let text = std::str::from_utf8(honest).unwrap();
    (0..100_000).map(|number| text.replace("\"web01\"", &format!("\"crowd-{number}\"")).into_bytes()).collect()
}

/// Entries of which some are impossible, and others only lies.
fn forged(honest: &[u8]) -> Vec<Vec<u8>> {
    use serde_json::{Value, json};
    let honest: Value = serde_json::from_slice(honest).unwrap();
    let zeros = "0".repeat(64);
    let of = |number: usize, field: &str, value: Value| {
        let mut entry = honest.clone();
        entry["image"] = json!(format!("liar{number}"));
        entry[field] = value;
        serde_json::to_vec(&entry).unwrap()
    };
    let mut changes: Vec<(&str, Value)> = Vec::new();
    for bytes in
        [0, 1, 4096, 4 << 20, (4 << 20) + 1, 23 << 20, 1 << 30, 1 << 40, 1 << 60, (1 << 60) + 1, 1 << 63, u64::MAX]
    {
        changes.push(("virtual_bytes", json!(bytes)));
    }
    for image in ["../../etc", "/etc/passwd", "a/b", "..", "", "a\nb", "a\0b", "\u{202e}x", &"x".repeat(5000)] {
        changes.push(("image", json!(image)));
    }
    for time in ["", "..", "99999999T999999Z", "20261101T020000Z/../../x", "-00010101T000000Z", "20261101T020000Z\n"] {
        changes.push(("time", json!(time)));
    }
    for root in [json!(null), json!(zeros), json!("f".repeat(64)), json!("../x"), json!(7), json!(zeros.repeat(1000))] {
        changes.push(("root", root));
    }
    changes.push(("labels", json!({"a": "\u{1b}[2J\n", "../x": "y"})));
    changes.push(("attachments", json!({"../../x": "y".repeat(100_000)})));
    changes.push(("origin", json!("\n".repeat(1000))));
    changes.push(("created", json!("-9999-01-01T00:00:00Z")));
    changes.push(("required_features", json!(["everything"])));
    let mut entries: Vec<Vec<u8>> =
        changes.into_iter().enumerate().map(|(number, (field, value))| of(number, field, value)).collect();
    entries.extend([Vec::new(), b"{}".to_vec(), b"[".repeat(100_000), vec![0xff; 600_000]]);
    entries
}
