//! The soak, for as long as an attack lasts: see `tests/src/bin/soak`.

use std::process::Command;

use tests::torture::Torture;

/// In the short form.
const SECONDS: u64 = 25;

#[test]
fn sites_stay_sound_and_small_through_simulated_nights() {
    let torture = Torture::begin("soak");
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let picture = concat!(env!("CARGO_TARGET_TMPDIR"), "/soak.svg");
    let (seconds, seed) = (torture.seconds().unwrap_or(SECONDS).to_string(), torture.seed().to_string());
    let mut soak = Command::new(env!("CARGO_BIN_EXE_soak"));
    soak.args(["--seconds", &seconds, "--seed", &seed, "--picture", picture, "--work"]).arg(scratch.path());
    let status = soak.status().unwrap();
    assert!(status.success(), "{soak:?} ended with {status}");
}
