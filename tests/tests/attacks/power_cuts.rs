//! Power cuts at every change that a store makes to its files, with all kinds of what may have arrived on the disk by
//! then: what was acknowledged is there bit for bit, nothing else is half there, and gc leaves no garbage.
//!
//! A script is run once and recorded. From the recording come the states that a power cut after each change can leave,
//! each with the index as it was then, as it was earlier, or without one.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use chunkstore::storage::power_cut::{Arrived, Recorder, Recording};
use chunkstore::storage::{MemStorage, Storage};
use tempfile::TempDir;
use tests::images::Rng;
use tests::scripted::{Act, Effect, Expected, Far, IndexFiles, Worked, index_dir, new_storage, night};
use tests::torture::Torture;

/// States that are tried in the short form.
const SHORT_STATES: u64 = 1500;
/// Random states of each moment, in addition to the extremes.
const RANDOM_STATES: u64 = 6;
/// Threads that check states.
const CHECKERS: usize = 2;

/// The acts on a store.
#[derive(Clone, Debug)]
struct Script {
    /// Before the recording.
    prepared: Vec<Act>,
    /// Whether a record that no snapshot needs is damaged before the recording.
    damages: bool,
    recorded: Vec<Act>,
}

/// The index while a script ran: from which change on it was how.
type IndexVersions = Arc<Mutex<Vec<(usize, Arc<IndexFiles>)>>>;

/// A script that was run.
struct Run {
    script: Script,
    recording: Recording,
    index: Vec<(usize, Arc<IndexFiles>)>,
    before: Expected,
    /// The effects of each act, and between which changes of the recording it was done.
    done: Vec<(usize, usize, Vec<Effect>)>,
}

/// A state to be checked.
struct Case {
    changes: usize,
    arrived: Arrived,
    index: Option<Arc<IndexFiles>>,
    /// In words.
    index_is: &'static str,
    storage: MemStorage,
    order: u64,
}

fn fixed_scripts() -> Vec<Script> {
    let a = |day| night("a", day);
    let nights = |days: std::ops::Range<u32>| days.map(|day| Act::Ingest(night("a", day))).collect::<Vec<_>>();
    let script = |prepared: Vec<Act>, recorded: Vec<Act>| Script { prepared, damages: false, recorded };
    let many: Vec<Act> = (0..5).map(|n| Act::Ingest(night(["b", "c", "d", "e", "f"][n], 0))).collect();
    let small_packs = |then: Vec<Act>| script([nights(0..3), many.clone()].concat(), then);
    vec![
        script(vec![], nights(0..1)),
        script(nights(0..1), vec![Act::Ingest(a(1)), Act::Reopen, Act::Ingest(a(2))]),
        script(nights(0..1), vec![Act::Push("far0", 2)]),
        script(vec![], vec![Act::Push("far0", 1), Act::Prune("far0"), Act::Push("far0", 3)]),
        script(nights(0..3), vec![Act::Remove(a(1)), Act::Collect, Act::Ingest(a(1)), Act::Remove(a(0)), Act::Collect]),
        script(nights(0..4), vec![Act::Prune("a"), Act::Collect, Act::Collect]),
        small_packs(vec![Act::Collect]),
        small_packs(vec![Act::Remove(a(0)), Act::Remove(night("c", 0)), Act::Collect, Act::Reopen, Act::Ingest(a(3))]),
        script(nights(0..2), vec![Act::Remove(a(0)), Act::Reindex, Act::Ingest(a(2)), Act::Collect]),
        script(
            nights(0..2),
            vec![
                Act::Hold(a(0)),
                Act::BootOrder(a(0)),
                Act::Release(a(0)),
                Act::BootOrder(a(0)),
                Act::Hold(a(1)),
                Act::Remove(a(0)),
                Act::Collect,
            ],
        ),
        Script {
            prepared: vec![Act::Ingest(a(0)), Act::Ingest(night("b", 0)), Act::Remove(a(0))],
            damages: true,
            recorded: vec![Act::Verify, Act::Collect, Act::Ingest(a(0)), Act::Verify, Act::Collect],
        },
        script(nights(0..2), vec![Act::Hydrate("far1"), Act::Collect, Act::Push("far1", 1)]),
        script(nights(0..1), vec![Act::PushOverPart("far0"), Act::Collect]),
        script(
            nights(0..2),
            vec![Act::Crowd(vec![a(2), night("b", 0), night("c", 0)]), Act::Prune("a"), Act::Crowd(vec![a(3)])],
        ),
    ]
}

