//! Version 2 of the protocol: metrics, families of requests; and peers that speak only version 1.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chunkstore::metrics::Value;
use chunkstore::{Error, Progress};
use common::{Site, ingest_by, local, night, noise, push_all, run};
use replicate::rpc::auth::{Grant, Right};
use replicate::rpc::client::Client;
use replicate::rpc::server::{Families, FamilyAnswer, RequestFamily, ServeOptions, Server};
use replicate::rpc::wire::{ForStream, Hello, Job, Kind, Reply, Request, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const OLD_PREAMBLE: &[u8] = b"VMSTORE\0\x01\0\x01\0";

fn frame(kind: Kind, request: u32, payload: &[u8]) -> Vec<u8> {
    let head = [&(payload.len() as u32).to_le_bytes()[..], &[kind as u8, 0, 0, 0], &request.to_le_bytes()].concat();
    [head, payload.to_vec()].concat()
}

/// The value of each metric.
async fn values(client: &Client) -> BTreeMap<String, u64> {
    let samples = client.metrics().await.unwrap().into_iter();
    let value = |value| match value {
        Value::Counter(value) | Value::Gauge(value) => value,
        Value::Histogram(percentiles) => percentiles.count,
    };
    samples.map(|sample| (sample.name, value(sample.value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_counts_its_operations() {
    let (site, from) = (Site::new(1), Site::new(2));
    from.ingest(night("db01", 0), &noise(300_000, 9));
    let client = site.client().await;
    let before = values(&client).await;
    assert_eq!((before["connections"], before["pushes_total"], before["errors_total"]), (1, 0, 0));

    let ingesting = client.clone();
    let ingested = move || ingest_by(&ingesting, night("web01", 0), &noise(400_000, 1));
    tokio::task::spawn_blocking(ingested).await.unwrap();
    run(&from, &site, &push_all()).await;
    let progress = Progress::default();
    client.run(Job::Collect { dry_run: false, threads: 1 }, &progress).await.unwrap();
    client.run(Job::Verify { snapshots: Vec::new(), threads: 1 }, &progress).await.unwrap();
    client.run(Job::Remove { snapshot: "none@20260101T000000Z".into() }, &progress).await.unwrap_err();

    let after = values(&client).await;
    for name in ["ingests_total", "pushes_total", "gc_runs_total", "verify_runs_total", "errors_total"] {
        assert_eq!(after[name], 1, "{name}");
    }
    assert_eq!((after["ingest_bytes_total"], after["verify_problems_total"]), (400_000, 0));
    assert!(after["verify_bytes_total"] >= 700_000, "{after:?}");
    assert!(after["record_bytes_total"] >= 600_000, "an ingest and a push came through connections: {after:?}");
    assert!(after["received_bytes_total"] > after["record_bytes_total"] && after["requests_total"] > 10, "{after:?}");
}

/// Answers the body, or fails as it says.
struct Echo(Right);

impl RequestFamily for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn right(&self) -> Right {
        self.0
    }

    fn answer(&self, grant: &Grant, body: Bytes) -> FamilyAnswer {
        assert!(grant.is_local());
        Box::pin(async move {
            match &body[..] {
                b"refuse" => Err(Error::refused("no echo")),
                b"panic" => panic!("as the test asks"),
                b"long" => Ok(vec![7; 5 << 20]),
                body => Ok(body.to_vec()),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_of_requests_answers_what_only_it_knows() {
    let site = Site::new(1);
    let families = Families::default().with(Arc::new(Echo(Right::Local)));
    let options = ServeOptions { families, ..ServeOptions::default() };
    let server = Server::new(Arc::clone(&site.store), options, [3; 32]);
    let client = server.client().await.unwrap();
    assert_eq!(client.family("echo", b"anything".to_vec()).await.unwrap(), b"anything");
    assert_eq!(client.family("echo", b"long".to_vec()).await.unwrap(), vec![7; 5 << 20]);
    let refused = client.family("echo", b"refuse".to_vec()).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { what } if what == "no echo"), "{refused}");
    let failed = client.family("echo", b"panic".to_vec()).await.unwrap_err();
    assert!(failed.to_string().contains("failed at this request"), "{failed}");
    let too_long = client.family("echo", vec![0; 2 << 20]).await.unwrap_err();
    assert!(matches!(too_long, Error::Invalid { .. }), "{too_long}");
    assert_eq!(client.family("echo", b"still".to_vec()).await.unwrap(), b"still");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_without_a_family_says_so() {
    let client = Site::new(1).client().await;
    let refused = client.family("echo", Vec::new()).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { what } if what.contains("no requests of family echo")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_of_version_1_is_not_asked_for_what_it_does_not_know() {
    let (here, mut there) = tokio::io::duplex(1 << 16);
    let hello = Hello::default();
    let hello_bytes = OLD_PREAMBLE.len() + frame(Kind::Request, 0, &hello.to_bytes()).len();
    let owner = tokio::spawn(async move {
        there.read_exact(&mut vec![0; hello_bytes]).await.unwrap();
        there.write_all(OLD_PREAMBLE).await.unwrap();
        let welcome = Welcome { program: "vmstore 0.0.9".into(), ..Welcome::default() };
        there.write_all(&frame(Kind::Reply, 0, &welcome.to_bytes())).await.unwrap();
        let mut rest = Vec::new();
        there.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let client = Client::start(Box::new(here), &hello, &replicate::rpc::client::Link::default()).await.unwrap();
    for refused in [client.metrics().await.map(drop), client.family("echo", Vec::new()).await.map(drop)] {
        let Err(Error::Refused { what }) = refused else { panic!("{refused:?}") };
        assert!(what.contains("vmstore 0.0.9") && what.contains("version 2"), "{what}");
    }
    drop(client);
    assert!(owner.await.unwrap().is_empty(), "nothing was sent after the hand-shake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_version_1_is_answered_as_before() {
    let site = Site::new(1);
    let mut stream = site.stream(local());
    let stats = frame(Kind::Request, 1, &Request::Do(Job::Stats { threads: 1 }).to_bytes());
    let hello = frame(Kind::Request, 0, &Hello::default().to_bytes());
    stream.write_all(&[OLD_PREAMBLE, &hello, &stats].concat()).await.unwrap();
    let mut preamble = [0; 12];
    stream.read_exact(&mut preamble).await.unwrap();
    assert_eq!(preamble[8..10], [1, 0], "the oldest version that the owner speaks");
    for number in [0, 1] {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!((head[4], head[8]), (Kind::Reply as u8, number));
        let mut payload = vec![0; u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if number == 0 {
            Welcome::from_bytes(&payload).unwrap();
        } else {
            let Ok(Reply::Report(report)) = Reply::from_bytes(&payload) else { panic!("{payload:?}") };
            assert!(String::from_utf8(report).unwrap().contains("\"images\":0"));
        }
    }
}
