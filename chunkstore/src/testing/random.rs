//! Random numbers from a seed: the one generator of all tests and benchmarks.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// Names the seed of a run to repeat.
const SEED_VARIABLE: &str = "VMSTORE_TEST_SEED";

/// Random numbers from a seed (xorshift64, Marsaglia 2003).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed always gives the same numbers.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds begin far apart, and none begins with 0, which has no successor but itself.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Seeded with [`seed_of_run`], which is printed.
    pub fn from_clock() -> Self {
        let seed = seed_of_run();
        println!("seed: {SEED_VARIABLE}={seed}");
        Self::new(seed)
    }

    /// Any number but 0.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// A number from 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        self.below(1 << 32) as f64 / (1_u64 << 32) as f64
    }

    /// `true` in `percent` of a hundred cases.
    pub fn happens(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }

    /// Bytes that do not compress.
    pub fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes.div_ceil(8)).flat_map(|_| self.number().to_le_bytes()).take(bytes).collect()
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    Rng::new(seed).noise(bytes)
}

/// The seed of this run: that of a run to repeat, or one from the clock.
pub fn seed_of_run() -> u64 {
    repeated_seed().unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 & 0xffff_ffff
    })
}

/// The seed of a run to repeat, from the environment variable `VMSTORE_TEST_SEED`.
pub fn repeated_seed() -> Option<u64> {
    env::var(SEED_VARIABLE).ok().map(|text| text.parse().unwrap())
}