/// A script of acts that are possible in their order.
fn random_script(rng: &mut Rng) -> Script {
    const IMAGES: [&str; 4] = ["a", "b", "c", "d"];
    let mut there = Expected::default();
    let mut next_day = [0; IMAGES.len()];
    let mut acts = Vec::new();
    let acts_wanted = 4 + rng.below(12) as usize;
    while acts.len() < acts_wanted {
        let names: Vec<_> = there.must.keys().cloned().collect();
        let any = (!names.is_empty()).then(|| names[rng.below(names.len().max(1) as u64) as usize].clone());
        let free = any.clone().filter(|name| there.held.get(name) != Some(&true));
        let image = rng.below(IMAGES.len() as u64) as usize;
        let mut new_night = |image: usize| {
            next_day[image] += 1;
            night(IMAGES[image], next_day[image] - 1)
        };
        let is_held = |image: &str| there.held.iter().any(|(name, held)| *held && *name.image.to_string() == *image);
        let far = ["far0", "far1"][rng.below(2) as usize];
        let act = match (rng.below(20), any, free) {
            (0..=5, ..) => Act::Ingest(new_night(image)),
            (6, ..) => Act::Crowd(vec![new_night(image), new_night((image + 1) % IMAGES.len())]),
            (7 | 8, ..) => Act::Push(far, 1 + rng.below(3) as usize),
            (9, ..) if !there.must.keys().any(|name| name.image.to_string() == far) => Act::Hydrate(far),
            (10 | 11, _, Some(name)) => Act::Remove(name),
            (12, ..) if !is_held(IMAGES[image]) => Act::Prune(IMAGES[image]),
            (13..=15, ..) => Act::Collect,
            (16, ..) => [Act::Verify, Act::Reindex, Act::Reopen][rng.below(3) as usize].clone(),
            (17, Some(name), _) => Act::Hold(name),
            (18, Some(name), _) => Act::Release(name),
            (19, Some(name), _) => Act::BootOrder(name),
            _ => continue,
        };
        there.settle(&act.effects(&there.must));
        acts.push(act);
    }
    let recorded = acts.split_off(rng.below(acts.len() as u64) as usize);
    Script { prepared: acts, damages: false, recorded }
}

/// Notes the index if it is not as it was when it was last looked at.
fn note_index(versions: &IndexVersions, dir: &Path, changes: usize) {
    let mut versions = versions.lock().unwrap();
    let files = IndexFiles::of(dir);
    if versions.last().is_none_or(|(_, last)| **last != files) {
        versions.push((changes, Arc::new(files)));
    }
}

