//! Writes to a store under load until it is killed, and says which writes were acknowledged: the victim of the kill -9
//! laboratory (`kill_nine.rs`).
//!
//! `store_load DIR always|group WRITERS`: each writer owns its keys, so that the versions of a key are written one after the
//! other. A line `KEY VERSION` on stdout follows each durable ticket. A key's version is continued from what is stored.

use std::io::Write;
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use quorate_node::store::{Committer, Durability, Executor, SledOptions, Tree, open};
use quorate_tests::kill_nine::{CLUSTER, KEYS_PER_WRITER, decode, encode, key, node};
use quorate_wire::random::Random;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().expect("DIR"));
    let durability = match arguments.next().as_deref() {
        Some("always") => Durability::Always,
        Some("group") => Durability::Group,
        other => panic!("always or group, not {other:?}"),
    };
    let writers: u32 = arguments.next().expect("WRITERS").parse().expect("a number of writers");

    // Small pages of memory and frequent stamps make the kill meet evictions and stamps as well.
    let options = SledOptions { cache_bytes: 8 << 20, stamp_bytes: 4 << 20 };
    let random = Random::from_os();
    let opened = open(&dir, CLUSTER, node(), &random, &options).expect("the store opens");
    assert_eq!(opened.quarantined, None);
    let store = opened.store;
    let executor = Executor::threads(4);
    let fatal = Arc::new(|reason: String| {
        let _ = writeln!(std::io::stderr(), "{reason}");
        exit(1);
    });
    let committer =
        Committer::start(Arc::clone(&store), executor.clone(), durability, Duration::from_millis(100), fatal);

    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (store, executor, committer) = (Arc::clone(&store), executor.clone(), committer.clone());
            let random = random.fork();
            tokio::spawn(async move {
                let mut versions = vec![0; KEYS_PER_WRITER as usize];
                for (number, version) in versions.iter_mut().enumerate() {
                    let key = key(writer, number as u32);
                    if let Some(value) = store.get(Tree::Data, key.as_bytes()).expect("readable") {
                        *version = decode(&key, &value).expect("whole");
                    }
                }
                loop {
                    let number = random.below(u64::from(KEYS_PER_WRITER)) as usize;
                    versions[number] += 1;
                    let (key, version) = (key(writer, number as u32), versions[number]);
                    let value = encode(&key, version);
                    let (insert_into, insert_key) = (Arc::clone(&store), key.clone());
                    executor
                        .run(move || insert_into.insert(Tree::Data, insert_key.as_bytes(), &value))
                        .await
                        .expect("inserted");
                    if committer.ticket().durable().await.expect("synced") {
                        // One call, one line: lines of several threads do not mix.
                        std::io::stdout()
                            .write_all(format!("{key} {version}\n").as_bytes())
                            .expect("the laboratory reads");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        let () = task.await.expect("writers write until they are killed");
    }
}
