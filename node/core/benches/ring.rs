//! What a ring costs to build and to ask.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use quorate_core::ring::{Ring, RingMember};
use quorate_wire::Key;
use quorate_wire::ids::NodeId;

/// Members of weight 1, dealt to this many zones.
fn members(count: usize, zones: usize) -> Vec<RingMember> {
    let member = |i: usize| {
        let node = NodeId::new(&format!("node-{i}")).expect("a legal name");
        RingMember { node, token_seed: node, zone: format!("zone-{}", i % zones), weight: 1 }
    };
    (0..count).map(member).collect()
}

fn ring(criterion: &mut Criterion) {
    for (count, zones) in [(5, 1), (100, 1), (100, 3), (100, 7)] {
        let members = members(count, zones);
        criterion.bench_function(&format!("ring/build {count} members, {zones} zones, Q=1024"), |bencher| {
            bencher.iter(|| Ring::build(black_box(&members), 3, 1024).expect("builds"));
        });
    }
    let ring = Ring::build(&members(100, 3), 3, 1024).expect("builds");
    let keys: Vec<Key> = (0..1024).map(|i| Key::plain(format!("some/key/{i}"))).collect();
    let mut next = keys.iter().cycle();
    criterion.bench_function("ring/primaries of a key", |bencher| {
        bencher.iter(|| {
            let key = next.next().expect("a cycle");
            black_box(ring.primaries(ring.partition_of(key)));
        });
    });
    criterion.bench_function("ring/preference list of a key, 100 members", |bencher| {
        bencher.iter(|| {
            let key = next.next().expect("a cycle");
            black_box(ring.preference_list(ring.partition_of(key)))
        });
    });
}

criterion_group!(benches, ring);
criterion_main!(benches);
