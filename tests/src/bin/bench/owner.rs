//! Ingests through a store's owner, compared with the same in one process.
//!
//! There is one store at a time, and who comes first changes from round to round: whoever writes while the files of
//! another are still in memory finds less there that the machine has used before, and is slower by up to a third.

use std::path::Path;

use anyhow::Result;

use crate::files::warm;
use crate::run::{Bench, Samples, remove_store};
use crate::table::{Row, Target};

/// The images ingested, one after another.
const STAGES: [(&str, &str); 3] =
    [("first ingest", "day1.raw"), ("same image again", "day1.raw"), ("next day", "day2.raw")];

/// How a store is opened.
#[derive(Clone, Copy)]
enum How {
    Here,
    ThroughOwner,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::ThroughOwner => "through the owner",
        }
    }
}

/// Each round has both ways twice.
pub(crate) fn owner(bench: &mut Bench) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    for round in 0..bench.runs {
        eprintln!("owner, round {}", round + 1);
        let (one, other) = if round % 2 == 0 { (How::Here, How::ThroughOwner) } else { (How::ThroughOwner, How::Here) };
        for how in [one, other, other, one] {
            ingest_all(bench, &mut samples, how)?;
        }
    }
    let row = |(stage, _)| {
        let here = samples.median(stage, How::Here.name());
        let row = Row::new(
            format!("{stage} through the owner, part of in this process"),
            samples.median(stage, How::ThroughOwner.name()),
            "s",
        );
        row.part_of(here).target(Target::AtMost(1.1))
    };
    Ok(STAGES.into_iter().map(row).collect())
}

fn ingest_all(bench: &mut Bench, samples: &mut Samples, how: How) -> Result<()> {
    let store = bench.new_store("owner")?;
    if let How::ThroughOwner = how {
        // Starts the owner.
        bench.vmstore_through_owner(&store, "stats", [""; 0])?;
    }
    for (night, (stage, image)) in STAGES.into_iter().enumerate() {
        let source = bench.images.join(image);
        warm(&source)?;
        samples.add(stage, how.name(), ingest(bench, how, &store, &source, night + 1)?);
    }
    remove_store(&store)
}

fn ingest(bench: &mut Bench, how: How, store: &Path, source: &Path, night: usize) -> Result<f64> {
    let time = format!("2026010{night}T020000Z");
    let sample = match how {
        How::Here => bench.ingest(store, source, &time)?,
        How::ThroughOwner => bench.ingest_through_owner(store, source, &time)?,
    };
    Ok(sample.elapsed_s)
}
