//! Resources of processes and stores, sampled every few seconds.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::{Mounted, Serving};

use crate::{MOUNTS, SITES, Soak};

/// Samples in a run that is long enough for one every second.
const SAMPLES: u32 = 400;

/// Values over time that are drawn and judged together.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) series: Vec<Series>,
}

/// The quantity measured, which decides how much it may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In megabytes.
    Memory,
    Descriptors,
    Threads,
    /// In megabytes.
    Store,
    /// In megabytes.
    Index,
}

/// One line: seconds since the beginning, and a value.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// All that was looked at.
pub(crate) struct Samples {
    processes: Vec<(String, u32)>,
    panels: Vec<Panel>,
}

/// How long to wait from one sample to the next.
pub(crate) fn every(duration: Duration) -> Duration {
    (duration / SAMPLES).clamp(Duration::from_secs(1), Duration::from_secs(10))
}

impl Samples {
    pub(crate) fn new(owners: &[Serving], mounts: &[Mounted]) -> Self {
        let owners = owners.iter().zip(SITES).map(|(owner, site)| (format!("{site} owner"), owner.pid()));
        let sites =
            SITES.iter().zip(MOUNTS).flat_map(|(site, count)| (0..count).map(move |n| format!("{site} vmfs {n}")));
        let processes: Vec<_> = owners.chain(sites.zip(mounts.iter().map(Mounted::pid))).collect();
        let lines = |names: &[String]| -> Vec<_> {
            names.iter().map(|name| Series { name: name.clone(), points: Vec::new() }).collect()
        };
        let (names, sites) =
            (processes.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), SITES.map(str::to_owned));
        let panel = |title, kind, series| Panel { title, kind, series };
        let panels = vec![
            panel("resident memory of each process, MB", Kind::Memory, lines(&names)),
            panel("open descriptors", Kind::Descriptors, lines(&names)),
            panel("threads", Kind::Threads, lines(&names)),
            panel("packs, MB", Kind::Store, lines(&sites)),
            panel("index, MB", Kind::Index, lines(&sites)),
        ];
        Self { processes, panels }
    }

    /// Looks at all of them.
    pub(crate) fn take(&mut self, soak: &Soak) {
        let at_s = soak.started.elapsed().as_secs_f64();
        let mut values: [Vec<f64>; 5] = Default::default();
        for (name, pid) in &self.processes {
            let Some(process) = Process::look(*pid) else {
                soak.fail(format!("{name} has ended"));
                return;
            };
            values[0].push(process.resident_bytes as f64 / 1e6);
            values[1].push(process.descriptors as f64);
            values[2].push(process.threads as f64);
        }
        for store in &soak.stores {
            values[3].push(store.packs_bytes() as f64 / 1e6);
            values[4].push(bytes_in(&store.store().join("index")) as f64 / 1e6);
        }
        for (panel, values) in self.panels.iter_mut().zip(values) {
            for (series, value) in panel.series.iter_mut().zip(values) {
                series.points.push((at_s, value));
            }
        }
    }

    /// The samples, and the size of the first store's snapshots.
    pub(crate) fn panels(&self, soak: &Soak) -> Vec<Panel> {
        let mut panels = self.panels.clone();
        let collected = soak.collected.lock().unwrap();
        let points = collected.iter().map(|collected| (collected.at_s, collected.live_bytes as f64 / 1e6)).collect();
        let packs = panels.iter_mut().find(|panel| panel.kind == Kind::Store).expect("it is one of them");
        packs.series.push(Series { name: "first, its plain bytes".to_owned(), points });
        panels
    }

    /// The samples.
    pub(crate) fn seen(&self) -> &[Panel] {
        &self.panels
    }
}

/// The resources of a process.
struct Process {
    resident_bytes: u64,
    descriptors: usize,
    threads: u64,
}

impl Process {
    /// None, if it has ended.
    fn look(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let value = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self { resident_bytes: value("VmRSS:")? * 1024, descriptors, threads: value("Threads:")? })
    }
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap();
    // A file that is removed meanwhile counts as nothing.
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}
