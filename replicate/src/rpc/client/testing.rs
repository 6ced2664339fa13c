//! A peer for tests, with scripted answers.

use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::multiplex::{Client, IDLE_TIMEOUT, Link, write_queue};
use crate::rpc::wire::{
    ForStream, Frame, FrameReader, FrameWriter, Hello, Kind, Meter, Reply, Request, Welcome, read_preamble,
    write_preamble,
};

/// A client of a peer, far or near, that gives these answers, or none, and sends keep-alives.
pub(crate) async fn client_of(
    is_far: bool,
    answer: impl Fn(Request) -> Option<Reply> + Send + Sync + 'static,
) -> Client {
    let (here, there) = tokio::io::duplex(1 << 16);
    tokio::spawn(serve(there, answer));
    Client::start(Box::new(here), &Hello::default(), &Link { is_far, ..Link::default() }).await.unwrap()
}

async fn serve(mut stream: DuplexStream, answer: impl Fn(Request) -> Option<Reply>) {
    let meter = Arc::<Meter>::default();
    write_preamble(&mut stream, &meter).await.unwrap();
    read_preamble(&mut stream, &meter).await.unwrap();
    let (read, write) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read, Arc::clone(&meter)), FrameWriter::new(write, meter));
    reader.read(IDLE_TIMEOUT).await.unwrap();
    let (say, mut queue) = mpsc::channel(1);
    tokio::spawn(async move { write_queue(&mut queue, &mut writer, None).await });
    let mut said = Some(Frame::new(Kind::Reply, 0, Welcome::default().to_bytes()));
    loop {
        if let Some(frame) = said.take() {
            say.send(frame).await.unwrap();
        }
        let Ok(Some(frame)) = reader.read(IDLE_TIMEOUT).await else { return };
        if frame.kind == Kind::Request {
            let reply = answer(Request::from_bytes(&frame.payload).unwrap());
            said = reply.map(|reply| Frame::new(Kind::Reply, frame.request, reply.to_bytes()));
        }
    }
}
