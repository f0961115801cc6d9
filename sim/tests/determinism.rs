//! A seed is a complete bug report only if it always tells the same: alone or in a batch, in any process.

use std::collections::BTreeMap;
use std::process::Command;

const SEEDS: u64 = 20;

fn sim(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate-sim")).args(arguments).output().expect("it starts");
    // 1 is a violation, which must be reproducible as well.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The hashes of all seeds as one process finds them that runs several at once.
fn batch() -> BTreeMap<u64, String> {
    let seeds = format!("0..{SEEDS}");
    let text = sim(&["swarm", "--seeds", &seeds, "--jobs", "3", "--hashes"]);
    let pairs = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, hash)| hash.len() == 32);
    pairs.filter_map(|(seed, hash)| Some((seed.parse().ok()?, hash.to_owned()))).collect()
}

#[test]
fn every_seed_gives_the_same_trace_in_a_batch_and_alone() {
    let batch = batch();
    assert_eq!(batch.len() as u64, SEEDS);
    let next = std::sync::atomic::AtomicU64::new(0);
    let parted = std::thread::scope(|scope| {
        let alone = || {
            let mut parted = Vec::new();
            loop {
                let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if seed >= SEEDS {
                    return parted;
                }
                let text = sim(&["run", "--seed", &seed.to_string()]);
                let hash = text.trim_end().rsplit(' ').next().expect("it ends with the hash").to_owned();
                if batch[&seed] != hash {
                    parted.push((seed, batch[&seed].clone(), hash));
                }
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(alone)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(parted.is_empty(), "compare two `quorate-sim run --seed N --lines FILE` of: {parted:?}");
    let different: std::collections::BTreeSet<_> = batch.values().collect();
    assert_eq!(different.len() as u64, SEEDS, "every seed lives a life of its own");
}

#[test]
fn a_run_prints_the_same_bytes() {
    let run = || sim(&["run", "--seed", "7"]);
    assert_eq!(run(), run());
}
