//! The one source of randomness that a client or a node draws from: the system's entropy, or a seed.

use std::fmt;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A shared random generator. Clones draw from the same sequence; [`fork`](Self::fork) starts one of its own.
#[derive(Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded with the system's entropy.
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The same numbers for the same seed: for simulations and tests.
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A generator of its own, seeded from this one.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_seed(self.array()))))
    }

    /// 64 random bits.
    pub fn u64(&self) -> u64 {
        self.0.lock().expect("no panic while the generator is locked").next_u64()
    }

    /// 128 random bits.
    pub fn u128(&self) -> u128 {
        u128::from_be_bytes(self.array())
    }

    /// An unbiased number below `bound` (which must not be 0).
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Fills a buffer.
    pub fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().expect("no panic while the generator is locked").fill_bytes(buffer);
    }

    /// An array of random bytes.
    pub fn array<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
