//! What a record costs: minting, merging, its bytes, and a client's context.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use quorate_core::context_keys::ContextKeys;
use quorate_core::mint::{self, Minter};
use quorate_core::record::Record;
use quorate_core::version::{Actor, Context};
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, NodeId, OpId};

/// A record that three coordinators have written to, with so many siblings of 1 KiB.
fn record(siblings: u128) -> (Record, Minter) {
    let mut minters = ["n1", "n2", "n3"]
        .map(|name| Minter::new(Actor { node: NodeId::new(name).expect("a legal name"), incarnation: 1 << 60 }));
    let mut record = Record::default();
    for op in 0..siblings.max(3) {
        let cause = if op < 3 { record.context.clone() } else { Context::new() };
        let dot = minters[op as usize % 3].next_dot();
        record = mint::mint(record, dot, OpId(op), Some(value()), &cause).record;
    }
    let [minter, ..] = minters;
    (record, minter)
}

fn value() -> Blob {
    Blob(vec![7; 1024].into())
}

fn benches(c: &mut Criterion) {
    for siblings in [1, 10] {
        let (record, mut minter) = record(siblings);
        let dot = minter.next_dot();
        let (cause, new) = (record.context.clone(), value());
        c.bench_function(&format!("mint over {siblings} siblings"), |b| {
            let input = || (record.clone(), new.clone());
            b.iter_batched(
                input,
                |(record, new)| mint::mint(record, dot, OpId(99), Some(new), &cause),
                BatchSize::SmallInput,
            );
        });
        let newer = mint::mint(record.clone(), dot, OpId(99), Some(value()), &cause).record;
        c.bench_function(&format!("merge a newer record over {siblings} siblings"), |b| {
            let merge = |mut record: Record| mint::merge(&mut record, &newer, &|_| false);
            b.iter_batched(|| record.clone(), merge, BatchSize::SmallInput);
        });
        c.bench_function(&format!("merge an equal record of {siblings} siblings"), |b| {
            let mut same = record.clone();
            b.iter(|| mint::merge(&mut same, black_box(&record), &|_| false));
        });
        let bytes = record.encode();
        c.bench_function(&format!("encode {siblings} x 1 KiB"), |b| b.iter(|| black_box(&record).encode()));
        c.bench_function(&format!("decode {siblings} x 1 KiB"), |b| b.iter(|| Record::decode(black_box(&bytes))));
        c.bench_function(&format!("digest of {siblings} siblings"), |b| b.iter(|| black_box(&record).digest(b"key")));
    }
    let (record, _) = record(1);
    let keys = ContextKeys::first([7; 32]);
    let sealed = keys.seal(&record.context, ClusterId(1), b"key");
    c.bench_function("seal a context of 3 actors", |b| {
        b.iter(|| keys.seal(black_box(&record.context), ClusterId(1), b"key"))
    });
    c.bench_function("open a context of 3 actors", |b| b.iter(|| keys.open(black_box(&sealed), ClusterId(1), b"key")));
}

criterion_group!(group, benches);
criterion_main!(group);
