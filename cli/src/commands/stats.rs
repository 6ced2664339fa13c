//! `vmstore stats`: what the store holds, and what each image costs.

use std::num::NonZeroUsize;

use chunkstore::maintenance::stats::{self, ImageStats};
use clap::Args;
use replicate::rpc::wire::Job;

use crate::connector::{self, Connector, Purpose};
use crate::failure::{Exit, Result};
use crate::terminal::output::{bytes, counted, fields, table};
use crate::terminal::{Terminal, Unit};

/// Show the size of the store, its savings, and the share of each image
///
/// LOGICAL is the size without deduplication and compression; ONLY ITS OWN is what no other image needs, and what
/// removing the image would free.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Threads to use [default: from config.toml, else one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Stats {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let stats = connector.with_store(Purpose::Use, |store| {
            let job = Job::Stats { threads: connector::threads(self.threads, store.config()) as u32 };
            Ok(terminal.watch("stats", Unit::Steps, |progress| store.run::<stats::Stats>(&job, progress))?)
        })?;
        terminal.result(&stats, || to_text(&stats))?;
        Ok(Exit::Done)
    }
}

/// The sizes for people.
pub(crate) fn to_text(stats: &stats::Stats) -> String {
    let lines = [
        ("holds", format!("{} of {}", counted(stats.snapshots, "snapshot"), counted(stats.images, "image"))),
        ("size", format!("{}, holes and zeros included", bytes(stats.virtual_bytes))),
        ("logical", bytes(stats.logical_bytes)),
        ("unique", format!("{} in {}", bytes(stats.unique_bytes), counted(stats.chunks, "chunk"))),
        ("stored", format!("{} in {}", bytes(stats.stored_bytes), counted(stats.packs, "pack"))),
        ("index", bytes(stats.index_bytes)),
        ("ratio", format!("{:.1}, logical to stored", stats.ratio)),
    ];
    let row = |image: &ImageStats| {
        let ImageStats { image, snapshots, logical_bytes, only_bytes } = image;
        [image.clone(), snapshots.to_string(), bytes(*logical_bytes), bytes(*only_bytes)]
    };
    let rows = stats.per_image.iter().map(row).collect();
    fields(&lines) + "\n" + &table(["IMAGE", "SNAPSHOTS", "LOGICAL", "ONLY ITS OWN"], &[1, 2, 3], rows)
}
