//! Echo calls by 64 callers over one connection, by lanes and with a stream for each call: what lanes save.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quorate_transport::Link;
use quorate_transport::rpc::{self, Arrived, Handler, Lanes, LanesConfig, ServeLimits, class};
use support::{Pair, pair};
use tokio::time::Instant;

const CALLERS: u64 = 64;
const LENGTHS: [usize; 2] = [128, 1024];

#[derive(Clone)]
struct Echo;

impl Handler for Echo {
    async fn handle(&self, request: Arrived) -> Bytes {
        request.body
    }

    fn refuse(&self, _class: u8) -> Bytes {
        unreachable!("its room has no bound")
    }
}

async fn drive<F: Future<Output = ()> + Send>(calls: u64, call: impl Fn() -> F + Clone + Send + 'static) -> Duration {
    let begun = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let call = call.clone();
        let mine = calls / CALLERS + u64::from(caller < calls % CALLERS);
        callers.spawn(async move {
            for _ in 0..mine {
                call().await;
            }
        });
    }
    callers.join_all().await;
    begun.elapsed()
}

fn echo(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("echo, 64 callers, one connection");
    group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(8)).sample_size(20);
    for len in LENGTHS {
        let Pair { client, server, endpoints } = runtime.block_on(pair(Link::Peer));
        runtime.spawn(rpc::serve(server, Echo, ServeLimits::client()));
        let lanes = Lanes::new(client, LanesConfig::default());
        let body = Bytes::from(vec![7; len]);
        group.bench_function(format!("lanes, {len} bytes"), |bencher| {
            bencher.to_async(&runtime).iter_custom(|calls| {
                let (lanes, body) = (lanes.clone(), body.clone());
                drive(calls, move || {
                    let (lanes, body) = (lanes.clone(), body.clone());
                    async move {
                        lanes.call(class::REQUEST, body, Duration::from_secs(10)).await.expect("an answer");
                    }
                })
            });
        });
        drop(endpoints);
    }
    for len in LENGTHS {
        let Pair { client, server, endpoints } = runtime.block_on(pair(Link::Peer));
        runtime.spawn(echo_streams(server));
        let body = Bytes::from(vec![7; len]);
        group.bench_function(format!("a stream for each call, {len} bytes"), |bencher| {
            bencher.to_async(&runtime).iter_custom(|calls| {
                let (client, body) = (client.clone(), body.clone());
                drive(calls, move || {
                    let (client, body) = (client.clone(), body.clone());
                    async move {
                        let (mut send, mut recv) = client.open_bi().await.expect("a stream");
                        send.write_chunk(body).await.expect("written");
                        send.finish().expect("open");
                        recv.read_to_end(1 << 16).await.expect("an answer");
                    }
                })
            });
        });
        drop(endpoints);
    }
    group.finish();
}

async fn echo_streams(connection: quinn::Connection) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        tokio::spawn(async move {
            if let Ok(body) = recv.read_to_end(1 << 16).await {
                // Fails only when the bench is over.
                let _ = send.write_all(&body).await;
            }
        });
    }
}

criterion_group!(benches, echo);
criterion_main!(benches);
