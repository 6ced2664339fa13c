//! Writes to clones: fio, which verifies what it wrote; then the clone is committed as a night of its own, and thrown
//! away.

use std::ffi::OsStr;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tests::Mounted;
use tests::devices::tool;
use tests::images::Rng;

use crate::machine::{MIB, digests};
use crate::{Soak, nights};

/// Runs of fio on one clone.
const RUNS: u64 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// When clones are committed, in seconds after the night's snapshots.
const COMMITTED_AFTER_S: u64 = 3600;
const FIO: &str = "--name=soak --rw=randwrite --ioengine=psync --bsrange=512-64k --bs_unaligned=1 --io_size=4m --fsync=16 \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0";

/// The life of one clone of the newest snapshot of any machine.
pub(crate) fn write(soak: &Soak, mounted: &Mounted, number: usize, rng: &mut Rng) {
    let (store, name) = (&soak.stores[0], format!("clone{number}"));
    let snapshots: Vec<_> = store.snapshots().into_iter().filter(|snapshot| !snapshot.starts_with("clone")).collect();
    let newest = snapshots.iter().max_by_key(|snapshot| snapshot.split('@').nth(1).map(str::to_owned)).unwrap();
    store.run_vmfs(["clone", "create", &name, newest]);
    let disk = mounted.clone_file(&name);
    let size = format!("--size={}m", fs::metadata(&disk).unwrap().len() / MIB);
    let filename = format!("--filename={}", disk.display());
    for _ in 0..RUNS {
        let seed = format!("--randseed={}", rng.below(1 << 31));
        let args = FIO.split_whitespace().chain([filename.as_str(), &size, &seed]);
        tool("fio", &args.map(OsStr::new).collect::<Vec<_>>());
        soak.pause(PAUSE);
    }
    let commits = soak.commits.fetch_add(1, Ordering::SeqCst);
    let time = nights::time(soak.nights.load(Ordering::SeqCst), COMMITTED_AFTER_S + commits % 60_000);
    soak.digests().insert(format!("{name}@{time}"), Arc::new(digests(&disk)));
    store.run_vmfs(["clone", "commit", &name, "--image", &name, "--time", &time]);
    store.run_vmfs(["clone", "discard", &name]);
}
