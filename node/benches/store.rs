//! What a store costs: one insert, one get, and group commit with 64 writers that wait for durability.
//!
//! `cargo bench -p quorate-node --bench store`. Group commit measures the disk as much as the code: put `TMPDIR` on the disk
//! in question.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate_node::store::{Committer, Durability, Executor, MemoryStore, SledOptions, Store, Tree, open};
use quorate_wire::ids::{ClusterId, NodeId};
use quorate_wire::random::Random;
use tokio::runtime::Runtime;

const KEYS: u64 = 20_000;
const VALUE: [u8; 1024] = [7; 1024];
const WAITERS: u64 = 64;

fn engines(dir: &Path) -> [(&'static str, Arc<dyn Store>); 2] {
    let node = NodeId::new("bench").expect("legal");
    let opened = open(dir, ClusterId(1), node, &Random::from_os(), &SledOptions::default()).expect("a new directory");
    [("sled", opened.store), ("memory", Arc::new(MemoryStore::new()))]
}

/// Keys as the replica makes them: a hash in front, so that neighbours in time are no neighbours on disk.
fn key(i: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&(i % KEYS).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key[8..].copy_from_slice(&(i % KEYS).to_be_bytes());
    key
}

fn single(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, store) in engines(dir.path()) {
        for i in 0..KEYS {
            store.insert(Tree::Data, &key(i), &VALUE).expect("room");
        }
        let mut i = 0u64;
        let mut value = VALUE;
        c.bench_function(&format!("insert 1 KiB/{name}"), |b| {
            b.iter(|| {
                i += 1;
                // sled skips a write of what is there already.
                value[..8].copy_from_slice(&i.to_be_bytes());
                store.insert(Tree::Data, &key(i), &value).expect("room");
            });
        });
        c.bench_function(&format!("get 1 KiB/{name}"), |b| {
            b.iter(|| {
                i += 1;
                store.get(Tree::Data, &key(i)).expect("readable").expect("there")
            });
        });
        c.bench_function(&format!("scan 100 of 1 KiB/{name}"), |b| {
            b.iter(|| {
                i += 1;
                store.scan(Tree::Data, &key(i), None, 100, usize::MAX).expect("readable").len()
            });
        });
    }
}

fn group_commit(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("64 durable inserts of 1 KiB");
    group.throughput(Throughput::Elements(WAITERS)).sample_size(20).measurement_time(Duration::from_secs(5));
    let dir = tempfile::tempdir().expect("a directory");
    for (name, store) in engines(dir.path()) {
        let executor = Executor::threads(2);
        let fatal = Arc::new(|reason: String| panic!("{reason}"));
        let committer = runtime.block_on(async {
            Committer::start(Arc::clone(&store), executor.clone(), Durability::Group, Duration::from_secs(1), fatal)
        });
        let mut round = 0u64;
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                round += 1;
                runtime.block_on(async {
                    let waiters: Vec<_> = (0..WAITERS)
                        .map(|waiter| {
                            let (store, executor, committer) =
                                (Arc::clone(&store), executor.clone(), committer.clone());
                            tokio::spawn(async move {
                                let mut value = VALUE.to_vec();
                                value[..8].copy_from_slice(&round.to_be_bytes());
                                let key = key(round * WAITERS + waiter);
                                executor.run(move || store.insert(Tree::Data, &key, &value)).await.expect("room");
                                committer.ticket().durable().await.expect("synced")
                            })
                        })
                        .collect();
                    for waiter in waiters {
                        assert!(waiter.await.expect("no panic"));
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, single, group_commit);
criterion_main!(benches);
