//! Entropy and clocks are taken over also in a program that merely links the library, where the symbols come from an archive.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_sim::interpose;
use rand::Rng;
use ring::rand::SecureRandom;

#[allow(clippy::disallowed_methods, reason = "these are what is being tested")]
fn listen(seed: u64) -> (u64, u64, [u8; 16], Duration) {
    thread::spawn(move || {
        let _guard = interpose::enter(seed);
        let mut ring = [0; 16];
        ring::rand::SystemRandom::new().fill(&mut ring).expect("entropy");
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        (RandomState::new().hash_one(7), rand::make_rng::<rand::rngs::StdRng>().next_u64(), ring, wall)
    })
    .join()
    .expect("no panic")
}

#[test]
fn a_seed_decides_every_source() {
    let (one, again, two) = (listen(1), listen(1), listen(2));
    assert_eq!(one, again);
    assert_eq!(one.3, Duration::from_secs(interpose::EPOCH_SECS));
    assert_ne!(one.0, two.0);
    assert_ne!(one.1, two.1);
    assert_ne!(one.2, two.2);
}
