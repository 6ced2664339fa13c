//! How long an attack on the store runs, and from which seed: short in CI, as long as told in `make torture`.

use std::time::{Duration, Instant};

use chunkstore::testing::{Rng, repeated_seed, seed_of_run};

/// Seconds for one attack in its long form.
const SECONDS_VARIABLE: &str = "VMSTORE_TORTURE_SECONDS";

/// Of short forms, so that they fail for a change and not by chance.
const SHORT_SEED: u64 = 1;

/// An attack that tries one case after another.
#[derive(Debug)]
pub struct Torture {
    name: &'static str,
    seed: u64,
    started: Instant,
    /// In the long form.
    duration: Option<Duration>,
}

impl Torture {
    /// Begins an attack, in its long form if `VMSTORE_TORTURE_SECONDS` is set, and from the seed in `VMSTORE_TEST_SEED`
    /// if that is set. Otherwise the short form always begins from the same one, the long form from another each time.
    /// Prints both.
    pub fn begin(name: &'static str) -> Self {
        let seconds = std::env::var(SECONDS_VARIABLE).ok().map(|text| text.parse().unwrap());
        let seed = if seconds.is_some() { seed_of_run() } else { repeated_seed().unwrap_or(SHORT_SEED) };
        let form = seconds.map_or("short".to_owned(), |seconds: u64| format!("{seconds} s"));
        println!("{name}: VMSTORE_TEST_SEED={seed}, {form}");
        Self { name, seed, started: Instant::now(), duration: seconds.map(Duration::from_secs) }
    }

    /// Whether this is the long form.
    pub fn is_long(&self) -> bool {
        self.duration.is_some()
    }

    /// The seed that repeats this run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How long the long form lasts.
    pub fn seconds(&self) -> Option<u64> {
        self.duration.map(|duration| duration.as_secs())
    }

    /// Whether to try another case: in the short form until `short` were tried, in the long form until its time is
    /// over, too.
    pub fn goes_on(&self, tried: u64, short: u64) -> bool {
        tried < short || self.duration.is_some_and(|duration| self.started.elapsed() < duration)
    }

    /// Random numbers for one case: the same for the same seed, whatever other cases took.
    pub fn rng(&self, case: u64) -> Rng {
        Rng::new(Rng::new(self.seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15)).number())
    }

    /// Prints what was tried. Failures have ended the test before.
    pub fn end(self, tried: u64, cases: &str) {
        let elapsed = self.started.elapsed().as_secs_f64();
        println!("{}: {tried} {cases} tried, 0 failed, {elapsed:.1} s, VMSTORE_TEST_SEED={}", self.name, self.seed);
    }
}
