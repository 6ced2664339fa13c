//! A snapshot as `ingest`, `list`, `show`, `hold` and `release` print it: one form for all of them.

use std::collections::{BTreeMap, BTreeSet};

use chunkstore::catalog::{ImageName, IngestReport, Presence, Snapshot, SnapshotTime};
use jiff::Timestamp;
use serde::Serialize;

use crate::terminal::output::{bytes, fields, seconds};

/// A snapshot as JSON. The ingest's fields are missing if it came from another store.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotView<'a> {
    image: &'a ImageName,
    /// The whole name.
    snapshot: String,
    time: SnapshotTime,
    virtual_bytes: u64,
    #[serde(flatten)]
    ingest: Option<&'a IngestReport>,
    /// The same as `throughput_bytes_per_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    throughput: Option<f64>,
    group: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
    origin: &'a str,
    created: Timestamp,
    root: Option<String>,
    entry: String,
    attachments: Vec<&'a str>,
    held: bool,
    holds: &'a BTreeSet<String>,
    partial: bool,
    /// How much of a partial snapshot was present when it was last counted.
    #[serde(flatten)]
    presence: Option<Presence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    present_percent: Option<u8>,
}

impl<'a> SnapshotView<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        let (entry, state) = (snapshot.entry(), &snapshot.state);
        let throughput = state.ingest.as_ref().map(|ingest| ingest.throughput_bytes_per_s);
        Self {
            image: &entry.image,
            snapshot: snapshot.name().to_string(),
            time: entry.time,
            virtual_bytes: entry.virtual_bytes,
            ingest: state.ingest.as_ref(),
            throughput: throughput.map(|rate| if rate.is_finite() { rate } else { 0.0 }),
            group: entry.group.as_deref(),
            labels: &entry.labels,
            origin: &entry.origin,
            created: entry.created,
            root: entry.root.map(|root| root.to_string()),
            entry: snapshot.entry_id().to_string(),
            attachments: entry.attachments.keys().map(String::as_str).collect(),
            held: state.is_held(),
            holds: &state.holds,
            partial: state.partial,
            presence: state.presence,
            present_percent: state.presence.map(|presence| presence.percent()),
        }
    }

    /// The report of an ingest, for people.
    pub(crate) fn ingest_report(&self) -> String {
        format!("{}\n{}", self.snapshot, fields(&self.ingest_lines()))
    }

    /// The whole description, for people.
    pub(crate) fn description(&self) -> String {
        let mut lines = self.ingest_lines();
        lines.extend([
            ("origin", self.origin.to_owned()),
            ("ingested", self.created.to_string()),
            ("root", self.root.clone().unwrap_or_else(|| "none, all zeros".to_owned())),
            ("entry", self.entry.clone()),
        ]);
        if !self.attachments.is_empty() {
            lines.push(("attachments", self.attachments.join(", ")));
        }
        if self.held {
            lines.push(("held", self.holds_text()));
        }
        if self.partial {
            lines.push(("partial", self.partial_text()));
        }
        format!("{}\n{}", self.snapshot, fields(&lines))
    }

    /// One line of a list: name, size, data, added, labels, partial, held.
    pub(crate) fn row(&self) -> [String; 7] {
        let ingested = |of: fn(&IngestReport) -> u64| self.ingest.map_or_else(|| "-".to_owned(), |it| bytes(of(it)));
        [
            self.snapshot.clone(),
            bytes(self.virtual_bytes),
            ingested(|ingest| ingest.data_bytes),
            ingested(|ingest| ingest.stored_bytes),
            self.labels_text(),
            if self.partial { self.partial_text() } else { String::new() },
            self.holds_text(),
        ]
    }

    fn partial_text(&self) -> String {
        match self.presence {
            Some(Presence { present_bytes, needed_bytes }) => {
                let percent = self.present_percent.unwrap_or_default();
                format!("{percent} %, {} of {}", bytes(present_bytes), bytes(needed_bytes))
            }
            None => "not complete".to_owned(),
        }
    }

    fn ingest_lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("size", bytes(self.virtual_bytes))];
        if let Some(ingest) = self.ingest {
            lines.extend(lines_of(ingest));
        }
        if !self.labels.is_empty() {
            lines.push(("labels", self.labels_text()));
        }
        if let Some(group) = self.group {
            lines.push(("group", group.to_owned()));
        }
        lines
    }

    fn labels_text(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.join(" ")
    }

    fn holds_text(&self) -> String {
        let holds: Vec<_> = self.holds.iter().map(String::as_str).collect();
        holds.join(", ")
    }
}

/// The report of an ingest, for people.
pub(crate) fn lines_of(ingest: &IngestReport) -> Vec<(&'static str, String)> {
    let IngestReport { chunks, new_chunks, delta_chunks, .. } = ingest;
    let rate = bytes(ingest.throughput_bytes_per_s as u64);
    let mut lines = vec![
        ("data", format!("{}, and {} of zeros", bytes(ingest.data_bytes), bytes(ingest.zero_bytes))),
        ("chunks", format!("{chunks}, {new_chunks} of them new ({delta_chunks} as deltas)")),
        ("new data", bytes(ingest.new_bytes)),
        ("added", format!("{} on disk", bytes(ingest.stored_bytes))),
        ("time", format!("{}, {rate}/s", seconds(ingest.elapsed_s))),
    ];
    if let Some(parent) = &ingest.parent {
        lines.push(("based on", parent.clone()));
    }
    lines
}
