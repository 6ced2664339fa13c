//! `vmstore list`: lists snapshots.

use chunkstore::catalog::label::{self, Label};
use chunkstore::catalog::{ImageName, Listed, Snapshot, SnapshotTime};
use clap::Args;
use serde::Serialize;

use super::resolve;
use crate::connector::Connector;
use crate::failure::{self, Exit, Result};
use crate::snapshot_view::SnapshotView;
use crate::terminal::Terminal;
use crate::terminal::output::table;

/// List snapshots, sorted by image and time; works while the store is in use
///
/// DATA is the size without zeros, ADDED what the ingest added to the store. An unreadable entry is listed as such, and
/// the exit code is then 3.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// List only snapshots of this image
    image: Option<ImageName>,
    /// List only snapshots with this label; may be repeated, and all must match
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label::parse)]
    labels: Vec<Label>,
}

impl List {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let (_, catalog) = connector.catalog()?;
        if let Some(image) = &self.image {
            resolve::image(&catalog, image)?;
        }
        let mut listed = catalog.list(self.image.as_ref())?;
        // The labels of an unreadable snapshot are unknown.
        listed.retain(|listed| listed.snapshot.as_ref().map_or(true, |snapshot| self.is_wanted(snapshot)));
        let json: Vec<Line<'_>> = listed.iter().map(Line::new).collect();
        terminal.result(&json, || to_table(&listed))?;
        Ok(report_unreadable(&listed))
    }

    fn is_wanted(&self, snapshot: &Snapshot) -> bool {
        snapshot.entry().label_matches(&self.labels)
    }
}

/// An element of the JSON array.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Snapshot(Box<SnapshotView<'a>>),
    Unreadable { image: &'a ImageName, snapshot: String, time: SnapshotTime, error: String },
}

impl<'a> Line<'a> {
    fn new(Listed { name, snapshot }: &'a Listed) -> Self {
        match snapshot {
            Ok(snapshot) => Self::Snapshot(Box::new(SnapshotView::new(snapshot))),
            Err(error) => {
                let (snapshot, error) = (name.to_string(), error.to_string());
                Self::Unreadable { image: &name.image, snapshot, time: name.time, error }
            }
        }
    }
}

fn to_table(listed: &[Listed]) -> String {
    let rows = listed.iter().map(|listed| match &listed.snapshot {
        Ok(snapshot) => SnapshotView::new(snapshot).row(),
        Err(_) => [listed.name.to_string().as_str(), "unreadable", "", "", "", "", ""].map(str::to_owned),
    });
    let mut rows: Vec<[String; 7]> = rows.collect();
    if rows.iter().all(|row| row[PARTIAL].is_empty()) {
        let without = |[name, size, data, added, labels, _, held]: [String; 7]| [name, size, data, added, labels, held];
        return table(
            ["SNAPSHOT", "SIZE", "DATA", "ADDED", "LABELS", "HELD"],
            &[1, 2, 3],
            rows.drain(..).map(without).collect(),
        );
    }
    table(["SNAPSHOT", "SIZE", "DATA", "ADDED", "LABELS", "HERE", "HELD"], &[1, 2, 3], rows)
}

/// The column that is shown only if something is in it.
const PARTIAL: usize = 5;

/// Logs the unreadable snapshots; the first decides the exit code.
fn report_unreadable(listed: &[Listed]) -> Exit {
    let errors: Vec<_> = listed.iter().filter_map(|listed| listed.snapshot.as_ref().err()).collect();
    for error in &errors {
        tracing::error!("{error}");
    }
    errors.first().map_or(Exit::Done, |error| failure::exit_of(error))
}