/// Flips a bit in the first record of the first pack.
fn damage(storage: &MemStorage) {
    let pack = format!("packs/{}", storage.list("packs").unwrap().files[0]);
    let file = storage.open(&pack).unwrap();
    let mut bytes = vec![0; file.len_bytes().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes[200] ^= 1;
    storage.overwrite(&pack, &bytes).unwrap();
}

fn run(script: Script, far: &Far) -> Run {
    let memory = new_storage();
    let mut before = Expected { is_damaged: script.damages, ..Expected::default() };
    let mut worked = Worked::open(index_dir(), Arc::new(memory.clone()), 1).unwrap();
    for act in &script.prepared {
        let effects = act.effects(&before.must);
        worked.run(act, far).unwrap_or_else(|error| panic!("{script:?}: {act:?}: {error}"));
        before.settle(&effects);
    }
    if script.damages {
        damage(&memory);
    }
    let dir = worked.close();
    let index = IndexVersions::default();
    note_index(&index, dir.path(), 0);
    let (path, versions) = (dir.path().to_path_buf(), Arc::clone(&index));
    let recorder = Recorder::new(&memory, move |changes| note_index(&versions, &path, changes)).unwrap();
    let mut worked = Worked::open(dir, Arc::new(recorder.clone()), 100).unwrap();
    let mut now = before.clone();
    let mut done = Vec::new();
    for act in &script.recorded {
        let effects = act.effects(&now.must);
        let began = recorder.changes();
        worked.run(act, far).unwrap_or_else(|error| panic!("{script:?}: {act:?}: {error}"));
        now.settle(&effects);
        done.push((began, recorder.changes(), effects));
    }
    note_index(&index, worked.dir(), recorder.changes());
    drop(worked);
    let index = index.lock().unwrap().clone();
    Run { script, recording: recorder.recording(), index, before, done }
}

impl Run {
    /// The work acknowledged after so many changes, and the work under way.
    fn expected(&self, changes: usize) -> Expected {
        let mut expected = self.before.clone();
        for (began, ended, effects) in &self.done {
            if *ended <= changes {
                expected.settle(effects);
            } else if *began < changes {
                expected.unsettle(effects);
            }
        }
        expected
    }

    /// The index as it was after so many changes, or an older one, or none. It is never ahead: packs are durable before
    /// it names them.
    fn choose_index(&self, changes: usize, rng: &mut Rng) -> (&'static str, Option<Arc<IndexFiles>>) {
        let known = self.index.iter().take_while(|(since, _)| *since <= changes).count();
        match rng.below(8) {
            0 => ("missing", None),
            1 | 2 => ("old", Some(Arc::clone(&self.index[rng.below(known as u64) as usize].1))),
            _ => ("right", Some(Arc::clone(&self.index[known - 1].1))),
        }
    }

    /// All states that are new among those `seen`.
    fn cases(&self, rng: &mut Rng, seen: &mut HashSet<[u8; 32]>) -> Vec<Case> {
        let extremes = [Arrived::NOTHING, Arrived::EVERYTHING, Arrived::NAMES, Arrived::CONTENT];
        let mut cases = Vec::new();
        for changes in 0..=self.recording.changes() {
            let random = (0..RANDOM_STATES).map(|_| Arrived {
                names_percent: [20, 50, 80, 100][rng.below(4) as usize],
                sectors_percent: [0, 30, 70, 95, 100][rng.below(5) as usize],
                seed: rng.number(),
            });
            for arrived in extremes.into_iter().chain(random.collect::<Vec<_>>()) {
                let storage = self.recording.power_cut(changes, arrived);
                let (index_is, index) = self.choose_index(changes, rng);
                let mut hasher = blake3::Hasher::new();
                hasher.update(&storage.fingerprint()).update(index_is.as_bytes());
                hasher.update(&index.as_deref().map_or([0; 32], IndexFiles::fingerprint));
                if seen.insert(*hasher.finalize().as_bytes()) {
                    cases.push(Case { changes, arrived, index, index_is, storage, order: rng.number() % 6 });
                }
            }
        }
        cases
    }

    fn check(&self, case: &Case, dir: &TempDir) {
        case.index.as_deref().unwrap_or(&IndexFiles::default()).put(dir.path());
        let mut expected = self.expected(case.changes);
        expected.index_is_old = case.index_is == "old";
        let context = || {
            let around = case.changes.saturating_sub(8)..(case.changes + 2).min(self.recording.changes());
            let around: Vec<_> = around.map(|at| format!("  {at}: {}", self.recording.describe(at))).collect();
            let Case { changes, arrived, index_is, order, .. } = case;
            let script = &self.script;
            format!(
                "{script:?}, a power cut after {changes} changes, {arrived:?}, index {index_is}, order {order};\n{}\n",
                around.join("\n")
            )
        };
        expected.check(dir.path(), &case.storage, case.order, &context);
    }

    fn check_all(&self, cases: &[Case]) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..CHECKERS {
                scope.spawn(|| {
                    let dir = index_dir();
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.check(case, &dir);
                    }
                });
            }
        });
    }
}

#[test]
fn a_power_cut_at_any_change_loses_nothing_acknowledged_and_leaves_nothing_half_done() {
    let torture = Torture::begin("power cuts");
    let far = Far::default();
    let mut seen = HashSet::new();
    let scripts = fixed_scripts();
    let mut tried = 0;
    let mut number = 0;
    while torture.goes_on(tried, SHORT_STATES) {
        let mut rng = torture.rng(number as u64);
        let script = scripts.get(number).cloned().unwrap_or_else(|| random_script(&mut rng));
        let run = run(script, &far);
        let mut cases = run.cases(&mut rng, &mut seen);
        if !torture.is_long() {
            let share = SHORT_STATES as usize / scripts.len() + 1;
            while cases.len() > share {
                cases.swap_remove(rng.below(cases.len() as u64) as usize);
            }
        }
        run.check_all(&cases);
        tried += cases.len() as u64;
        number += 1;
    }
    println!("{number} scripts");
    torture.end(tried, "states");
}
