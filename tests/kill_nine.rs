//! The kill -9 laboratory: a real process writes to a real store, is killed at a random moment, and everything that it had
//! acknowledged has to be there.
//!
//! Five rounds for each durability; `QUORATE_KILL_ROUNDS=50` for the long run, `QUORATE_KILL_SEED` for other moments.
//! A kill takes the process, not the machine: it shows that sled's log is recovered and that acknowledgements wait for the
//! flush. What an fsync is for is shown by the simulator's disk only.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use quorate_node::store::{SledOptions, Tree, open};
use quorate_tests::kill_nine::{CLUSTER, KEYS_PER_WRITER, decode, key, node};
use quorate_wire::random::Random;

#[test]
fn acknowledged_writes_survive_kill_nine_with_group_commit() {
    laboratory("group");
}

#[test]
fn acknowledged_writes_survive_kill_nine_with_a_sync_for_each() {
    laboratory("always");
}

const WRITERS: u32 = 16;

fn laboratory(durability: &str) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let (rounds, seed) = (number("QUORATE_KILL_ROUNDS", 5), number("QUORATE_KILL_SEED", 1));
    let random = Random::from_seed(seed);
    let dir = tempfile::tempdir().expect("a directory");
    let mut stored = BTreeMap::new();
    let mut total = 0;
    for round in 1..=rounds {
        let context = format!("{durability}, seed {seed}, round {round} of {rounds}");
        let acknowledged = run_and_kill(dir.path(), durability, &random);
        total += acknowledged.values().map(|(first, last)| last - first + 1).sum::<u64>();
        check(dir.path(), &acknowledged, &mut stored, &context);
    }
    let summary = format!("{durability}: {total} acknowledged writes in {rounds} rounds, all there\n");
    std::io::stdout().write_all(summary.as_bytes()).expect("a test has a stdout");
    assert!(total > rounds * 10, "{total} acknowledged writes in {rounds} rounds are no load");
}

/// First and last acknowledged version of each key.
type Acknowledged = BTreeMap<String, (u64, u64)>;

fn run_and_kill(dir: &Path, durability: &str, random: &Random) -> Acknowledged {
    let mut child = Command::new(env!("CARGO_BIN_EXE_store_load"))
        .arg(dir)
        .args([durability, &WRITERS.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the load starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let reader = thread::spawn(move || {
        let mut acknowledged = Acknowledged::new();
        let mut line = String::new();
        loop {
            line.clear();
            // A line without its end was cut by the kill; whoever had sent it had the ticket, but it need not be whole.
            if lines.read_line(&mut line).expect("a pipe") == 0 || !line.ends_with('\n') {
                return acknowledged;
            }
            let (key, version) = line.trim_end().split_once(' ').expect("a key and a version");
            let version: u64 = version.parse().expect("a number");
            let entry = acknowledged.entry(key.to_owned()).or_insert((version, version));
            assert!(version == entry.0 || version == entry.1 + 1, "versions of {key} come in order");
            entry.1 = version;
            let _ = tell.try_send(());
        }
    });
    // Three in four kills come under load, the others while the store opens or soon after.
    if random.below(4) > 0 {
        told.recv_timeout(Duration::from_secs(60)).expect("the first acknowledgement comes");
    }
    thread::sleep(Duration::from_micros(random.below(600_000)));
    child.kill().expect("it still runs");
    let status = child.wait().expect("waited for");
    assert_eq!(status.code(), None, "it was killed and had not ended by itself: {status}");
    reader.join().expect("the lines were in order")
}

/// Opens what the killed process left, and compares each key with what was acknowledged.
fn check(dir: &Path, acknowledged: &Acknowledged, stored: &mut BTreeMap<String, u64>, context: &str) {
    let opened =
        open(dir, CLUSTER, node(), &Random::from_os(), &SledOptions::default()).expect("it opens after a kill");
    assert_eq!(opened.quarantined, None, "{context}");
    for writer in 0..WRITERS {
        for number in 0..KEYS_PER_WRITER {
            let key = key(writer, number);
            let value = opened.store.get(Tree::Data, key.as_bytes()).unwrap_or_else(|e| panic!("{context}: {e}"));
            let found = value.map_or(0, |value| decode(&key, &value).unwrap_or_else(|e| panic!("{context}: {e}")));
            let before = stored.get(&key).copied().unwrap_or(0);
            let least = acknowledged.get(&key).map_or(before, |(_, last)| *last);
            assert!(found >= least, "{context}: {key} is at version {found}, and {least} was acknowledged");
            assert!(found <= least + 1, "{context}: {key} is at version {found}, written by nobody after {least}");
            if let Some((first, _)) = acknowledged.get(&key) {
                assert_eq!(*first, before + 1, "{context}: the load went on where {key} was");
            }
            stored.insert(key, found);
        }
    }
    if opened.identity.boot.is_multiple_of(2) {
        // Every other round starts from a clean stop.
        opened.store.close().expect("closed");
    }
}
