//! `vmstore list`: the snapshots that there are.

use chunkstore::catalog::label::{self, Label};
use chunkstore::catalog::{Listed, Snapshot};
use chunkstore::name::ImageName;
use clap::Args;
use serde_json::{Value, json};

use super::resolve;
use crate::context::Context;
use crate::failure::{self, Exit, Result};
use crate::output::table;
use crate::snapshot_view::SnapshotView;

/// List snapshots, sorted by image and time; works while the store is in use
///
/// DATA is what is not zeros, ADDED what ingesting it added to the store. An entry that can't be read is listed as
/// such, and gives exit code 3.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this image's
    image: Option<ImageName>,
    /// Only those with this label; with several, those that have all of them
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label::parse)]
    labels: Vec<Label>,
}

impl List {
    pub(crate) fn run(&self, context: &Context) -> Result<Exit> {
        let (_, catalog) = context.catalog()?;
        if let Some(image) = &self.image {
            resolve::image(&catalog, image)?;
        }
        let mut listed = catalog.list(self.image.as_ref())?;
        // Nobody knows which labels an unreadable one has.
        listed.retain(|listed| listed.snapshot.as_ref().map_or(true, |snapshot| self.is_wanted(snapshot)));
        let json: Vec<Value> = listed.iter().map(to_json).collect();
        context.output().result(&json, || to_table(&listed))?;
        Ok(report_unreadable(&listed))
    }

    fn is_wanted(&self, snapshot: &Snapshot) -> bool {
        snapshot.entry().label_matches(&self.labels)
    }
}

fn to_json(listed: &Listed) -> Value {
    match &listed.snapshot {
        Ok(snapshot) => json!(SnapshotView::new(snapshot)),
        Err(error) => json!({
            "image": listed.name.image,
            "snapshot": listed.name.to_string(),
            "time": listed.name.time,
            "error": error.to_string(),
        }),
    }
}

fn to_table(listed: &[Listed]) -> String {
    let rows = listed.iter().map(|listed| match &listed.snapshot {
        Ok(snapshot) => SnapshotView::new(snapshot).row(),
        Err(_) => [listed.name.to_string().as_str(), "unreadable", "", "", "", ""].map(str::to_owned),
    });
    table(["SNAPSHOT", "SIZE", "DATA", "ADDED", "LABELS", "HELD"], &[1, 2, 3], rows.collect())
}

/// Names what can't be read; the first of them decides the exit code.
fn report_unreadable(listed: &[Listed]) -> Exit {
    let errors: Vec<_> = listed.iter().filter_map(|listed| listed.snapshot.as_ref().err()).collect();
    for error in &errors {
        tracing::error!("{error}");
    }
    errors.first().map_or(Exit::Done, |error| failure::exit_of(error))
}
