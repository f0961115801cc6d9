//! Encoding and decoding of what every request costs: a put on its way to a node, a read's answer on its way back.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate_wire::Quorum;
use quorate_wire::codec::{Blob, decode, encode};
use quorate_wire::ids::{LayoutVersion, OpId};
use quorate_wire::{Acks, Found, Key, QuorumReport, Reply, Request, RequestBody, Response, Write};

const VALUE_LENS: [usize; 2] = [1 << 10, 64 << 10];

fn blob(len: usize) -> Blob {
    Blob(Bytes::from(vec![0xa5; len]))
}

/// A put with the context of a read, as [`quorate_client::Client::put`] sends it.
fn put(value_len: usize) -> Request {
    let write = Write {
        key: Key::plain([0xa5; 24]),
        value: Some(blob(value_len)),
        context: Some(blob(CONTEXT_LEN)),
        op_id: OpId(7),
        first_sent_ms: None,
        w: Some(Quorum::Majority),
        strict: false,
        explain: false,
    };
    Request { layout: LayoutVersion(1), request_id: 0x0123_4567_89ab_cdef, body: RequestBody::Write(write) }
}

/// One value, read from two of three replicas.
fn got(value_len: usize) -> Response {
    let acks = Acks { primary: 2, fallback: 0 };
    let quorum = QuorumReport { need: 2, acks, degraded: false, below_floor: false, layout: LayoutVersion(1) };
    let found = Found { values: vec![blob(value_len)], context: blob(CONTEXT_LEN), quorum, evidence: None };
    Response { table: None, body: Ok(Reply::Found(found)) }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for len in VALUE_LENS {
        group.throughput(Throughput::Bytes(len as u64));
        let (put, got) = (put(len), got(len));
        let (put_frame, got_frame) = (encode(&put), encode(&got));
        group.bench_function(BenchmarkId::new("encode a put", len), |bencher| bencher.iter(|| encode(black_box(&put))));
        group.bench_function(BenchmarkId::new("decode a put", len), |bencher| {
            bencher.iter(|| decode::<Request>(black_box(&put_frame)).expect("it was just encoded"));
        });
        group.bench_function(BenchmarkId::new("encode a get's answer", len), |bencher| {
            bencher.iter(|| encode(black_box(&got)));
        });
        group.bench_function(BenchmarkId::new("decode a get's answer", len), |bencher| {
            bencher.iter(|| decode::<Response>(black_box(&got_frame)).expect("it was just encoded"));
        });
    }
    group.finish();
}

/// The context of a key that three nodes have coordinated.
const CONTEXT_LEN: usize = 90;

criterion_group!(benches, codec);
criterion_main!(benches);
